"""One tile: the operators of a pass, computed on the regions that its targets need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lconv_fast.regions.cut import cut
from lconv_fast.regions.graph import Graph
from lconv_fast.regions.intervals import Box, Interval, Region, length, overlap, runs
from lconv_fast.regions.rules import Kind, Value
from lconv_fast.streaming.numbers import Numbers


class Unevaluated(TorchDispatchMode):
    """Convolutions and L-convs return memory as it is, with their history: what their backward pass needs is their
    operands. A tile's last operator need not run again where its result stands on disk."""

    SKIPPED = frozenset({torch.ops.aten.convolution.default, torch.ops.lconv_fast.apply.default})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.SKIPPED:
            return func(*args, **(kwargs or {}))
        like = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        made = func(*like[0], **like[1])
        device = next(t.device for t in args if isinstance(t, Tensor))
        return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=device)


class Piece:
    """Computes values on regions; rules ask it for their operands (`regions.rules.base.Tile`)."""

    def __init__(
        self,
        graph: Graph,
        regions: Mapping[Value, Region],
        known: Mapping[Value, Tensor],
        numbers: Numbers,
        seed: int,
        unread: Collection[Value] = (),  # results that are differentiated, but whose numbers nobody asks for
    ) -> None:
        self.graph, self.regions, self.numbers, self.seed = graph, regions, numbers, seed
        self.held: dict[Value, Any] = dict(known)
        self.known = frozenset(known)
        self.unread = frozenset(unread)
        # What gradients are asked for: by value and part, the copy that the tile used.
        self.leaves: dict[tuple[Hashable, tuple[tuple[int, Interval], ...]], Tensor] = {}

    def compute(self, targets: Collection[Value], box: Box) -> list[Any]:
        """The targets on a box."""
        # A known value is not computed, and what only it needs is not either.
        uses = Counter(o for v in self.regions if v not in self.known for o in v.fields if o in self.regions)
        for value in self.graph:
            if value not in self.regions or value in self.known or value.rule is None or value.kind != Kind.FIELD:
                continue
            self.held[value] = self._on_region(value, self.regions[value])
            for operand in dict.fromkeys(value.fields):
                uses[operand] -= value.fields.count(operand)
                if uses[operand] <= 0 and operand not in targets:
                    self.held.pop(operand, None)
        return [self.piece(target, box, ["zeros"] * len(box)) for target in targets]

    def _on_region(self, value: Value, region: Region) -> Any:
        return self._parts(value, region, ())

    def _parts(self, value: Value, region: Region, box: tuple[Interval, ...]) -> Any:
        # A method: a function within a function that calls itself would be a cycle, and hold the tile until the next
        # garbage collection.
        axis = len(box)
        if axis == len(region):
            with Unevaluated() if value in self.unread else nullcontext():  # type: ignore[no-untyped-call]
                return value.rule.run(value, box, self)  # type: ignore[union-attr]
        pieces = [self._parts(value, region, (*box, one)) for one in region[axis]]
        if len(pieces) == 1:
            return pieces[0]
        if isinstance(pieces[0], Tensor):
            return torch.cat(pieces, value.dims.index(axis))
        return tuple(torch.cat(same, value.dims.index(axis)) for same in zip(*pieces, strict=True))

    def piece(self, operand: Value, box: Box, boundaries: Sequence[str], fill: float = 0.0) -> Any:
        held = self.held[operand]
        if isinstance(held, (tuple, list)):
            return tuple(self._cut(one, operand, box, boundaries, fill) for one in held)
        return self._cut(held, operand, box, boundaries, fill)

    def _cut(self, tensor: Tensor, operand: Value, box: Box, boundaries: Sequence[str], fill: float) -> Tensor:
        sides = [0, 0] * tensor.dim()
        whole: dict[int, tuple[int, int]] = {}  # the dimensions of which one run is taken
        wrapped: list[tuple[int, list[tuple[int, int]]]] = []
        for axis, (interval, boundary) in enumerate(zip(box, boundaries, strict=True)):
            dim, segments = operand.dims.index(axis), self.regions[operand][axis]
            parts = runs(interval, operand.extents[axis], boundary)
            place = 2 * (tensor.dim() - 1 - dim)
            if isinstance(parts[0], int):
                sides[place] = parts[0]
            if isinstance(parts[-1], int) and len(parts) > 1:
                sides[place + 1] = parts[-1]
            inner = [part for part in parts if not isinstance(part, int)]
            found = [(place, place + part[1] - part[0]) for part in inner for place in [_place(segments, part)]]
            if len(found) > 1:
                wrapped.append((dim, found))
            else:
                whole[dim] = found[0] if found else (0, 0)
        tensor = cut(tensor, whole)
        for dim, found in wrapped:
            tensor = torch.cat([tensor.narrow(dim, first, stop - first) for first, stop in found], dim)
        return F.pad(tensor, sides, value=fill) if any(sides) else tensor

    def small(self, argument: Any, narrow: dict[int, Any] | None = None) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        value = self.graph.values[argument]
        made = self.numbers.constant(value)
        if not isinstance(made, Tensor):
            return made
        return self._leaf(value, made, narrow or {}, value.trainable)

    def stats(self, op: Value) -> tuple[Tensor, ...]:
        return tuple(self._leaf((op, k), t, {}, op.trainable) for k, t in enumerate(self.numbers.results[op]))

    def _leaf(self, name: Hashable, tensor: Tensor, narrow: dict[int, Any], trainable: bool) -> Tensor:
        key = (name, tuple(sorted(narrow.items())))
        if key not in self.leaves:
            part = tensor.detach()
            for dim, (first, stop) in narrow.items():
                part = part.narrow(dim, first, stop - first)
            if not (trainable and torch.is_grad_enabled() and part.dtype.is_floating_point):
                return part
            self.leaves[key] = part.clone().requires_grad_() if narrow else part.requires_grad_()
        return self.leaves[key]

    def shape_of(self, name: Hashable) -> tuple[int, ...]:
        """Of the whole of what a leaf is a part of."""
        if isinstance(name, tuple):
            return tuple(self.numbers.results[name[0]][name[1]].shape)
        return tuple(self.numbers.constant(name).shape)  # type: ignore[arg-type]


def _place(segments: Sequence[Interval], part: Interval) -> int:
    """Where a part of the region stands in the tensor that holds it."""
    before = 0
    for one in segments:
        if overlap(one, part) == part:
            return before + part[0] - one[0]
        before += one[1] - one[0]
    raise RuntimeError(f"stream: {part} is not in {segments}")


def points(region: Region) -> int:
    result = 1
    for segments in region:
        result *= length(segments)
    return result


__all__ = ["Piece", "points"]
