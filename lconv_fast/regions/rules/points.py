"""Operators that act on each point of the grid: functions of values, along channels, joins and parts of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconv_fast.regions.intervals import Box
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, functional, operand_call


def broadcast_dims(op: Value) -> Dims:
    """Of operands aligned at their last dimensions."""
    result: list[int | None] = [None] * len(op.shape)
    for operand in op.fields:
        for back, axis in enumerate(reversed(operand.dims)):
            place = len(op.shape) - 1 - back
            if axis is None:
                continue
            if result[place] not in (None, axis):
                raise NotLocal("combines different axes of space")
            if operand.shape[-1 - back] != op.shape[place]:
                raise NotLocal("stretches a single point along an axis of space")
            result[place] = axis
    found = [axis for axis in result if axis is not None]
    if len(found) != len(set(found)) or any(len(found) != len(o.places) for o in op.fields):
        raise NotLocal("combines different axes of space")
    return tuple(result)


class Pointwise(Rule):
    def dims(self, op: Value) -> Dims:
        return broadcast_dims(op)


class Along(Rule):
    """Acts along dimensions that are not axes of space: softmax and sums over channels."""

    def __init__(self, argument: str = "dim", keepdim: bool = False, default: Any = None) -> None:
        self.argument, self.keepdim, self.default = argument, keepdim, default

    def dims(self, op: Value) -> Dims:
        (operand,) = op.fields
        chosen = op.arguments.get(self.argument, self.default)
        chosen = [] if chosen is None else list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]
        chosen = [d % len(operand.dims) for d in chosen] or list(range(len(operand.dims)))
        across = [operand.dims[d] for d in chosen if operand.dims[d] is not None]
        if across:
            raise NotLocal(f"runs over axis {', '.join(map(str, sorted(across)))} of space")
        if self.keepdim or op.arguments.get("keepdim") or len(op.shape) == len(operand.shape):
            return operand.dims
        return tuple(axis for d, axis in enumerate(operand.dims) if d not in chosen)


class LastDims(Rule):
    """Acts on the last dimensions, none of them an axis of space: a linear map, a norm over channels."""

    def count(self, op: Value) -> int:
        shape = op.arguments.get("normalized_shape")
        return 1 if shape is None else len(shape)

    def dims(self, op: Value) -> Dims:
        if len(op.fields) != 1 or op.fields[0].node is not op.node.args[0]:
            raise NotLocal("multiplies two fields")
        (operand,) = op.fields
        count = self.count(op)
        if any(axis is not None for axis in operand.dims[-count:]):
            raise NotLocal("mixes the points of space")
        return operand.dims

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        arguments = {
            name: tile.small(value) if value is not op.fields[0].node else self.operand(op, op.fields[0], box, tile)
            for name, value in op.arguments.items()
        }
        return functional(op.node.target)(*arguments.values())


class Cat(Rule):
    def dims(self, op: Value) -> Dims:
        first = op.fields[0]
        dim = op["dim"] % len(op.shape)
        if first.dims[dim] is not None:
            raise NotLocal(f"joins pieces along axis {first.dims[dim]} of space")
        if any(operand.dims != first.dims for operand in op.fields):
            raise NotLocal("joins different axes of space")
        return first.dims

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        # A constant operand is narrowed as if it were broadcast, which keeps its channels.
        return operand_call(op, box, tile)


class Item(Rule):
    """One result of an operator that returns several, by the index in the tuple: split, chunk, unbind, max."""

    def dims(self, op: Value) -> Dims:
        (source,) = op.fields or op.others
        parent = source
        if parent.rule is None or len(parent.fields) != 1:
            raise NotLocal("picks a result of an operator that is not local")
        dims = parent.dims
        if parent.operator == "aten.unbind":
            dim = parent["dim"] % len(parent.fields[0].dims)
            return tuple(axis for d, axis in enumerate(dims) if d != dim)
        return dims

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (source,) = op.fields
        return tile.piece(source, box, ["zeros"] * len(box))[op.node.args[1]]  # type: ignore[index]


class Split(Along):
    """Several results; kept as a tuple until one is picked."""

    def dims(self, op: Value) -> Dims:
        (operand,) = op.fields
        dim = op["dim"] % len(operand.dims)
        if operand.dims[dim] is not None:
            raise NotLocal(f"cuts axis {operand.dims[dim]} of space")
        return operand.dims


_MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # splitmix64's, as signed numbers


def _mixed(z: Tensor) -> Tensor:
    """A hash of 64 bits: splitmix64's finalizer, on integers that wrap."""
    for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def uniform(shape: tuple[int, ...], starts: list[int], full: tuple[int, ...], seed: int, device: Any) -> Tensor:
    """Numbers in [0, 1) that depend on the index in the full array and the seed alone."""
    flat = torch.zeros((), dtype=torch.int64, device=device)
    for size, start, whole in zip(shape, starts, full, strict=True):
        flat = flat.unsqueeze(-1) * whole + torch.arange(start, start + size, device=device)
    state = (flat + 1) * _MIX[0] + seed * 0x2545F4914F6CDD1D % 2**62
    return ((_mixed(state) >> 11) & ((1 << 53) - 1)).double() / 2**53


class Dropout(Rule):
    """x times a mask over 1 - p. The mask is a hash of the seed and of the place in the whole grid, so that all tiles
    that share a point agree; with `feature`, one number for each channel of each sample."""

    def __init__(self, feature: bool = False) -> None:
        self.feature = feature

    def dims(self, op: Value) -> Dims:
        return op.fields[0].dims

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        x, p = self.operand(op, operand, box, tile), op["p"]
        if not op["train"] or p == 0:
            return x
        if p == 1:
            return x * 0
        shape, starts, full = list(x.shape), [0] * x.dim(), list(operand.shape)
        for place, axis in enumerate(operand.dims):
            if axis is not None:
                starts[place] = 0 if self.feature else box[axis][0]
                if self.feature:
                    shape[place] = full[place] = 1
        seed = tile.seed * 1000003 + sum(ord(c) * 31**i for i, c in enumerate(op.name)) % 2**31
        keep = uniform(tuple(shape), starts, tuple(full), seed, x.device) >= p
        return x * (keep.to(x.dtype) / (1 - p))
