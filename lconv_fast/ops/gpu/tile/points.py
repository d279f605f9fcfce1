"""Tiles of points by channels: what the tile kernels share."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.gpu.boundary import showing, shown
from lconv_fast.ops.gpu.fields import as_type, coefficient
from lconv_fast.ops.gpu.views import padded


class Stencil(NamedTuple):
    """Compile-time: what the generators are made of, and what is asked of them."""

    taps: tuple[int, ...]  # three for each tap
    weights: tuple[float, ...]
    components: tuple[int, ...]
    generators: int  # n_L
    tap_count: int
    component_count: int
    ndim: int
    kind: int
    padding: int
    transposed: bool
    identity: bool
    held: bool  # whether differences (taps, if transposed) stay in registers for all generators

    @staticmethod
    def of(g: Geometry, generators: int, transposed: bool, identity: bool, held: bool) -> Stencil:
        n = g.ndim
        taps = [t for j in range(0, len(g.taps), n) for t in padded(g.taps[j : j + n], 0)]
        weights, components, m = tuple(g.tap_weights), tuple(g.components), g.component_count
        counts = (generators, len(weights), m, n, int(g.kind), int(g.padding_mode))
        return Stencil(tuple(taps), weights, components, *counts, transposed, identity, held)


class Patch(NamedTuple):
    """Points, and channels at them, of one example and group of a tensor."""

    view: Any  # Data
    base: Any  # where the example's and group's numbers begin
    box: Any
    point: Any  # (z, y, x)
    here: Any  # whether there is such a point
    c: Any  # channels within the group
    channels: Any  # of the group


@triton.jit
def base_of(view, batch, group, channels):
    """Where the numbers of an example and a group begin."""
    return view.data + as_type(batch, tl.int64) * view.batch + as_type(group, tl.int64) * channels * view.channel


@triton.jit
def points_of(tile, extent, index: tl.constexpr, BM: tl.constexpr):
    """(z, y, x) of a tile's points, row-major, and whether there are such points."""
    p = as_type(tile, index) * BM + tl.arange(0, BM)
    here = p < as_type(extent[0], index) * extent[1] * extent[2]
    rest = p // extent[2]
    return (rest // extent[1], rest % extent[1], p % extent[2]), here


@triton.jit
def _seen(i, step, low, tap: tl.constexpr, size, padding: tl.constexpr):
    """The array index that output index i sees through a tap, and whether it is there."""
    return shown(i * step + (low + tap), size, padding)


@triton.jit
def _seeing(i, step, low, tap: tl.constexpr, size, out, padding: tl.constexpr):
    """The output index that sees array index i through a tap, and whether there is one: the transpose of it."""
    at = showing(i - (low + tap), size, padding)
    at_output = at // step
    return at_output, (at >= 0) & (at == at_output * step) & (at_output < out)


@triton.jit
def _other_end(patch, t0: tl.constexpr, t1: tl.constexpr, t2: tl.constexpr, stencil: tl.constexpr):
    """The points at the other end of a tap, and whether they exist."""
    point, box = patch.point, patch.box
    padding: tl.constexpr = stencil.padding
    if stencil.transposed:
        k0, in0 = _seeing(point[0], box.step[0], box.low[0], t0, box.array[0], box.out[0], padding)
        k1, in1 = _seeing(point[1], box.step[1], box.low[1], t1, box.array[1], box.out[1], padding)
        k2, in2 = _seeing(point[2], box.step[2], box.low[2], t2, box.array[2], box.out[2], padding)
    else:
        k0, in0 = _seen(point[0], box.step[0], box.low[0], t0, box.array[0], padding)
        k1, in1 = _seen(point[1], box.step[1], box.low[1], t1, box.array[1], padding)
        k2, in2 = _seen(point[2], box.step[2], box.low[2], t2, box.array[2], padding)
    return (k0, k1, k2), patch.here & in0 & in1 & in2


@triton.jit
def _tap_end(patch, j: tl.constexpr, stencil: tl.constexpr):
    return _other_end(patch, stencil.taps[3 * j], stencil.taps[3 * j + 1], stencil.taps[3 * j + 2], stencil)


@triton.jit
def load_tile(patch, point, there):
    """(points, channels); zero where there is none."""
    axes = patch.view.axes
    offset = point[0] * axes[0] + point[1] * axes[1] + point[2] * axes[2]
    return tl.load(
        patch.base + offset[:, None] + patch.c[None, :] * patch.view.channel,
        mask=there[:, None] & (patch.c < patch.channels)[None, :],
        other=0.0,
    )


@triton.jit
def identity_tile(patch, stencil: tl.constexpr):
    far, there = _other_end(patch, 0, 0, 0, stencil)
    return load_tile(patch, far, there)


@triton.jit
def _tap_tile(patch, j: tl.constexpr, stencil: tl.constexpr, wide: tl.constexpr):
    """Features (cotangents, if transposed) at the other end of tap j, in the accumulation type."""
    far, there = _tap_end(patch, j, stencil)
    return load_tile(patch, far, there).to(wide)


@triton.jit
def difference_tile(patch, a: tl.constexpr, stencil: tl.constexpr, wide: tl.constexpr):
    """D_a f = sum over the taps of component a."""
    total = tl.zeros((patch.here.shape[0], patch.c.shape[0]), wide)
    taps: tl.constexpr = stencil.tap_count
    for j in tl.static_range(taps):
        if stencil.components[j] == a:
            total += stencil.weights[j] * _tap_tile(patch, j, stencil, wide)
    return total


# A slot is what one coefficient multiplies: a difference, or transposed a tap.


@triton.jit
def _slot_tile(patch, s: tl.constexpr, stencil: tl.constexpr, wide: tl.constexpr):
    if stencil.transposed:
        return stencil.weights[s] * _tap_tile(patch, s, stencil, wide)
    return difference_tile(patch, s, stencil, wide)


@triton.jit
def _slot_coefficient(v, i, patch, s: tl.constexpr, stencil: tl.constexpr, wide: tl.constexpr):
    if stencil.transposed:
        # Of the point that the cotangent comes from.
        far, there = _tap_end(patch, s, stencil)
        return coefficient(v, i, stencil.components[s], far, there, patch.box, stencil, wide)
    return coefficient(v, i, s, patch.point, patch.here, patch.box, stencil, wide)


@triton.jit
def slot_tiles(patch, stencil: tl.constexpr, wide: tl.constexpr):
    """All of them, if they are held."""
    tiles = ()
    slots: tl.constexpr = stencil.tap_count if stencil.transposed else stencil.component_count
    if stencil.held:
        for s in tl.static_range(slots):
            tiles = tiles + (_slot_tile(patch, s, stencil, wide),)
    return tiles


@triton.jit
def generator_tile(i, tiles, v, patch, stencil: tl.constexpr, wide: tl.constexpr):
    """L_i f (L_i^T g, if transposed) at a tile's points, from the slots that are held: (points, channels)."""
    total = tl.zeros((patch.here.shape[0], patch.c.shape[0]), wide)
    slots: tl.constexpr = stencil.tap_count if stencil.transposed else stencil.component_count
    for s in tl.static_range(slots):
        value = _slot_coefficient(v, i, patch, s, stencil, wide)
        if stencil.held:
            total += value[:, None] * tiles[s]
        else:
            total += value[:, None] * _slot_tile(patch, s, stencil, wide)
    return total


@triton.jit
def weight_tile(weight, group, row, c, o, ins, outs):
    """(c, o) of the matrix of one row of W."""
    return tl.load(
        weight.data + group * weight.group + row * weight.row + c[:, None] * weight.into + o[None, :] * weight.out,
        mask=(c < ins)[:, None] & (o < outs)[None, :],
        other=0.0,
    )
