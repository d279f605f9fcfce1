"""What a rule says of an operator: which axes its output has, which region of each input it reads, how a piece of its
output is computed from pieces of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from lconv_fast.regions.intervals import IDENTITY, AxisMap, Box

Dims = tuple[int | None, ...]  # for each dimension of a tensor the spatial axis it is, or None


class Kind(Enum):
    CONSTANT = "constant"  # made of parameters and buffers alone
    GLOBAL = "global"  # a few numbers that sums over space determine
    FIELD = "field"  # has the spatial axes
    WHOLE = "whole"  # needs all of the input: some operator before it is not local


class NotLocal(Exception):
    """An operator whose output at a point needs all points; the text says of what."""


@dataclass(eq=False)
class Value:
    """A tensor of the traced model on the whole grid: what it is, and the operator that makes it."""

    node: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype
    path: str = ""  # of the module
    kind: Kind = Kind.CONSTANT
    dims: Dims = ()
    rule: Rule | None = None
    fields: list[Value] = field(default_factory=list)  # operands that are fields
    others: list[Value] = field(default_factory=list)  # all other operands
    level: int = 0  # how many reductions over space come before it
    reduces: Value | None = None  # the field of which this operator needs sums over space
    trainable: bool = False  # whether a gradient passes it

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def operator(self) -> str:
        return operator_name(self.node)

    @property
    def extents(self) -> tuple[int, ...]:
        """Of the spatial axes."""
        return tuple(self.shape[d] for d in self.places)

    @property
    def places(self) -> tuple[int, ...]:
        """The dimension of each spatial axis."""
        return places(self.dims)

    def __getitem__(self, name: str) -> Any:
        """An argument, by its name in the operator's schema; defaults filled in."""
        return self.arguments[name]

    def maps(self, operand: Value) -> tuple[AxisMap, ...]:
        """What the operator reads of a field, for each spatial axis."""
        if operand not in self._maps:
            self._maps[operand] = self.rule.maps(self, operand)  # type: ignore[union-attr]
        return self._maps[operand]

    @cached_property
    def _maps(self) -> dict[Value, tuple[AxisMap, ...]]:
        return {}

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """By name, defaults filled in."""
        result = {}
        for place, argument in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if place < len(self.node.args):
                result[argument.name] = self.node.args[place]
            else:
                default = argument.default_value if argument.has_default_value() else None
                result[argument.name] = self.node.kwargs.get(argument.name, default)
        return result


def operator_name(node: fx.Node) -> str:
    """aten.conv3d, lconv_fast.apply, getitem, ..."""
    target = node.target
    packet = getattr(target, "_overloadpacket", None)
    if packet is not None:
        return str(packet)
    return getattr(target, "__name__", str(target))


def places(dims: Dims) -> tuple[int, ...]:
    return tuple(dims.index(a) for a in range(1 + max((d for d in dims if d is not None), default=-1)))


class Tile(Protocol):
    """Where a rule finds its operands while a piece is computed."""

    def piece(self, operand: Value, box: Box, boundaries: Sequence[str], fill: float = 0.0) -> Tensor:
        """The operand on a box that may reach outside, with what the boundaries show there."""

    def small(self, argument: Any, narrow: dict[int, Any] | None = None) -> Any:
        """A constant or global operand, or a literal as it is; `narrow` picks intervals of its dimensions."""

    def stats(self, op: Value) -> tuple[Tensor, ...]:
        """The results of the sums over space that the operator needs."""

    seed: int


class Rule:
    """By default an operator that acts on each point of its operands alone."""

    def dims(self, op: Value) -> Dims:
        """Of the output, for whole operands; raises NotLocal."""
        raise NotImplementedError

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        """What the output reads of a field, for each spatial axis."""
        return (IDENTITY,) * len(operand.places)

    def anywhere(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        """Maps that hold at every place of a grid of any size, where `maps` knows of this grid's."""
        return self.maps(op, operand)

    def reduces(self, op: Value) -> Value | None:
        """The operand whose sums over space the operator needs."""
        return None

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        """The output on a box."""
        return operand_call(op, box, tile)

    bilinear = False  # in operands and parameters: gradients need those, and not the result
    fill = 0.0  # what stands outside an operand with boundary 'zeros'

    def operand(self, op: Value, operand: Value, box: Box, tile: Tile) -> Tensor:
        """The piece of an operand that the output on `box` reads, boundaries filled in."""
        maps = op.maps(operand)
        spans = tuple(one.span(interval) for one, interval in zip(maps, box, strict=True))
        return tile.piece(operand, spans, [one.boundary for one in maps], self.fill)


def operand_call(op: Value, box: Box, tile: Tile, function: Callable[..., Any] | None = None, **changes: Any) -> Any:
    """The operator itself on the pieces of its operands, with some arguments changed."""
    by_node = {value.node: value for value in (*op.fields, *op.others)}

    def given(argument: fx.Node) -> Any:
        value = by_node[argument]
        if value.kind == Kind.FIELD:
            return op.rule.operand(op, value, box, tile)  # type: ignore[union-attr]
        return tile.small(argument, aligned(op, value, box))

    # Not by a `given` that calls itself: that would be a cycle, which holds the tile until the next garbage collection.
    arguments = {name: fx.map_arg(value, given) for name, value in {**op.arguments, **changes}.items()}
    schema = op.node.target._schema.arguments  # type: ignore[union-attr]
    positional = [arguments[a.name] for a in schema if not a.kwarg_only]
    keywords = {a.name: arguments[a.name] for a in schema if a.kwarg_only and arguments[a.name] is not None}
    return (function or functional(op.node.target))(*positional, **keywords)


def functional(target: Any) -> Callable[..., Any]:
    """An in-place operator's counterpart that returns a copy: pieces are read by several operators."""
    name = getattr(getattr(target, "_schema", None), "name", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    space, _, plain = name[:-1].partition("::")
    packet = getattr(getattr(torch.ops, space), plain)
    overload = target._overloadname
    return getattr(packet, overload) if overload in packet.overloads() else packet


def aligned(op: Value, value: Value, box: Box) -> dict[int, Any]:
    """The part of a constant that broadcasts against the output on a box."""
    narrow = {}
    for back, axis in enumerate(reversed(op.dims)):
        place = len(value.shape) - 1 - back
        if axis is not None and place >= 0 and value.shape[place] != 1:
            narrow[place] = box[axis]
    return narrow


def nodes_in(arguments: Any) -> Iterator[fx.Node]:
    if isinstance(arguments, fx.Node):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from nodes_in(item)
    elif isinstance(arguments, dict):
        yield from nodes_in(tuple(arguments.values()))


def spatial_last(op: Value, operand: Value, caller: str = "") -> tuple[int, ...]:
    """The axes of an operand (N, C, *spatial), in the order of its dimensions."""
    n = len(operand.places)
    axes = operand.dims[-n:]
    if None in axes or any(d is not None for d in operand.dims[:-n]):
        raise NotLocal(f"needs channels before the spatial axes, got {operand.dims}")
    return axes  # type: ignore[return-value]


def by_axis(axes: Sequence[int], maps: Sequence[AxisMap]) -> tuple[AxisMap, ...]:
    """Maps given in the order of the dimensions, in the order of the axes."""
    return tuple(maps[axes.index(a)] for a in range(len(axes)))


def numbers(value: Any, n: int) -> list[int]:
    """One number for all axes, or one for each."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return items * n if len(items) == 1 else items
