"""Tensors and grids as the kernels take them. Axes are padded to three: (1, 1, X) stands for a line.

Named tuples travel to the kernels, and are made there too. What would mix numbers of a compilation with those of a call
does not: the stencils of tile/ and march/ are constants, everything here is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import MOST_AXES, CoefficientKind, Geometry

SAMPLED = tl.constexpr(int(CoefficientKind.SAMPLED))
AFFINE = tl.constexpr(int(CoefficientKind.AFFINE))
CONSTANT = tl.constexpr(int(CoefficientKind.CONSTANT))
# Of the marching kernels: x_b D_a and D_a for all b, a; and f at every tap, of constant stencils.
AFFINE_BASIS = tl.constexpr(len(CoefficientKind))
TAP_BASIS = tl.constexpr(len(CoefficientKind) + 1)


class Data(NamedTuple):
    """(batch, channel, *axes): features, cotangents and results."""

    data: Any
    batch: Any
    channel: Any
    axes: Any


class Weight(NamedTuple):
    """W^0, then one matrix for each generator, from the channels that a kernel sums over to those it makes."""

    data: Any
    row: Any
    group: Any
    into: Any
    out: Any


class Coefficients(NamedTuple):
    """v[i, a], at each point (sampled), or times (x, 1) (affine)."""

    data: Any
    generator: Any
    component: Any
    axes: Any  # sampled: strides of the grid; affine: (stride of b, 0, 0)
    center: Any
    inverse_scale: Any  # in two float32 numbers, whose sum serves float64


class Box(NamedTuple):
    """The grid of the call: output point o sees array point o * step + low + tap."""

    array: Any
    out: Any
    step: Any
    low: Any


class Coordinates(NamedTuple):
    """x = (index - center) inverse_scale: all that differs between calls on equal grids within different full ones."""

    center: tuple[float, ...]
    inverse_scale: tuple[float, float]

    @staticmethod
    def of(g: Geometry) -> Coordinates:
        if g.kind != CoefficientKind.AFFINE:
            return Coordinates((0.0,) * MOST_AXES, (1.0, 0.0))
        inverse = 1.0 / g.scale
        high = float(np.float32(inverse))
        return Coordinates(padded([float(c) for c in g.center], 0.0), (high, inverse - high))


def padded(values: Sequence[Any], fill: Any) -> tuple[Any, ...]:
    return (*[fill] * (MOST_AXES - len(values)), *values)


def data_view(t: Tensor) -> Data:
    return Data(t, t.stride(0), t.stride(1), padded(t.stride()[2:], 0))


def pairs_view(t: Tensor) -> Data:
    """A channels-last tensor of a half type, two channels in one int32."""
    pairs = t.movedim(1, -1).view(torch.int32)
    return Data(pairs, pairs.stride(0), 1, padded(pairs.stride()[1:-1], 0))


def weight_view(w: Tensor, groups: int, transposed: bool) -> Weight:
    group = w.shape[1] // groups * w.stride(1)
    into, out = (1, 2) if transposed else (2, 1)
    return Weight(w, w.stride(0), group, w.stride(into), w.stride(out))


def coefficients_view(v: Tensor, kind: int, coordinates: Coordinates) -> Coefficients:
    """Strides of 1 are compiled as constants, which Triton 3.6 does not return in a named tuple: components of a point
    do not lie side by side."""
    if 1 in v.stride()[:2]:
        v = v.contiguous()
    axes = v.stride()[2:]
    strides = padded(axes, 0) if kind == CoefficientKind.SAMPLED else (*axes, *[0] * (MOST_AXES - len(axes)))
    return Coefficients(v, v.stride(0), v.stride(1), strides, *coordinates)


def coordinates_view(any_tensor: Tensor, coordinates: Coordinates) -> Coefficients:
    """Of coefficients that a kernel does not read, but for their coordinates: any tensor stands for their numbers."""
    return Coefficients(any_tensor, 2, 2, (2, 0, 0), *coordinates)


def box_of(g: Geometry) -> Box:
    return Box(array=padded(g.array, 1), out=padded(g.out, 1), step=padded(g.stride, 1), low=padded(g.halo[::2], 0))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def block(channels: int, most: int) -> int:
    """Channels of a program's block: a power of two."""
    return max(16, min(most, triton.next_power_of_2(channels)))
