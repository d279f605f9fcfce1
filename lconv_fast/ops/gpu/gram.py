"""gram: dQ/dW_r = sum over points of (L_r f)^T g; a program sums a part of the points for some rows r."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type, generator_tile, identity_tile, load_tile, point_of, slot_tiles


@triton.jit
def row_tile(
    row,
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
    identity: tl.constexpr,
    wide: tl.constexpr,
):
    """L_r f at a tile's points; r = 0 is f itself, or zero where the identity takes no part."""
    if row == 0:
        if identity:
            f = identity_tile(view, base, point, here, box, c, channels, stencil.padding, False).to(wide)
        else:
            f = tl.zeros((here.shape[0], c.shape[0]), wide)
    else:
        f = generator_tile(row - 1, tiles, v, view, base, point, here, box, c, channels, held, stencil, False, wide)
    return f


@triton.jit
def gram_kernel(
    source,
    cotangent,
    v,
    parts_sums,  # (parts, n_L + 1, outs of all groups, ins), contiguous
    box,
    batch_count,
    groups,
    ins,
    outs,
    tiles,
    parts,
    in_blocks,
    out_blocks,
    chunks,
    stencil: tl.constexpr,
    identity: tl.constexpr,
    rows: tl.constexpr,  # of one program: all, or some
    held: tl.constexpr,
    index: tl.constexpr,
    wide: tl.constexpr,
    precision: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    program = tl.program_id(0)
    chunk, program = program % chunks, program // chunks
    out_block, program = program % out_blocks, program // out_blocks
    in_block, program = program % in_blocks, program // in_blocks
    group, part = program % groups, program // groups

    narrow: tl.constexpr = source.data.dtype.element_ty
    c = (in_block * BK + tl.arange(0, BK)).to(index)
    o = (out_block * BN + tl.arange(0, BN)).to(index)
    whole: tl.constexpr = rows == stencil.generators + 1
    totals = ()
    for _ in tl.static_range(rows):
        totals = totals + (tl.zeros((BK, BN), wide),)

    every = as_type(batch_count, tl.int64) * tiles
    first_work, last_work = (every * part // parts).to(tl.int32), (every * (part + 1) // parts).to(tl.int32)
    for work in range(first_work, last_work):
        tile, batch = work % tiles, work // tiles
        p = as_type(tile, index) * BM + tl.arange(0, BM)
        here = p < as_type(box.out[0], index) * box.out[1] * box.out[2]
        point = point_of(p, box.out)
        base = source.data + as_type(batch, tl.int64) * source.batch + as_type(group, tl.int64) * ins * source.channel
        g_base = (
            cotangent.data
            + as_type(batch, tl.int64) * cotangent.batch
            + as_type(group, tl.int64) * outs * cotangent.channel
        )
        g = load_tile(cotangent, g_base, point, here, o, outs)
        held_tiles = slot_tiles(source, base, point, here, box, c, ins, held, stencil, False, wide)
        sums = ()
        for k in tl.static_range(rows):
            if whole:
                f = row_tile(k, held_tiles, v, source, base, point, here, box, c, ins, held, stencil, identity, wide)
            else:
                f = row_tile(
                    chunk * rows + k,
                    held_tiles,
                    v,
                    source,
                    base,
                    point,
                    here,
                    box,
                    c,
                    ins,
                    held,
                    stencil,
                    identity,
                    wide,
                )
            sums = sums + (tl.dot(tl.trans(f.to(narrow)), g, totals[k], input_precision=precision, out_dtype=wide),)
        totals = sums

    for k in tl.static_range(rows):
        row = chunk * rows + k
        place = (as_type(part, tl.int64) * (stencil.generators + 1) + row) * groups * outs + group * outs
        tl.store(
            parts_sums + (place + o)[None, :] * ins + c[:, None],
            totals[k],
            mask=(c < tl.where(row <= stencil.generators, ins, 0))[:, None] & (o < outs)[None, :],
        )
