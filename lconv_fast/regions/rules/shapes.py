"""Operators that move, cut and pad: the axes of space go where they say."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from lconv_fast.ops.boundary import PAD_MODES
from lconv_fast.regions.intervals import IDENTITY, AxisMap, Box
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, operand_call


class Moved(Rule):
    """Permutations, and dimensions of size one that come and go; the same call serves every piece."""

    def __init__(self, order: Callable[[Value, Dims], Dims]) -> None:
        self.order = order

    def dims(self, op: Value) -> Dims:
        return self.order(op, op.fields[0].dims)


def _permute(op: Value, dims: Dims) -> Dims:
    return tuple(dims[d] for d in op["dims"])


def _transpose(op: Value, dims: Dims) -> Dims:
    result = list(dims)
    one, other = op["dim0"], op["dim1"]
    result[one], result[other] = result[other], result[one]
    return tuple(result)


def _movedim(op: Value, dims: Dims) -> Dims:
    n = len(dims)
    source, destination = (
        [d % n for d in (v if isinstance(v, (list, tuple)) else [v])] for v in (op["source"], op["destination"])
    )
    result: list[Any] = [...] * n
    for s, d in zip(source, destination, strict=True):
        result[d] = dims[s]
    rest = iter([axis for d, axis in enumerate(dims) if d not in source])
    return tuple(next(rest) if axis is ... else axis for axis in result)


def _unsqueeze(op: Value, dims: Dims) -> Dims:
    place = op["dim"] % (len(dims) + 1)
    return (*dims[:place], None, *dims[place:])


def _squeeze(op: Value, dims: Dims) -> Dims:
    chosen = op.arguments.get("dim")
    shape = op.fields[0].shape
    every = range(len(dims)) if chosen is None else chosen if isinstance(chosen, (list, tuple)) else [chosen]
    gone = [d % len(dims) for d in every if shape[d] == 1]
    if any(dims[d] is not None for d in gone):
        raise NotLocal("removes an axis of space with a single point")
    return tuple(axis for d, axis in enumerate(dims) if d not in gone)


def _select(op: Value, dims: Dims) -> Dims:
    place = op["dim"] % len(dims)
    if dims[place] is not None:
        raise NotLocal(f"takes one slice of axis {dims[place]} of space")
    return (*dims[:place], *dims[place + 1 :])


class Expand(Rule):
    """Broadcasts to a size; of an axis of space the piece has its own."""

    def dims(self, op: Value) -> Dims:
        operand = op.fields[0]
        if operand.node is not op.node.args[0]:  # numbers for each channel, as the shape of a field
            return operand.dims
        more = len(op.shape) - len(operand.dims)
        for d, axis in enumerate(operand.dims):
            if axis is not None and operand.shape[d] != op.shape[d + more]:
                raise NotLocal("stretches a single point along an axis of space")
        return (*(None,) * more, *operand.dims)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        source = op.node.args[0]
        x = self.operand(op, op.fields[0], box, tile) if op.fields[0].node is source else tile.small(source)
        sizes = (n if axis is None else box[axis][1] - box[axis][0] for n, axis in zip(op.shape, op.dims, strict=True))
        return x.expand(*sizes)


class Reshape(Rule):
    """Cuts dimensions into several and joins several into one. An axis of space may be cut, or joined with dimensions
    that follow it: (D, 2) -> 2 D and back."""

    def groups(self, op: Value) -> list[tuple[list[int], list[int]]]:
        """Dimensions of input and output that hold the same points, from left to right."""
        ins, outs = op.fields[0].shape, op.shape
        result: list[tuple[list[int], list[int]]] = []
        i = o = 0
        while i < len(ins) or o < len(outs):
            group: tuple[list[int], list[int]] = ([], [])
            sizes = [1, 1]
            while not (group[0] and group[1] and sizes[0] == sizes[1]):
                side = 0 if (not group[0] or sizes[0] < sizes[1]) and i < len(ins) else 1
                if side == 1 and o >= len(outs):
                    side = 0
                if side == 0 and i >= len(ins):
                    break
                index = i if side == 0 else o
                group[side].append(index)
                sizes[side] *= (ins, outs)[side][index]
                i, o = (i + 1, o) if side == 0 else (i, o + 1)
            result.append(group)
        return result

    def ratios(self, op: Value) -> tuple[list[int | None], dict[int, tuple[int, int]]]:
        """The axes of the output, and for each axis how many points one index of output and input stands for."""
        (operand,) = op.fields
        dims: list[int | None] = [None] * len(op.shape)
        ratios = {}
        for ins, outs in self.groups(op):
            axes = [d for d in ins if operand.dims[d] is not None]
            if not axes:
                continue
            ones = (len(ins) == len(outs)) and all(operand.shape[i] == op.shape[o] for i, o in zip(ins, outs))  # noqa: B905
            if ones:
                for i, o in zip(ins, outs, strict=True):
                    dims[o] = operand.dims[i]
                    if dims[o] is not None:
                        ratios[operand.dims[i]] = (1, 1)
                continue
            lead = next((d for d in ins if operand.shape[d] != 1 or operand.dims[d] is not None), ins[0])
            if len(axes) != 1 or axes[0] != lead:
                raise NotLocal("flattens axes of space")
            first = next((d for d in outs if op.shape[d] != 1), outs[0])
            inner = prod(operand.shape[d] for d in ins if d > lead)
            outer = prod(op.shape[d] for d in outs if d > first)
            if inner != outer and inner != 1 and outer != 1:
                raise NotLocal("cuts an axis of space across its points")
            axis = operand.dims[lead]
            dims[first], ratios[axis] = axis, (outer, inner)
        return dims, ratios  # type: ignore[return-value]

    def dims(self, op: Value) -> Dims:
        return tuple(self.ratios(op)[0])

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        _, ratios = self.ratios(op)
        return tuple(
            AxisMap(outer, inner, -(inner - 1), outer - 1) if outer != inner else IDENTITY
            for outer, inner in (ratios[a] for a in range(len(ratios)))
        )

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        x = self.operand(op, operand, box, tile)
        dims, ratios = self.ratios(op)
        sizes, cuts = list(op.shape), {}
        for place, axis in enumerate(dims):
            if axis is None:
                continue
            outer, inner = ratios[axis]
            first, stop = self.maps(op, operand)[axis].span(box[axis])
            sizes[place] = (stop - first) * inner // outer
            cuts[place] = (box[axis][0] - first * inner // outer, box[axis][1] - box[axis][0])
        y = x.reshape(sizes)
        for place, (start, size) in cuts.items():
            y = y.narrow(place, start, size)
        return y


class Shifted(Rule):
    """The output is the input from another index on, or every so many: slices, pads, rolls."""

    def __init__(self, shift: Callable[[Value, Value], dict[int, AxisMap]]) -> None:
        self.shift = shift  # for each dimension that moves, its map

    def dims(self, op: Value) -> Dims:
        self.shift(op, op.fields[0])
        return op.fields[0].dims

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        moved = self.shift(op, operand)
        return tuple(moved.get(place, IDENTITY) for place in operand.places)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        moved = self.shift(op, operand)
        if not any(operand.dims[d] is not None for d in moved):
            return operand_call(op, box, tile)
        x = self.operand(op, operand, box, tile)
        for place, one in moved.items():
            if one.num != 1:
                x = x[(slice(None),) * place + (slice(None, None, one.num),)]
        return x


def _slice(op: Value, operand: Value) -> dict[int, AxisMap]:
    place = op["dim"] % len(operand.shape)
    size = operand.shape[place]
    start = op["start"] or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    return {place: AxisMap(op["step"], 1, start, start)}


def _narrow(op: Value, operand: Value) -> dict[int, AxisMap]:
    place, start = op["dim"] % len(operand.shape), op["start"]
    start += operand.shape[place] if start < 0 else 0
    return {place: AxisMap(low=start, high=start)}


def _roll(op: Value, operand: Value) -> dict[int, AxisMap]:
    shifts, chosen = ([v] if isinstance(v, int) else list(v) for v in (op["shifts"], op["dims"]))
    if not chosen:
        raise NotLocal("rolls the flattened array")
    moved = {d % len(operand.shape): s for d, s in zip(chosen, shifts, strict=True)}
    if any(operand.dims[d] is None for d in moved) and any(operand.dims[d] is not None for d in moved):
        raise NotLocal("rolls channels and space in one call")
    return {d: AxisMap(low=-s, high=-s, boundary="circular") for d, s in moved.items()}


class Pad(Shifted):
    def __init__(self) -> None:
        super().__init__(self.padded)

    def padded(self, op: Value, operand: Value) -> dict[int, AxisMap]:
        mode = PAD_MODES[op.arguments.get("mode", "constant")].name.lower()
        pairs = op["pad"]
        lows = {len(operand.shape) - 1 - k: pairs[2 * k] for k in range(len(pairs) // 2)}
        highs = {len(operand.shape) - 1 - k: pairs[2 * k + 1] for k in range(len(pairs) // 2)}
        moved = {d: AxisMap(low=-low, high=-low, boundary=mode) for d, low in lows.items() if low or highs[d]}
        if any(operand.dims[d] is None for d in moved) and any(operand.dims[d] is not None for d in moved):
            raise NotLocal("pads channels and space in one call")
        return moved

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        maps = self.maps(op, operand)
        if not any(operand.dims[d] is not None for d in self.padded(op, operand)):
            return operand_call(op, box, tile)
        spans = tuple(one.span(interval) for one, interval in zip(maps, box, strict=True))
        return tile.piece(operand, spans, [one.boundary for one in maps], float(op.arguments.get("value") or 0.0))


SHAPES: dict[str, Rule] = {
    "aten.permute": Moved(_permute),
    "aten.transpose": Moved(_transpose),
    "aten.swapaxes": Moved(_transpose),
    "aten.movedim": Moved(_movedim),
    "aten.unsqueeze": Moved(_unsqueeze),
    "aten.squeeze": Moved(_squeeze),
    "aten.select": Moved(_select),
    "aten.expand": Expand(),
    "aten.expand_as": Expand(),
    **{f"aten.{name}": Reshape() for name in ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "view_as")},
    "aten.slice": Shifted(_slice),
    "aten.narrow": Shifted(_narrow),
    "aten.roll": Shifted(_roll),
    "aten.pad": Pad(),
    "aten.constant_pad_nd": Pad(),
}
