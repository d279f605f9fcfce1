"""apply for half types and central differences of order 2, marching along rows.

A program keeps BM columns of three rows in registers and loads one new row a step. Channels come as pairs in int32, in
16-byte loads that land where the matrix instructions want their first factor, once rows and channels are permuted: it
never passes through shared memory, where all of W lies. What fits is in `marches` (launch.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type, coefficient

PAIRS = tl.constexpr(16)  # of channels, in one block: 8 rows by 4 lanes by 16 bytes make a warp's load


@triton.jit
def _unpacked(pairs, narrow: tl.constexpr):
    """(points, 16) pairs to (points, 32) in float32."""
    if narrow == tl.bfloat16:
        low = (pairs << 16).to(tl.float32, bitcast=True)
        high = (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        low = (pairs & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = ((pairs >> 16) & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.reshape(tl.join(low, high), (pairs.shape[0], 2 * PAIRS))


@triton.jit
def _permuted(tile, warps: tl.constexpr):
    """Points and channels in the order of the matrix instruction's registers."""
    m: tl.constexpr = tile.shape[0]
    split = tl.reshape(tile, (m // (16 * warps), 2, warps, 8, 1, 4, 4, 2))
    return tl.reshape(tl.permute(split, (0, 2, 1, 3, 4, 6, 5, 7)), (m, 2 * PAIRS))


@triton.jit
def _along(i, size, padding: tl.constexpr):
    """An index that may be one step outside, and whether there is a point."""
    inside = (i >= 0) & (i < size)
    if padding == 1:
        i = tl.where(i < 0, i + size, tl.where(i >= size, i - size, i))
        inside = i >= 0
    return i, inside


@triton.jit
def _row(source, base, z, y, x, k: tl.constexpr, box, padding: tl.constexpr):
    """Block k of the channels at the points (z, y, x), z and y the same for all; zero where there is none."""
    z, z_inside = _along(z, box.out[0], padding)
    y, y_inside = _along(y, box.out[1], padding)
    x, x_inside = _along(x, box.out[2], padding)
    c = k * PAIRS + tl.arange(0, PAIRS)
    there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
    offset = z * source.axes[0] + y * source.axes[1] + x * source.axes[2]
    return tl.load(base + offset[:, None] + c[None, :], mask=there[:, None], other=0)


@triton.jit
def _end_coefficient(v, i, a: tl.constexpr, step: tl.constexpr, z, y, x, box, stencil: tl.constexpr):
    """v[i, a] one step along axis a; any number where there is no point: its features are zero."""
    axis: tl.constexpr = a + 3 - stencil.ndim
    z, z_inside = _along(z + (step if axis == 0 else 0), box.out[0], stencil.padding)
    y, y_inside = _along(y + (step if axis == 1 else 0), box.out[1], stencil.padding)
    x, x_inside = _along(x + (step if axis == 2 else 0), box.out[2], stencil.padding)
    there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
    return coefficient(v, i, a, (z, y, x), there, box, stencil, tl.float32)


@triton.jit
def march_kernel(
    source,  # pairs of channels, int32
    weight,
    v,
    bias,
    target,
    box,
    groups,
    outs,
    x_tiles,
    strips,
    strip_rows,
    blocks,
    stencil: tl.constexpr,
    steps: tl.constexpr,  # weight of f(x + e_a) for each component; f(x - e_a) has its negative
    identity: tl.constexpr,
    transposed: tl.constexpr,
    has_bias: tl.constexpr,
    index: tl.constexpr,
    channel_blocks: tl.constexpr,
    warps: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    program = tl.program_id(0)
    block, program = program % blocks, program // blocks
    group, program = program % groups, program // groups
    x_tile, program = program % x_tiles, program // x_tiles
    strip, program = program % strips, program // strips
    z, batch = program % box.out[0], program // box.out[0]

    narrow: tl.constexpr = target.data.dtype.element_ty
    padding: tl.constexpr = stencil.padding
    count: tl.constexpr = stencil.generators
    ndim: tl.constexpr = stencil.ndim
    factors: tl.constexpr = channel_blocks * (count + 1)
    m = tl.arange(0, BM)
    x = as_type(x_tile, index) * BM + m
    z = as_type(z, index)
    base = source.data + as_type(batch, tl.int64) * source.batch + as_type(group, tl.int64) * channel_blocks * PAIRS
    o = block * BN + tl.arange(0, BN)

    k = tl.arange(0, 2 * PAIRS)
    channel = ((k // 2) % 4) * 8 + ((k // 8) % 4) * 2 + k % 2
    # W stays in shared memory all along.
    w = ()
    for q in tl.static_range(factors):
        c = (q // (count + 1)) * 2 * PAIRS + channel
        w = w + (
            tl.load(
                weight.data
                + group * weight.group
                + (q % (count + 1)) * weight.row
                + c[:, None] * weight.into
                + o[None, :] * weight.out,
                mask=(o < outs)[None, :],
                other=0.0,
            ),
        )
    rows = tl.reshape(tl.permute(tl.reshape(m, (BM // (16 * warps), 2, warps, 8)), (0, 2, 1, 3)), (BM,))
    x_out = as_type(x_tile, index) * BM + rows
    start = tl.zeros((BM, BN), tl.float32)
    if has_bias:
        start += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    place = target.data + as_type(batch, tl.int64) * target.batch + as_type(group, tl.int64) * outs * target.channel

    first = as_type(strip, index) * strip_rows
    last = tl.minimum(first + strip_rows, box.out[1])
    before = ()
    here = ()
    for b in tl.static_range(channel_blocks):
        before = before + (_row(source, base, z, first - 1, x, b, box, padding),)
        here = here + (_row(source, base, z, first, x, b, box, padding),)
    for step in range(0, (last - first).to(tl.int32)):
        y = first + step
        total = start
        after = ()
        for b in tl.static_range(channel_blocks):
            after = after + (_row(source, base, z, y + 1, x, b, box, padding),)
            ends = (
                (_unpacked(before[b], narrow), _unpacked(after[b], narrow)),
                (
                    _unpacked(_row(source, base, z, y, x - 1, b, box, padding), narrow),
                    _unpacked(_row(source, base, z, y, x + 1, b, box, padding), narrow),
                ),
            )
            if ndim == 3:
                ends = (
                    (
                        _unpacked(_row(source, base, z - 1, y, x, b, box, padding), narrow),
                        _unpacked(_row(source, base, z + 1, y, x, b, box, padding), narrow),
                    ),
                ) + ends
            if identity:
                f = _permuted(_unpacked(here[b], narrow).to(narrow), warps)
                total = tl.dot(f, w[b * (count + 1)], total)
            differences = ()
            for a in tl.static_range(ndim):
                differences = differences + (ends[a][1] - ends[a][0],)
            for i in tl.static_range(count):
                f = tl.zeros((BM, 2 * PAIRS), tl.float32)
                for a in tl.static_range(ndim):
                    if transposed:
                        low = _end_coefficient(v, i, a, -1, z, y, x, box, stencil)
                        high = _end_coefficient(v, i, a, 1, z, y, x, box, stencil)
                        f += (steps[a] * low)[:, None] * ends[a][0] - (steps[a] * high)[:, None] * ends[a][1]
                    else:
                        value = coefficient(v, i, a, (z, y, x), x < box.out[2], box, stencil, tl.float32)
                        f += (steps[a] * value)[:, None] * differences[a]
                total = tl.dot(_permuted(f.to(narrow), warps), w[b * (count + 1) + i + 1], total)
        offset = z * target.axes[0] + y * target.axes[1] + x_out * target.axes[2]
        tl.store(
            place + offset[:, None] + o[None, :] * target.channel,
            total.to(narrow),
            mask=(x_out < box.out[2])[:, None] & (o < outs)[None, :],
        )
        before = here
        here = after
