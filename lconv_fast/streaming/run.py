"""The passes over the tiles: forward with sums over space, backward with theirs."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lconv_fast.regions.intervals import Region
from lconv_fast.regions.rules import Value
from lconv_fast.streaming.arrays import Reader
from lconv_fast.streaming.memory import give_back, kept_heap
from lconv_fast.streaming.numbers import Numbers
from lconv_fast.streaming.passes import Pass, Schedule
from lconv_fast.streaming.store import Blocks, region_shape
from lconv_fast.streaming.sums import InOrder, merged
from lconv_fast.streaming.tile import Piece
from lconv_fast.streaming.transfer import Transfer

Report = Callable[[str, int], None]  # what is being done, and that so many tiles more are


class Run:
    """One step or prediction: its files, its numbers, its threads. A context; leaving it removes the files.

    Cotangents of a field at a cut come from all passes that read it, tiles with their halos: each is a block of its
    own on disk, and a reader adds what overlaps in the order of passes and tiles.
    """

    def __init__(
        self,
        schedule: Schedule,
        volume: Reader,
        folder: Path,
        device: torch.device,
        *,
        backward: bool,
        seed: int,
        order: int | None,
        memory: int,
        report: Report,
    ) -> None:
        self.schedule, self.graph, self.volume = schedule, schedule.graph, volume
        self.folder, self.backward, self.seed, self.order, self.report = folder, backward, seed, order, report
        self.device, self.memory = device, memory  # memory: of a tile, by count

    def __enter__(self) -> Run:
        self._stack = ExitStack()
        try:
            self._stack.enter_context(kept_heap())
            self.transfer = Transfer(self.device)
            self._stack.callback(self.transfer.close)
            self.fields: dict[Value, Blocks] = {}
            self.patches: dict[tuple[Value, int], Blocks] = {}
            for value, regions in spills(self.schedule).items():
                self.fields[value] = self._blocks(value, regions)
            if self.backward:
                for (value, place), regions in patches(self.schedule).items():
                    self.patches[value, place] = self._blocks(value, regions)
            self.numbers = Numbers(self.graph, self.device)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _blocks(self, value: Value, regions: list[Region]) -> Blocks:
        blocks = Blocks(value, regions, self.folder)
        self._stack.callback(blocks.close)
        return blocks

    # ---- forward ----

    def gather(self) -> None:
        """All passes but the last: the sums over space, and the fields that later passes read."""
        for place, one in enumerate(self.schedule.passes[:-1]):
            totals = {op: merged(op.rule.reduction(op).merge) for op in one.sums}  # type: ignore[union-attr]
            for index, given in self.tiles(one, f"statistics {place + 1}/{len(self.schedule.passes) - 1}"):
                with torch.no_grad():
                    piece = self.piece(one, index, given)
                    fields = dict(zip(one.targets, piece.compute(one.targets, one.tiles[index]), strict=True))
                    for op, (queue, _) in totals.items():
                        queue.add(index, op.rule.reduction(op).part(fields[op.reduces]))  # type: ignore[union-attr,index]
                for cut in one.cuts:
                    if cut.spilled:
                        self.transfer.write(self.fields[cut.value].write, index, fields[cut.value])
            self.transfer.wait()
            for op, (_, (state,)) in totals.items():
                self.numbers.results[op] = op.rule.reduction(op).finish(state)  # type: ignore[union-attr]
                self.numbers.counts[op] = state[0]

    def outputs(self, skip: frozenset[int] = frozenset()) -> Iterator[tuple[int, Tensor]]:
        """The output on each tile, without gradients."""
        last = self.schedule.passes[-1]
        for index, given in self.tiles(last, "prediction", skip):
            with torch.no_grad():
                (output,) = self.piece(last, index, given).compute(last.targets, last.tiles[index])
            yield index, output

    # ---- backward ----

    def differentiate(
        self, loss: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]], target: Callable[..., Any]
    ) -> Any:
        """The last pass forward and backward, then the others backward from the last to the first.

        loss: (index, prediction, target) -> per-voxel tensor and its cotangent. Returns the sum of the loss, float64.
        """
        last = self.schedule.passes[-1]
        place = len(self.schedule.passes) - 1
        totals = merged(lambda one, other: one + other)
        queue: InOrder[Any] = InOrder(self.numbers.gradients.take)
        for index, given in self.tiles(last, "loss", extra=target):
            wanted = given.pop("target")
            piece = self.piece(last, index, given, gradients=True)
            with torch.enable_grad():
                (output,) = piece.compute(last.targets, last.tiles[index])
                values, cotangent = loss(index, output, wanted)
            totals[0].add(index, values.detach().sum(dtype=torch.float64))
            self._pull(place, index, piece, given, [values], [cotangent], queue)
            del values, output, piece, cotangent
        self.transfer.wait()
        level = last.level + 1
        for place in reversed(range(len(self.schedule.passes) - 1)):
            one = self.schedule.passes[place]
            while level > one.level:
                self.numbers.pull_globals(level)
                level -= 1
            if one.trainable:
                self._backward(place, one)
            for cut in one.cuts:  # nothing reads them any more
                for key in [key for key in self.patches if key[0] is cut.value]:
                    self.patches.pop(key).close()
                if cut.spilled:
                    self.fields[cut.value].close()
        while level > 0:
            self.numbers.pull_globals(level)
            level -= 1
        return totals[1][0]

    def _backward(self, place: int, one: Pass) -> None:
        queue: InOrder[Any] = InOrder(self.numbers.gradients.take)
        targets = [value for value in one.targets if value.trainable]
        sums = [op for op in one.sums if op.trainable]
        cotangents = {op: self.numbers.cotangents(op) for op in sums}

        unread = [value for value in targets if one.unread(value)]

        def load(index: int) -> dict[Any, Tensor]:
            box = one.region(index)
            cotangents = {("cotangent", value): self._cotangent(value, box) for value in targets}
            return cotangents | {("values", value): self.fields[value].read(box) for value in unread}

        name = f"backward {len(self.schedule.passes) - 1 - place}/{len(self.schedule.passes) - 1}"
        for index, given in self.tiles(one, name, extra=load):
            gradients = [given.pop(("cotangent", value)) for value in targets]
            values = {value: given.pop(("values", value)) for value in unread}
            piece = self.piece(one, index, given, gradients=True, unread=unread)
            with torch.enable_grad():
                fields = piece.compute(targets, one.tiles[index])
            with torch.no_grad():
                for op in sums:
                    k = targets.index(op.reduces)  # type: ignore[arg-type]
                    reduction = op.rule.reduction(op)  # type: ignore[union-attr]
                    count, results = self.numbers.counts[op], self.numbers.results[op]
                    x = values.get(targets[k], fields[k].detach())
                    gradients[k] += reduction.pull(x, count, results, cotangents[op])
            self._pull(place, index, piece, given, fields, gradients, queue)
            del fields, gradients, piece, values
        self.transfer.wait()

    def _cotangent(self, value: Value, region: Region) -> Tensor:
        """What later passes left for a field."""
        total = torch.zeros(region_shape(value, region), dtype=value.dtype)
        for (field, _), blocks in sorted(self.patches.items(), key=lambda item: item[0][1]):
            if field is value:
                blocks.read(region, add_to=total)
        return total

    def _pull(
        self,
        place: int,
        index: int,
        piece: Piece,
        given: dict[Any, Tensor],
        outputs: list[Tensor],
        cotangents: list[Tensor],
        queue: InOrder[Any],
    ) -> None:
        """Gradients of one tile: of fields on disk to their blocks, of shared numbers to their sums."""
        fields = [(value, t) for value, t in given.items() if t.requires_grad]
        leaves = list(piece.leaves.items())
        wanted = [t for _, t in fields] + [t for _, t in leaves]
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if wanted and pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs], wanted, [c.to(o.dtype) for o, c in pairs], allow_unused=True
            )
        else:
            found = (None,) * len(wanted)  # type: ignore[assignment]
        for (value, t), gradient in zip(fields, found, strict=False):
            block = torch.zeros_like(t) if gradient is None else gradient
            self.transfer.write(self.patches[value, place].write, index, block)
        parts = [
            (name, piece.shape_of(name), (dict(narrow), gradient))
            for ((name, narrow), _), gradient in zip(leaves, found[len(fields) :], strict=True)
            if gradient is not None
        ]
        queue.add(index, parts)

    # ---- tiles ----

    def piece(
        self,
        one: Pass,
        index: int,
        given: dict[Any, Tensor],
        gradients: bool = False,
        unread: Collection[Value] = (),
    ) -> Piece:
        if gradients:
            for value in given:
                if value.trainable:
                    given[value].requires_grad_()
        return Piece(self.graph, one.plans[index], given, self.numbers, self.seed, unread)

    def tiles(
        self, one: Pass, name: str, skip: frozenset[int] = frozenset(), extra: Callable[..., Any] | None = None
    ) -> Iterator[tuple[int, dict[Any, Tensor]]]:
        """The tiles of a pass with what they read, the next being read meanwhile."""
        order = [index for index in range(len(one.tiles)) if index not in skip]
        if self.order is not None:
            random.Random(self.order).shuffle(order)
        self.report(name, -len(order))

        def load(index: int) -> dict[Any, Tensor]:
            plan = one.plans[index]
            loaded: dict[Any, Tensor] = {v: self._read(v, plan[v]) for v in one.known if v in plan}
            return loaded | (extra(index) if extra is not None else {})

        for index, given in self.transfer.ahead(order, load):
            yield index, given
            give_back(self.memory)
            self.report(name, 1)

    def _read(self, value: Value, region: Region) -> Tensor:
        if value in self.fields:
            return self.fields[value].read(region)
        return read_region(self.volume, value, region)


def read_region(volume: Reader, value: Value, region: Region) -> Tensor:
    """A region of the input, its pieces side by side."""

    def parts(axis: int, box: tuple[tuple[int, int], ...]) -> Tensor:
        if axis == len(region):
            every = ((0, n) if d is None else box[d] for n, d in zip(value.shape, value.dims, strict=True))
            return volume.read(list(every))
        pieces = [parts(axis + 1, (*box, one)) for one in region[axis]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, value.dims.index(axis))

    return parts(0, ())


def spills(schedule: Schedule) -> dict[Value, list[Region]]:
    """The fields that are written to disk, and the region of each tile."""
    return {
        value: [tuple((interval,) for interval in box) for box in one.tiles]
        for value, one in schedule.spilled().items()
    }


def patches(schedule: Schedule) -> dict[tuple[Value, int], list[Region]]:
    """The cotangents that are written: of which field, by which pass, and the region of each tile."""
    fields = schedule.spilled()
    return {
        (value, place): [plan.get(value, ((),) * len(plan[one.targets[0]])) for plan in one.plans]
        for place, one in enumerate(schedule.passes)
        for value in one.sources
        if value in fields and value.trainable and one.trainable
    }
