"""Tiles in registers, in the order that matrix instructions want: pairs of channels, permutations, stacks, stores.

Channels come as pairs in int32, 32 channels (a block) at a time, in 16-byte loads and stores.
"""

from __future__ import annotations

import triton
import triton.language as tl

PAIRS = tl.constexpr(16)  # of channels, in one block: 8 points by 4 lanes by 16 bytes make a warp's load
MINUS_ONES = tl.constexpr(-0x407F4080)  # two of bfloat16, 0xbf80bf80
CHANNELS = tl.constexpr(32)  # of a block
BLOCK = CHANNELS.value
RUN = tl.constexpr(8)  # points of contiguous data that a thread has in a row: 16 bytes


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
def pair_difference(high, low, narrow: tl.constexpr, ptx: tl.constexpr):
    """high - low of pairs of channels, rounded once to the half type."""
    if not ptx:
        first, second = _difference_parts(high, low, narrow)
        d = (first.to(tl.int32) & 65535) | (second.to(tl.int32) << 16)
    elif narrow == tl.bfloat16:  # sm_80 has no subtraction of such pairs
        d = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $2, $3, $1;",
            "=r,r,r,r",
            [high, low, tl.full(low.shape, MINUS_ONES, tl.int32)],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        d = tl.inline_asm_elementwise(
            "sub.rn.f16x2 $0, $1, $2;", "=r,r,r", [high, low], dtype=tl.int32, is_pure=True, pack=1
        )
    return d


@triton.jit
def _difference_parts(high, low, narrow: tl.constexpr):
    points: tl.constexpr = high.shape[0]
    d = (unpacked(high, narrow) - unpacked(low, narrow)).to(narrow).to(tl.int16, bitcast=True)
    return tl.split(tl.reshape(d, (points, PAIRS, 2)))


@triton.jit
def _fused(a, b, c, asm: tl.constexpr):
    """a b + c of pairs that lie side by side in registers, rounded once."""
    return tl.inline_asm_elementwise(asm, "=r,r,r,r", [a, b, c], dtype=a.dtype, is_pure=True, pack=2)


@triton.jit
def half_sum(a, b, factor: tl.constexpr, ptx: tl.constexpr):
    """a + factor b of tiles of the half type, rounded once; factor is 1 or -1."""
    narrow: tl.constexpr = a.dtype
    if ptx:
        asm: tl.constexpr = "fma.rn.bf16x2 $0, $1, $2, $3;" if narrow == tl.bfloat16 else "fma.rn.f16x2 $0, $1, $2, $3;"
        found = _fused(b, tl.full(b.shape, factor, narrow), a, asm)
    else:
        found = (a.to(tl.float32) + factor * b.to(tl.float32)).to(narrow)
    return found


@triton.jit
def times_rows(tile, x, ptx: tl.constexpr):
    """x[:, None] tile in the half type, rounded once: x is the sum of two numbers of the half type."""
    return _times(tile, x[:, None], ptx)


@triton.jit
def times_columns(tile, x, ptx: tl.constexpr):
    """x[None, :] tile likewise."""
    return _times(tile, x[None, :], ptx)


@triton.jit
def _times(tile, x, ptx: tl.constexpr):
    narrow: tl.constexpr = tile.dtype
    if ptx:
        high = x.to(narrow)
        low = (x - high.to(tl.float32)).to(narrow)
        high, low = tl.broadcast_to(high, tile.shape), tl.broadcast_to(low, tile.shape)
        asm: tl.constexpr = "fma.rn.bf16x2 $0, $1, $2, $3;" if narrow == tl.bfloat16 else "fma.rn.f16x2 $0, $1, $2, $3;"
        found = _fused(tile, high, _fused(tile, low, tl.full(tile.shape, -0.0, narrow), asm), asm)
    else:
        found = (x * tile.to(tl.float32)).to(narrow)
    return found


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
def channel_order(n: tl.constexpr):
    """Within their blocks, of the columns of permuted tiles."""
    k = tl.arange(0, n)
    return (k // CHANNELS) * CHANNELS + ((k // 2) % 4) * 8 + ((k // 8) % 4) * 2 + k % 2


@triton.jit
def point_order(m: tl.constexpr, warps: tl.constexpr):
    """Of the result's rows, for the order that `permuted` gives to points."""
    return tl.reshape(tl.permute(tl.reshape(tl.arange(0, m), (m // (16 * warps), 2, warps, 8)), (0, 2, 1, 3)), (m,))


@triton.jit
def _in_order(total, warps: tl.constexpr):
    """Points, and channels within each block, of a product whose factors were permuted, in their own order."""
    m: tl.constexpr = total.shape[0]
    split = tl.reshape(total, (m // (16 * warps), warps, 2, 8, total.shape[1] // (2 * PAIRS), 4, 4, 2))
    return tl.reshape(tl.permute(split, (0, 2, 1, 3, 4, 6, 5, 7)), (m, total.shape[1]))


@triton.jit
def _halved(tile):
    """(points, 2 k) to twice (points, k)."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _blocks_of(tile):
    """(points, channels) to blocks of no more than 32 channels."""
    if tile.shape[1] <= CHANNELS:
        found = (tile,)
    else:
        low, high = _halved(tile)
        found = _blocks_of(low) + _blocks_of(high)
    return found


@triton.jit
def in_blocks(total, warps: tl.constexpr):
    """Blocks of 32 channels at most, as the registers have them, of a product whose factors were permuted."""
    return _blocks_of(_in_order(total, warps))


@triton.jit
def _places(place, y, columns, view, first, outs, width: tl.constexpr):
    """Where `width` channels from `first` on of line y are, and whether there are such."""
    x, box = columns.x, columns.box
    offset = columns.z * view.axes[0] + y * view.axes[1] + x * view.axes[2]
    o = first + tl.arange(0, width)
    return place + offset[:, None] + o[None, :] * view.channel, (x < box.out[2])[:, None] & (o < outs)[None, :]


@triton.jit
def load_blocks(place, y, columns, view, first, outs, count: tl.constexpr):
    """Line y, channels `first` on, as `in_blocks` has results."""
    width: tl.constexpr = count if count < CHANNELS else CHANNELS
    blocks = ()
    for k in tl.static_range(count // width):
        places, there = _places(place, y, columns, view, first + k * CHANNELS, outs, width)
        blocks = blocks + (tl.load(places, mask=there, other=0.0),)
    return blocks


@triton.jit
def store_blocks(blocks, place, y, columns, target, first, outs):
    """By 16-byte stores like the loads."""
    for k in tl.static_range(len(blocks)):
        places, there = _places(place, y, columns, target, first + k * CHANNELS, outs, blocks[k].shape[1])
        tl.store(places, blocks[k].to(target.data.dtype.element_ty), mask=there)


@triton.jit
def store_line(total, place, y, columns, target, first, outs, warps: tl.constexpr):
    """A line of results, channels `first` on, from a product whose factors were permuted."""
    store_blocks(in_blocks(total.to(target.data.dtype.element_ty), warps), place, y, columns, target, first, outs)


@triton.jit
def split_runs(tile):
    """(channels, runs * RUN) to RUN times (channels, runs)."""
    split = tl.reshape(tile, (tile.shape[0], tile.shape[1] // RUN, 2, 2, 2))
    found = (tl.permute(split, (0, 1, 4, 3, 2)),)
    for _ in tl.static_range(3):
        more = ()
        for j in tl.static_range(len(found)):
            more = more + tl.split(found[j])
        found = more
    return found


@triton.jit
def joined_runs(points):
    """Back again."""
    found = points
    for _ in tl.static_range(3):
        fewer = ()
        for j in tl.static_range(len(found) // 2):
            fewer = fewer + (tl.join(found[2 * j], found[2 * j + 1]),)
        found = fewer
    tile = tl.permute(found[0], (0, 1, 4, 3, 2))
    return tl.reshape(tile, (tile.shape[0], tile.shape[1] * RUN))
