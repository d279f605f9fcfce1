"""The model cut at its sums over space: what each pass over the tiles computes, reads and writes.

Pass p computes the fields whose sums are needed next; a sum is known when all tiles have been there. A field at a cut
is written to disk, unless it costs less to compute it again (`Cut.reason`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from lconv_fast.regions.graph import Graph
from lconv_fast.regions.intervals import Box, Region
from lconv_fast.regions.needs import needs
from lconv_fast.regions.rules import Kind, Value
from lconv_fast.streaming.store import region_shape

# What a cut's alternatives cost: operations in a second of a core whose layers have few channels and wait for memory,
# and bytes that a fast disk moves. Guesses: the choice needs no more than their order of magnitude.
FLOPS, BYTES = 5e9, 1e9


@dataclass
class Cut:
    """A field at which the graph is cut."""

    value: Value
    spilled: bool
    reason: str


@dataclass
class Pass:
    """One run over all tiles."""

    graph: Graph
    level: int
    cuts: list[Cut]  # what it computes, all on the same grid
    sums: list[Value]  # the operators whose sums over space it gathers
    known: list[Value]  # fields it may read: the input and what earlier passes wrote
    tiles: list[Box]
    last: bool = False

    @property
    def targets(self) -> list[Value]:
        return [cut.value for cut in self.cuts]

    @cached_property
    def plans(self) -> list[dict[Value, Region]]:
        """For each tile the region of every field it needs."""
        return [self.plan(box) for box in self.tiles]

    def plan(self, box: Box) -> dict[Value, Region]:
        region = tuple((interval,) for interval in box)
        return needs(self.graph, dict.fromkeys(self.targets, region), self.known)

    def region(self, index: int) -> Region:
        """Of the targets on a tile."""
        return tuple((interval,) for interval in self.tiles[index])

    def unread(self, value: Value) -> bool:
        """Whether a target's numbers stand on disk when it is differentiated, and its gradient needs none of them."""
        bilinear = value.rule is not None and value.rule.bilinear
        written = any(cut.value is value and cut.spilled for cut in self.cuts)
        return bilinear and written and not any(user in plan for user in self.graph.users(value) for plan in self.plans)

    @cached_property
    def sources(self) -> list[Value]:
        """The fields it does read."""
        used = {value for plan in self.plans for value in plan}
        return [value for value in self.known if value in used]

    @property
    def trainable(self) -> bool:
        return any(value.trainable for value in self.targets)


@dataclass
class Schedule:
    """All passes; the last one computes the output."""

    graph: Graph
    tile: tuple[int, ...]
    passes: list[Pass] = field(default_factory=list)

    @property
    def cuts(self) -> list[Cut]:
        return [cut for one in self.passes[:-1] for cut in one.cuts]

    def spilled(self) -> dict[Value, Pass]:
        return {cut.value: one for one in self.passes[:-1] for cut in one.cuts if cut.spilled}


def boxes(value: Value, graph: Graph, tile: Sequence[int]) -> list[Box]:
    """The tiles of a field's grid: as many as the input has, and in proportion."""
    edges = []
    for size, whole, extent in zip(value.extents, graph.input.extents, tile, strict=True):
        step = max(1, round(extent * size / whole))
        edges.append([(first, min(first + step, size)) for first in range(0, size, step)])
    return list(itertools.product(*edges))


def schedule(graph: Graph, tile: Sequence[int]) -> Schedule:
    """The passes over a traced model. Raises ValueError where an operator needs more of space than sums."""
    if graph.output.kind != Kind.FIELD:
        wrong = [str(one) for one in graph.nonlocal_ if not one.summable] or ["the output has no axes of space"]
        raise ValueError("stream: the model is not local: " + "; ".join(wrong))
    result = Schedule(graph, tuple(tile))
    known: list[Value] = list(graph.inputs)
    sums = [value for value in graph if value.reduces is not None and _reaches(graph, value)]
    for level in sorted({value.reduces.level for value in sums}):  # type: ignore[union-attr]
        grids: dict[tuple[int, ...], list[Value]] = {}
        for value in sums:
            if value.reduces.level == level:  # type: ignore[union-attr]
                grids.setdefault(value.reduces.extents, []).append(value)  # type: ignore[union-attr]
        for ops in grids.values():
            fields = list(dict.fromkeys(op.reduces for op in ops))
            tiles = boxes(fields[0], graph, tile)  # type: ignore[arg-type]
            cuts = [_cut(graph, value, known, tiles) for value in fields]  # type: ignore[arg-type]
            cuts += _carried(graph, cuts, known, tiles)
            result.passes.append(Pass(graph, level, cuts, ops, list(known), tiles))
            known += [cut.value for cut in cuts if cut.spilled]
    last = Cut(graph.output, False, "")
    tiles = boxes(graph.output, graph, tile)
    result.passes.append(Pass(graph, graph.output.level, [last], [], list(known), tiles, True))
    return result


def _reaches(graph: Graph, value: Value) -> bool:
    """Whether the output depends on it."""
    seen, stack = set(), [graph.output]
    while stack:
        one = stack.pop()
        if one is value:
            return True
        if one not in seen:
            seen.add(one)
            stack += [*one.fields, *one.others]
    return False


def _cut(graph: Graph, value: Value, known: Sequence[Value], tiles: Sequence[Box]) -> Cut:
    """Written, or computed again in the next pass and in its backward pass."""
    if value in known:
        return Cut(value, False, "is there already")
    if value.rule is None:
        return Cut(value, False, "is the input")
    region = tuple((interval,) for interval in tiles[len(tiles) // 2])
    between = {v: r for v, r in needs(graph, {value: region}, known).items() if v not in known}
    again = 2 * len(tiles) * sum(flops(v, r) for v, r in between.items()) / FLOPS
    size = nbytes(value)
    # Written once, read twice; its gradient is written and read once.
    disk = (3 + 2 * value.trainable) * size / BYTES
    costs = f"{again:.3g} s to compute it twice more, {disk:.3g} s to write and read it and its gradient"
    return Cut(value, again > disk, costs)


def _carried(graph: Graph, cuts: Sequence[Cut], known: Sequence[Value], tiles: Sequence[Box]) -> list[Cut]:
    """What later passes read beside the cuts, as the sum before a residual block: written where a later pass would
    take longer to compute it from what is known. Without that the last of k blocks would compute all k again."""
    targets = [cut.value for cut in cuts]
    region = tuple((interval,) for interval in tiles[len(tiles) // 2])
    plan = needs(graph, dict.fromkeys(targets, region), known)
    there = {*known, *(cut.value for cut in cuts if cut.spilled)}
    result: list[Cut] = []
    for value in graph:
        if value not in plan or value in there or value in targets or value.extents != targets[0].extents:
            continue
        later = [user for user in graph.users(value) if user not in plan and user not in there and user.reduces is None]
        if not later or not isinstance(value.node.meta["val"], torch.Tensor):
            continue
        between = needs(graph, {value: region}, there)
        passes = 2 + 2 * value.trainable  # forward in two passes more; backward, twice the work, in one
        again = passes * sum(flops(v, r) for v, r in between.items() if v not in there) / FLOPS
        again += sum((2 + 2 * v.trainable) * nbytes(v, r) for v, r in between.items() if v in there) / BYTES
        again *= len(tiles)
        disk = (3 + 2 * value.trainable) * nbytes(value) / BYTES
        if again > disk:
            reason = f"{again:.3g} s to compute it again, {disk:.3g} s to write and read it and its gradient"
            result.append(Cut(value, True, reason))
            there.add(value)
    return result


def nbytes(value: Value, region: Region | None = None) -> int:
    shape = value.shape if region is None else region_shape(value, region)
    return math.prod(shape) * value.dtype.itemsize


def flops(value: Value, region: Region | None = None) -> float:
    """Of an operator, on a region of its output; those that mix no channels count as ten a number."""
    shape = value.shape if region is None else region_shape(value, region)
    numbers = math.prod(shape)
    weight = value.arguments.get("weight") if value.node.op == "call_function" else None
    if isinstance(weight, torch.fx.Node) and ("conv" in value.operator or value.operator == "aten.linear"):
        sizes = tuple(weight.meta["val"].shape)
        if value.operator == "lconv_fast.apply":
            return 2.0 * numbers * (sizes[0] * sizes[2] + len(value["tap_weights"]))
        per = math.prod(sizes) / sizes[0]  # for each number of the output, of a convolution
        if "transpose" in value.operator:
            per = math.prod(sizes) / math.prod(_numbers(value["stride"], len(sizes) - 2)) / sizes[1]
        return 2.0 * numbers * per
    return 10.0 * numbers


def _numbers(value: object, n: int) -> list[int]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return items * n if len(items) == 1 else items  # type: ignore[return-value]
