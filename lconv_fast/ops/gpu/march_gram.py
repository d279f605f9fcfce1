"""gram for half types and central differences of order 2, marching along rows.

A program keeps the sums of one block of input channels and one of output channels in registers, and walks through its
part of the strips; f is unpacked once for all generators, whose blocks stand side by side in one product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type
from lconv_fast.ops.gpu.rows import PAIRS, affine_lines, all_beside, row_of, row_tiles, stacks_of


@triton.jit
def march_gram_kernel(
    source,  # pairs of channels, int32
    cotangent,
    v,
    parts_sums,  # (parts, rows, outs of all groups, ins), contiguous
    box,
    batch_count,
    groups,
    ins,
    outs,
    x_tiles,
    strips,
    strip_rows,
    parts,
    in_blocks,
    out_blocks,
    stencil: tl.constexpr,
    steps: tl.constexpr,
    identity: tl.constexpr,  # 1 if f itself is the first row, else 0
    first: tl.constexpr,  # row of this launch
    rows: tl.constexpr,
    index: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    program = tl.program_id(0)
    in_block, program = program % in_blocks, program // in_blocks
    out_block, program = program % out_blocks, program // out_blocks
    group, part = program % groups, program // groups

    narrow: tl.constexpr = cotangent.data.dtype.element_ty
    padding: tl.constexpr = stencil.padding
    count: tl.constexpr = stencil.generators
    all_rows: tl.constexpr = count + identity
    stacks: tl.constexpr = stacks_of(rows, False)
    o = (out_block * BN + tl.arange(0, BN)).to(index)
    totals = ()
    for k in tl.static_range(len(stacks)):
        totals = totals + (tl.zeros((BN, 2 * PAIRS * stacks[k][1]), tl.float32),)

    every = as_type(batch_count, tl.int64) * box.out[0] * strips * x_tiles
    start, end = (every * part // parts).to(tl.int32), (every * (part + 1) // parts).to(tl.int32)
    for work in range(start, end):
        x_tile, rest = work % x_tiles, work // x_tiles
        strip, rest = rest % strips, rest // strips
        z, batch = as_type(rest % box.out[0], index), rest // box.out[0]
        x = as_type(x_tile, index) * BM + tl.arange(0, BM)
        base = source.data + as_type(batch, tl.int64) * source.batch
        base += as_type(group, tl.int64) * (ins // 2) + in_block * PAIRS
        g_base = cotangent.data + as_type(batch, tl.int64) * cotangent.batch
        g_base += as_type(group, tl.int64) * outs * cotangent.channel
        lines, slopes = affine_lines(v, z, x, box, steps, stencil, False)
        top = as_type(strip, index) * strip_rows
        bottom = tl.minimum(top + strip_rows, box.out[1])
        before = row_of(source, base, z, top - 1, x, 0, box, padding)
        here = row_of(source, base, z, top, x, 0, box, padding)
        for step in range(0, (bottom - top).to(tl.int32)):
            y = top + step
            after = row_of(source, base, z, y + 1, x, 0, box, padding)
            g = tl.load(
                g_base
                + (z * cotangent.axes[0] + y * cotangent.axes[1] + x * cotangent.axes[2])[:, None]
                + o[None, :] * cotangent.channel,
                mask=(x < box.out[2])[:, None] & (o < outs)[None, :],
                other=0.0,
            )
            tiles = row_tiles(
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
                0,
                box,
                steps,
                stencil,
                identity,
                first,
                rows,
                False,
                narrow,
            )
            sums = ()
            for k in tl.static_range(len(stacks)):
                f = all_beside(tiles, stacks[k][0], stacks[k][1])
                sums = sums + (tl.dot(tl.trans(g), f, totals[k]),)
            totals = sums
            before = here
            here = after

    for k in tl.static_range(len(stacks)):
        n = tl.arange(0, 2 * PAIRS * stacks[k][1])
        row = first + stacks[k][0] + n // (2 * PAIRS)
        c = in_block * 2 * PAIRS + n % (2 * PAIRS)
        place = ((as_type(part, tl.int64) * all_rows + row) * groups + group) * outs
        tl.store(
            parts_sums + (place[None, :] + o[:, None]) * ins + c[None, :],
            totals[k],
            mask=(o < outs)[:, None] & (row < first + rows)[None, :],
        )
