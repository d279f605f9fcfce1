"""Rows of points in registers: what the marching kernels share, for half types and central differences of order 2.

Channels come as pairs in int32, 32 channels (a block) at a time, in 16-byte loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type, coefficient, coordinate

BASIS = tl.constexpr(3)  # a kind of stencil: x_b D_a and D_a for all b, a
MOST_LINES = 18  # of an affine field, kept in registers
PAIRS = tl.constexpr(16)  # of channels, in one block: 8 rows by 4 lanes by 16 bytes make a warp's load


@triton.jit
def unpacked(pairs, narrow: tl.constexpr):
    """(points, 16) pairs to (points, 32) in float32."""
    if narrow == tl.bfloat16:
        low = (pairs << 16).to(tl.float32, bitcast=True)
        high = (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        low = (pairs & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = ((pairs >> 16) & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return tl.reshape(tl.join(low, high), (pairs.shape[0], 2 * PAIRS))


@triton.jit
def halves(pairs, narrow: tl.constexpr):
    """(points, 16) pairs to (points, 32) as they are."""
    low, high = pairs.to(tl.int16).to(narrow, bitcast=True), (pairs >> 16).to(tl.int16).to(narrow, bitcast=True)
    return tl.reshape(tl.join(low, high), (pairs.shape[0], 2 * PAIRS))


@triton.jit
def permuted(tile, warps: tl.constexpr):
    """Points, and channels within each block, in the order of the matrix instruction's registers."""
    m: tl.constexpr = tile.shape[0]
    blocks: tl.constexpr = tile.shape[1] // (2 * PAIRS)
    split = tl.reshape(tile, (m // (16 * warps), 2, warps, 8, blocks, 4, 4, 2))
    return tl.reshape(tl.permute(split, (0, 2, 1, 3, 4, 6, 5, 7)), (m, tile.shape[1]))


@triton.jit
def _beside(left, right):
    """(points, k) twice to (points, 2 k)."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (left.shape[0], 2 * left.shape[1]))


@triton.jit
def all_beside(tiles, first: tl.constexpr, size: tl.constexpr):
    """`size` tiles, a power of two, from the first on; the last again where there are no more."""
    if size == 1:
        found = tiles[first if first < len(tiles) else len(tiles) - 1]
    else:
        found = _beside(all_beside(tiles, first, size // 2), all_beside(tiles, first + size // 2, size // 2))
    return found


@triton.constexpr_function
def stacks_of(count, exact):
    """Tiles in stacks of 4, and the rest in 2 and 1, if exact, or in one of 2 or 4: each stack's first, and its size.

    As rows of the result a single tile of 32 channels would be too few for Hopper's matrix instructions; and each
    product is a wait.
    """
    whole, rest = count // 4 * 4, count % 4
    stacks = tuple((first, 4) for first in range(0, whole, 4))
    if exact:
        return stacks + (((whole, 2),) if rest > 1 else ()) + (((count - 1, 1),) if rest % 2 else ())
    return stacks + (((whole, 2 if rest < 3 else 4),) if rest else ())


@triton.jit
def weight_stack(
    weight,
    group,
    block: tl.constexpr,
    first: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
    identity: tl.constexpr,
    o,
    outs,
):
    """What a stack of permuted tiles of one block of channels is multiplied with; zero where it repeats the last."""
    k = tl.arange(0, 2 * PAIRS * size)
    row = first + k // (2 * PAIRS)
    c = block * 2 * PAIRS + ((k // 2) % 4) * 8 + ((k // 8) % 4) * 2 + k % 2
    return tl.load(
        weight.data
        + group * weight.group
        + (row + 1 - identity)[:, None] * weight.row
        + c[:, None] * weight.into
        + o[None, :] * weight.out,
        mask=(row < rows)[:, None] & (o < outs)[None, :],
        other=0.0,
    )


@triton.jit
def point_order(m: tl.constexpr, warps: tl.constexpr):
    """Of the result's rows, for the order that `permuted` gives to points."""
    return tl.reshape(tl.permute(tl.reshape(tl.arange(0, m), (m // (16 * warps), 2, warps, 8)), (0, 2, 1, 3)), (m,))


@triton.jit
def _along(i, size, padding: tl.constexpr):
    """An index that may be one step outside, and whether there is a point."""
    inside = (i >= 0) & (i < size)
    if padding == 1:
        i = tl.where(i < 0, i + size, tl.where(i >= size, i - size, i))
        inside = i >= 0
    return i, inside


@triton.jit
def row_of(source, base, z, y, x, k: tl.constexpr, box, padding: tl.constexpr):
    """Block k of the channels at the points (z, y, x), z and y the same for all; zero where there is none."""
    z, z_inside = _along(z, box.out[0], padding)
    y, y_inside = _along(y, box.out[1], padding)
    x, x_inside = _along(x, box.out[2], padding)
    c = k * PAIRS + tl.arange(0, PAIRS)
    there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
    offset = z * source.axes[0] + y * source.axes[1] + x * source.axes[2]
    return tl.load(base + offset[:, None] + c[None, :], mask=there[:, None], other=0)


@triton.jit
def _neighbour(i, step: tl.constexpr, size, padding: tl.constexpr):
    i, _ = _along(i + step, size, padding)
    return i


@triton.constexpr_function
def _in_lines(stencil, transposed):
    return stencil.kind == 2 and stencil.generators * stencil.ndim * (2 if transposed else 1) <= MOST_LINES


@triton.jit
def _line(
    v, i: tl.constexpr, a: tl.constexpr, step: tl.constexpr, z, x, box, steps: tl.constexpr, stencil: tl.constexpr
):
    """steps[a] times v[i, a] of an affine field where y is the centre, `step` further along axis a of the grid."""
    n: tl.constexpr = stencil.ndim
    axis: tl.constexpr = a + 3 - n
    row = v.data + as_type(i, tl.int64) * v.generator + a * v.component
    line = tl.load(row + n * v.axes[0]).to(tl.float32)
    if n == 3:
        z = _neighbour(z, step if axis == 0 else 0, box.out[0], stencil.padding)
        line += tl.load(row).to(tl.float32) * coordinate(v, (z, z, z), box, 0, tl.float32)
    x = _neighbour(x, step if axis == 2 else 0, box.out[2], stencil.padding)
    along_x = tl.load(row + (n - 1) * v.axes[0]).to(tl.float32)
    return steps[a] * (line + along_x * coordinate(v, (x, x, x), box, 2, tl.float32))


@triton.jit
def affine_lines(v, z, x, box, steps: tl.constexpr, stencil: tl.constexpr, transposed: tl.constexpr):
    """An affine field times the steps is line + slope * y: lines (points,) and slopes () for every [i, a].

    Transposed there are two lines each, for the points one step below and above along a.
    """
    lines = ()
    slopes = ()
    count: tl.constexpr = stencil.generators
    n: tl.constexpr = stencil.ndim
    if _in_lines(stencil, transposed):
        for i in tl.static_range(count):
            for a in tl.static_range(n):
                if transposed:
                    low = _line(v, i, a, -1, z, x, box, steps, stencil)
                    high = _line(v, i, a, 1, z, x, box, steps, stencil)
                    lines = lines + (low, high)
                else:
                    lines = lines + (_line(v, i, a, 0, z, x, box, steps, stencil),)
                row = v.data + as_type(i, tl.int64) * v.generator + a * v.component
                slopes = slopes + (steps[a] * tl.load(row + (n - 2) * v.axes[0]).to(tl.float32),)
    return lines, slopes


@triton.jit
def end_coefficient(
    v,
    lines,
    slopes,
    i: tl.constexpr,
    a: tl.constexpr,
    end: tl.constexpr,
    z,
    y,
    x,
    box,
    steps: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
):
    """The step along a times v[i, a] at a point, transposed at its neighbour below (end 0) or above (1) along a.

    Any number where there is no point: its features are zero.
    """
    axis: tl.constexpr = a + 3 - stencil.ndim
    step: tl.constexpr = (2 * end - 1) if transposed else 0
    if _in_lines(stencil, transposed):
        k: tl.constexpr = i * stencil.ndim + a
        y_end = _neighbour(y, step if axis == 1 else 0, box.out[1], stencil.padding)
        line = lines[2 * k + end if transposed else k]
        return line + slopes[k] * coordinate(v, (y_end, y_end, y_end), box, 1, tl.float32)
    else:
        z, z_inside = _along(z + (step if axis == 0 else 0), box.out[0], stencil.padding)
        y, y_inside = _along(y + (step if axis == 1 else 0), box.out[1], stencil.padding)
        x, x_inside = _along(x + (step if axis == 2 else 0), box.out[2], stencil.padding)
        there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
        return steps[a] * coefficient(v, i, a, (z, y, x), there, box, stencil, tl.float32)


@triton.jit
def _basis_tile(
    b: tl.constexpr,
    a: tl.constexpr,
    ends,
    difference,
    v,
    z,
    y,
    x,
    box,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
):
    """x_b D_a f, or D_a f where b = n. Transposed its negative, -(x_b D_a)^T g, so that most of it is the same."""
    n: tl.constexpr = stencil.ndim
    axis: tl.constexpr = b + 3 - n
    padding: tl.constexpr = stencil.padding
    if b == n:
        f = difference
    elif axis == 2:
        if transposed and a == b:
            low = coordinate(v, (z, y, _neighbour(x, -1, box.out[2], padding)), box, 2, tl.float32)
            high = coordinate(v, (z, y, _neighbour(x, 1, box.out[2], padding)), box, 2, tl.float32)
            f = high[:, None] * ends[1] - low[:, None] * ends[0]
        else:
            f = coordinate(v, (z, y, x), box, 2, tl.float32)[:, None] * difference
    else:
        if axis == 0:
            at, size = z, box.out[0]
        else:
            at, size = y, box.out[1]
        if transposed and a == b:
            low, high = _neighbour(at, -1, size, padding), _neighbour(at, 1, size, padding)
            f = coordinate(v, (high, high, x), box, axis, tl.float32) * ends[1]
            f -= coordinate(v, (low, low, x), box, axis, tl.float32) * ends[0]
        else:
            f = coordinate(v, (at, at, x), box, axis, tl.float32) * difference
    return f


@triton.jit
def generator_block(
    i: tl.constexpr,
    ends,
    differences,
    v,
    lines,
    slopes,
    z,
    y,
    x,
    box,
    steps: tl.constexpr,
    stencil: tl.constexpr,
    transposed: tl.constexpr,
):
    """L_i f (L_i^T g, if transposed) at the points of a row for a block of channels, from both ends of every axis."""
    n: tl.constexpr = stencil.ndim
    if stencil.kind == BASIS:
        f = _basis_tile(
            i % (n + 1),
            i // (n + 1),
            ends[i // (n + 1)],
            differences[i // (n + 1)],
            v,
            z,
            y,
            x,
            box,
            stencil,
            transposed,
        )
    else:
        for a in tl.static_range(n):
            low = end_coefficient(v, lines, slopes, i, a, 0, z, y, x, box, steps, stencil, transposed)
            if transposed:
                high = end_coefficient(v, lines, slopes, i, a, 1, z, y, x, box, steps, stencil, transposed)
                f = low[:, None] * ends[a][0] if a == 0 else f + low[:, None] * ends[a][0]
                f -= high[:, None] * ends[a][1]
            else:
                f = low[:, None] * differences[a] if a == 0 else f + low[:, None] * differences[a]
    return f


@triton.jit
def row_ends(
    source,
    base,
    before,
    after,
    z,
    y,
    x,
    k: tl.constexpr,
    box,
    padding: tl.constexpr,
    ndim: tl.constexpr,
    narrow: tl.constexpr,
):
    """For each axis the features one step below and above, of block k of the channels, in float32."""
    ends = (
        (unpacked(before, narrow), unpacked(after, narrow)),
        (
            unpacked(row_of(source, base, z, y, x - 1, k, box, padding), narrow),
            unpacked(row_of(source, base, z, y, x + 1, k, box, padding), narrow),
        ),
    )
    if ndim == 3:
        ends = (
            (
                unpacked(row_of(source, base, z - 1, y, x, k, box, padding), narrow),
                unpacked(row_of(source, base, z + 1, y, x, k, box, padding), narrow),
            ),
        ) + ends
    return ends


@triton.jit
def row_tiles(
    source,
    base,
    before,
    here,
    after,
    v,
    lines,
    slopes,
    z,
    y,
    x,
    k: tl.constexpr,
    box,
    steps: tl.constexpr,
    stencil: tl.constexpr,
    identity: tl.constexpr,
    first: tl.constexpr,
    rows: tl.constexpr,
    transposed: tl.constexpr,
    narrow: tl.constexpr,
):
    """Some rows of (f, L_1 f, L_2 f, ...), which begins with L_1 f if the identity takes no part, in the half type."""
    ends = row_ends(source, base, before, after, z, y, x, k, box, stencil.padding, stencil.ndim, narrow)
    differences = ()
    n: tl.constexpr = stencil.ndim
    for a in tl.static_range(n):
        differences = differences + (ends[a][1] - ends[a][0],)
    tiles = ()
    for r in tl.static_range(first, first + rows):
        if identity and r == 0:
            tiles = tiles + (halves(here, narrow),)
        else:
            f = generator_block(
                r - identity, ends, differences, v, lines, slopes, z, y, x, box, steps, stencil, transposed
            )
            tiles = tiles + (f.to(narrow),)
    return tiles
