"""`lc.regions`: what a model needs around each part of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_module, extents, positive_int
from lconv_fast.regions.graph import Graph, NonLocal, trace
from lconv_fast.regions.intervals import Box, Interval, Region
from lconv_fast.regions.needs import needs, unbounded
from lconv_fast.regions.rules import Kind, Value


@dataclass(frozen=True)
class Axis:
    """One axis of space. An interval [lo, hi) of the output whose ends are multiples of `step` (or ends of the grid)
    reads [lo scale - halo[0], hi scale + halo[1]) of the input."""

    receptive_field: int  # most input points that one output point reads
    stride: int  # total: input points per point of the coarsest grid inside
    scale: Fraction  # input points per output point
    step: int  # output points after which everything repeats
    halo: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What a model needs around each part of its output.

    Attributes:
        input_shape, output_shape: of the whole grid.
        axes: for each axis of space its receptive field, total stride, scale and halo (`Axis`).
        nonlocal_operators: those whose output at a point needs more than the points around it, in the order of the
            model: `path` of the module, `operator`, `needs`; `summable` where sums over space are all that is needed
            (norms, global means), so that `lc.stream` is exact all the same.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    nonlocal_operators: tuple[NonLocal, ...]
    graph: Graph

    @property
    def local(self) -> bool:
        """Whether every point of the output depends on the points around it alone."""
        return not self.nonlocal_operators

    @property
    def receptive_field(self) -> tuple[int, ...]:
        return tuple(axis.receptive_field for axis in self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        return tuple(axis.stride for axis in self.axes)

    @property
    def halo(self) -> tuple[tuple[int, int], ...]:
        return tuple(axis.halo for axis in self.axes)

    def segments(self, output: Sequence[Interval]) -> Region:
        """The input that a box of the output reads: for each axis its disjoint intervals, more than one where a
        periodic boundary wraps."""
        value, box = self.graph.output, _box(output, self.output_shape[-self.graph.ndim :])
        every = tuple(((0, size),) for size in self.input_shape[-self.graph.ndim :])
        if value.kind != Kind.FIELD:
            return every
        order = [d for d in value.dims if d is not None]
        targets = {value: tuple((box[order.index(a)],) for a in range(self.graph.ndim))}
        return needs(self.graph, targets).get(self.graph.input, tuple(() for _ in every))

    def input_region(self, output: Sequence[Interval]) -> Box:
        """The smallest box of the input that holds all a box of the output reads: (first, stop) for each axis, within
        the grid. What sums over space need (`nonlocal_operators`) is left aside.

        output: (first, stop) for each axis of space.
        """
        return tuple((parts[0][0], parts[-1][1]) if parts else (0, 0) for parts in self.segments(output))

    def __str__(self) -> str:
        lines = [f"{self.input_shape} -> {self.output_shape}"]
        lines.append("axis  receptive field  total stride  input per output  halo")
        for a, axis in enumerate(self.axes):
            halo = f"{axis.halo[0]}, {axis.halo[1]}"
            lines.append(f"{a:>4}  {axis.receptive_field:>15}  {axis.stride:>12}  {axis.scale!s:>16}  {halo}")
        if self.local:
            lines.append("every operator is local")
        for one in self.nonlocal_operators:
            lines.append(f"not local: {one}" + ("; sums over tiles give it" if one.summable else ""))
        return "\n".join(lines)


def _box(output: Any, sizes: Sequence[int]) -> Box:
    expected = f"output: expected {len(sizes)} pairs (first, stop) within {tuple(sizes)}, got {output!r}"
    if isinstance(output, Tensor) and output.dim() != 2:
        raise TypeError(expected)
    try:
        box = tuple((int(first), int(stop)) for first, stop in output)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise TypeError(expected) from None
    if len(box) != len(sizes) or any(
        not 0 <= first < stop <= size for (first, stop), size in zip(box, sizes, strict=True)
    ):
        raise ValueError(expected)
    return box


def regions(model: nn.Module, example_shape: Sequence[int], *, ndim: int | None = None) -> Plan:
    """For each region of a model's output the region of its input that it needs, by interval arithmetic.

        output interval [lo, hi)  ->  input [ceil((num lo + low) / den), floor((num (hi - 1) + high) / den)]

    per operator and axis: num is a stride, den an upsampling factor, high - low a kernel's extent; composed over the
    graph of torch.export. Nothing is computed: the example is a shape.

    Args:
        model: in the mode (train or eval) that is asked about.
        example_shape: of its input, (N, C, *spatial).
        ndim: axes of space, the last of the input; by default all after the first two.

    Returns:
        A `Plan`; print it.

    Raises:
        TypeError, ValueError: an argument of another kind; a model that torch.export cannot trace, with the path of
            the module and its line.
    """
    check_module("model", model)
    if isinstance(example_shape, Tensor):
        example_shape = tuple(example_shape.shape)
    shape = extents("example_shape", example_shape)
    n = len(shape) - 2 if ndim is None else positive_int("ndim", ndim)
    if ndim is not None and n > len(shape):
        raise ValueError(f"ndim: expected 1 to {len(shape)} axes of space, got {ndim!r}")
    if n < 1:
        raise ValueError(f"example_shape: expected (N, C, *spatial), got {tuple(shape)}")
    return plan_of(trace(model, shape, float_type(model), n))


def float_type(model: nn.Module) -> torch.dtype:
    """Of the model's numbers."""
    tensors = (*model.parameters(), *model.buffers())
    return next((t.dtype for t in tensors if t.dtype.is_floating_point), torch.get_default_dtype())


def plan_of(graph: Graph) -> Plan:
    output, source = graph.output, graph.input
    if output.kind == Kind.FIELD:
        axes = tuple(_axis(graph, output, source, a) for a in range(graph.ndim))
    else:
        axes = tuple(Axis(size, 1, Fraction(1), 1, (size, size)) for size in source.extents)
    return Plan(source.shape, output.shape, axes, tuple(graph.nonlocal_), graph)


def rates(graph: Graph, axis: int) -> dict[Value, Fraction]:
    """Input points per point of each field, along an axis."""
    result = {graph.input: Fraction(1)}
    for value in graph:
        if value.kind != Kind.FIELD or value in result or value.rule is None:
            continue
        for operand in value.fields:
            one = value.rule.anywhere(value, operand)[axis]
            result[value] = result.get(operand, Fraction(1)) * Fraction(one.num, one.den)
            break
    return result


def _axis(graph: Graph, output: Value, source: Value, axis: int) -> Axis:
    every = rates(graph, axis)
    scale = every[output]
    stride = 1
    for rate in every.values():
        stride = lcm(stride, rate.numerator)
    step = (Fraction(stride) / scale).numerator  # output points that are a whole number of strides
    if step > 1 << 12:
        raise ValueError(f"regions: axis {axis} repeats only after {step} points; expected integer factors")
    start = step * (1 << 12)
    most = 0
    for o in range(start, start + step):
        span = unbounded(graph, output, source, axis, (o, o + 1))
        most = max(most, span[1] - span[0]) if span else most
    tile = (start, start + step)
    span = unbounded(graph, output, source, axis, tile)
    low, high = (0, 0) if span is None else (int(tile[0] * scale) - span[0], span[1] - int(tile[1] * scale))
    size = source.extents[axis]
    return Axis(min(most, size) if most else 0, stride, scale, step, (max(low, 0), max(high, 0)))


__all__ = ["Axis", "Plan", "plan_of", "rates", "regions"]
