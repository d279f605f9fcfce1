"""Points, taps and coefficients: what the kernels share. One place for the boundary rule, one for v(x).

Axes are padded to three: (1, 1, X) stands for a row. Tensors and their layout travel as named tuples, and everything
that does not change with the image size (taps, kind, boundary) is a compile-time constant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


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
    scale: Any  # 1 / scale in two float32 numbers, whose sum serves float64


class Box(NamedTuple):
    """The grid of the call: output point o sees array point o * step + low + tap."""

    array: Any
    out: Any
    step: Any
    low: Any


class Stencil(NamedTuple):
    """Compile-time: what the generators are made of."""

    taps: tuple[int, ...]  # three for each tap
    weights: tuple[float, ...]
    components: tuple[int, ...]
    generators: int  # n_L
    tap_count: int
    component_count: int
    ndim: int
    kind: int
    padding: int


@triton.jit
def as_type(x, dtype: tl.constexpr):
    """Of a scalar, whether it is a constant of this compilation or not."""
    return tl.zeros((), dtype) + x


@triton.jit
def point_of(p, extent):
    """Row-major."""
    rest = p // extent[2]
    return rest // extent[1], rest % extent[1], p % extent[2]


@triton.jit
def _seen(i, step, low, tap: tl.constexpr, size, padding: tl.constexpr):
    """The array index that output index i sees through a tap, and whether it is there: the boundary rule."""
    at = i * step + (low + tap)
    inside = (at >= 0) & (at < size)
    if padding == 1:
        at = ((at % size) + size) % size
        inside = at >= 0
    elif padding == 2:
        at = tl.minimum(tl.maximum(at, 0), size - 1)
        inside = at >= 0
    elif padding == 3:
        at = (size - 1) - tl.abs((size - 1) - tl.abs(at))
        inside = at >= 0
    return at, inside


@triton.jit
def _seeing(i, step, low, tap: tl.constexpr, size, out, padding: tl.constexpr):
    """The output index that sees array index i through a tap, and whether there is one: the transpose of it."""
    at = i - (low + tap)
    if padding == 1:
        at = ((at % size) + size) % size
    at_output = at // step
    return at_output, (at >= 0) & (at == at_output * step) & (at_output < out)


@triton.jit
def other_end(
    point,
    here,
    box,
    t0: tl.constexpr,
    t1: tl.constexpr,
    t2: tl.constexpr,
    padding: tl.constexpr,
    transposed: tl.constexpr,
):
    """The point at the other end of a tap, and whether it exists."""
    if transposed:
        k0, in0 = _seeing(point[0], box.step[0], box.low[0], t0, box.array[0], box.out[0], padding)
        k1, in1 = _seeing(point[1], box.step[1], box.low[1], t1, box.array[1], box.out[1], padding)
        k2, in2 = _seeing(point[2], box.step[2], box.low[2], t2, box.array[2], box.out[2], padding)
    else:
        k0, in0 = _seen(point[0], box.step[0], box.low[0], t0, box.array[0], padding)
        k1, in1 = _seen(point[1], box.step[1], box.low[1], t1, box.array[1], padding)
        k2, in2 = _seen(point[2], box.step[2], box.low[2], t2, box.array[2], padding)
    return (k0, k1, k2), here & in0 & in1 & in2


@triton.jit
def load_tile(view, base, point, there, c, channels):
    """(points, channels); zero where there is none."""
    offset = point[0] * view.axes[0] + point[1] * view.axes[1] + point[2] * view.axes[2]
    return tl.load(
        base + offset[:, None] + c[None, :] * view.channel, mask=there[:, None] & (c < channels)[None, :], other=0.0
    )


@triton.jit
def tap_tile(
    view,
    base,
    point,
    here,
    box,
    c,
    channels,
    j: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
    wide: tl.constexpr,
):
    """Features (cotangents, if transposed) at the other end of tap j, in the accumulation type."""
    far, there = other_end(
        point,
        here,
        box,
        stencil.taps[3 * j],
        stencil.taps[3 * j + 1],
        stencil.taps[3 * j + 2],
        stencil.padding,
        transposed,
    )
    tile = load_tile(view, base, far, there, c, channels)
    return tile.to(wide)


@triton.jit
def difference_tile(
    view, base, point, here, box, c, channels, a: tl.constexpr, stencil: tl.constexpr, wide: tl.constexpr
):
    """D_a f = sum over the taps of component a."""
    total = tl.zeros((here.shape[0], c.shape[0]), wide)
    taps: tl.constexpr = stencil.tap_count
    for j in tl.static_range(taps):
        if stencil.components[j] == a:
            total += stencil.weights[j] * tap_tile(view, base, point, here, box, c, channels, j, stencil, False, wide)
    return total


@triton.jit
def coefficient(v, i, a: tl.constexpr, output, there, box, stencil: tl.constexpr, wide: tl.constexpr):
    """v[i, a] at output points: (points,)."""
    row = v.data + as_type(i, tl.int64) * v.generator + a * v.component
    if stencil.kind == 0:
        value = tl.load(row).to(wide) + tl.zeros((there.shape[0],), wide)
    elif stencil.kind == 1:
        x0, x1, x2 = output[0] * box.step[0], output[1] * box.step[1], output[2] * box.step[2]
        value = tl.load(row + x0 * v.axes[0] + x1 * v.axes[1] + x2 * v.axes[2], mask=there, other=0.0).to(wide)
    else:
        value = tl.load(row + stencil.ndim * v.axes[0]).to(wide) + tl.zeros((there.shape[0],), wide)
        for b in tl.static_range(3):
            if b >= 3 - stencil.ndim:
                value += tl.load(row + (b - 3 + stencil.ndim) * v.axes[0]).to(wide) * coordinate(
                    v, output, box, b, wide
                )
    return value


@triton.jit
def coordinate(v, output, box, b: tl.constexpr, wide: tl.constexpr):
    """x_b = (index_b - center_b) / scale at output points."""
    return ((output[b] * box.step[b]).to(wide) - v.center[b]) * (as_type(v.scale[0], wide) + v.scale[1])


@triton.jit
def slot_tile(
    view,
    base,
    point,
    here,
    box,
    c,
    channels,
    s: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
    wide: tl.constexpr,
):
    """What coefficient s multiplies: a difference, or transposed a tap."""
    if transposed:
        return stencil.weights[s] * tap_tile(view, base, point, here, box, c, channels, s, stencil, True, wide)
    return difference_tile(view, base, point, here, box, c, channels, s, stencil, wide)


@triton.jit
def slot_coefficient(
    v, i, point, here, box, s: tl.constexpr, stencil: tl.constexpr, transposed: tl.constexpr, wide: tl.constexpr
):
    if transposed:
        # Of the point that the cotangent comes from.
        far, there = other_end(
            point,
            here,
            box,
            stencil.taps[3 * s],
            stencil.taps[3 * s + 1],
            stencil.taps[3 * s + 2],
            stencil.padding,
            True,
        )
        return coefficient(v, i, stencil.components[s], far, there, box, stencil, wide)
    return coefficient(v, i, s, point, here, box, stencil, wide)


@triton.jit
def slot_tiles(
    view,
    base,
    point,
    here,
    box,
    c,
    channels,
    held: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
    wide: tl.constexpr,
):
    """All of them, if they are to be held in registers for all generators."""
    tiles = ()
    slots: tl.constexpr = stencil.tap_count if transposed else stencil.component_count
    if held:
        for s in tl.static_range(slots):
            tiles = tiles + (slot_tile(view, base, point, here, box, c, channels, s, stencil, transposed, wide),)
    return tiles


@triton.jit
def generator_tile(
    i,
    tiles,
    v,
    view,
    base,
    point,
    here,
    box,
    c,
    channels,
    held: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
    wide: tl.constexpr,
):
    """L_i f (L_i^T g, if transposed) at a tile's points: (points, channels)."""
    total = tl.zeros((here.shape[0], c.shape[0]), wide)
    slots: tl.constexpr = stencil.tap_count if transposed else stencil.component_count
    for s in tl.static_range(slots):
        value = slot_coefficient(v, i, point, here, box, s, stencil, transposed, wide)
        if held:
            total += value[:, None] * tiles[s]
        else:
            total += value[:, None] * slot_tile(view, base, point, here, box, c, channels, s, stencil, transposed, wide)
    return total


@triton.jit
def weight_tile(weight, group, row, c, o, ins, outs):
    """(c, o) of the matrix of one row."""
    return tl.load(
        weight.data + group * weight.group + row * weight.row + c[:, None] * weight.into + o[None, :] * weight.out,
        mask=(c < ins)[:, None] & (o < outs)[None, :],
        other=0.0,
    )


@triton.jit
def identity_tile(view, base, point, here, box, c, channels, padding: tl.constexpr, transposed: tl.constexpr):
    far, there = other_end(point, here, box, 0, 0, 0, padding, transposed)
    return load_tile(view, base, far, there, c, channels)
