"""gram in the affine basis, 2D: f^T g, (D_a f)^T g and (x_b D_a f)^T g, marching along lines.

x multiplies g in the half type, in pairs, once for both axes. y is the same in all of a line: with the
products P_y = (D_a f)^T g of line y, and A_y = P_first + .. + P_y, which the accumulators hold, by parts

    sum_y y P_y = y_last A_last - sum_{y < last} (y' - y) A_y,    y' the line after y.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.fields import as_type, coordinate
from lconv_fast.ops.gpu.march.lines import Columns, line_ends, line_of, line_of_partner
from lconv_fast.ops.gpu.march.registers import CHANNELS, PAIRS, all_beside, halves, pair_difference, times_rows
from lconv_fast.ops.gpu.tile.points import base_of


@triton.jit(do_not_specialize=["strips", "strip_lines", "parts"])
def march_moments_kernel(
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
    in_blocks,
    out_blocks,
    strips,
    strip_lines,
    parts,
    stencil: tl.constexpr,
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
    o = (out_block * BN + tl.arange(0, BN)).to(index)
    own = tl.zeros((BN, CHANNELS), tl.float32)
    plain = tl.zeros((BN, 2 * CHANNELS), tl.float32)  # of D_y f, then of D_x f
    times_x = tl.zeros((BN, 2 * CHANNELS), tl.float32)
    times_y = tl.zeros((BN, 2 * CHANNELS), tl.float32)

    every = as_type(batch_count, tl.int64) * box.out[0] * strips * x_tiles
    start, end = (every * part // parts).to(tl.int32), (every * (part + 1) // parts).to(tl.int32)
    for work in range(start, end):
        x_tile, rest = work % x_tiles, work // x_tiles
        strip, rest = rest % strips, rest // strips
        z, batch = as_type(rest % box.out[0], index), rest // box.out[0]
        x = as_type(x_tile, index) * BM + tl.arange(0, BM)
        columns = Columns(source, base_of(source, batch, group, ins // 2) + in_block * PAIRS, box, z, x)
        g_base = base_of(cotangent, batch, group, outs)
        top = as_type(strip, index) * strip_lines
        bottom = tl.minimum(top + strip_lines, box.out[1])
        x_coordinate = coordinate(v, (z, top, x), box, 2, tl.float32)
        # From no line, whose y is zero, to the first; and from the last to no line.
        times_y -= plain * coordinate(v, (z, top, x), box, 1, tl.float32)
        before = line_of(columns, top - 1, 0, padding)
        here = line_of(columns, top, 0, padding)
        after = line_of(columns, top + 1, 0, padding)
        g = line_of_partner(cotangent, g_base, columns, top, bottom, o, outs)
        for step in range(0, (bottom - top).to(tl.int32)):
            y = top + step
            coming = line_of(columns, y + 2, 0, padding)
            g_coming = line_of_partner(cotangent, g_base, columns, y + 1, bottom, o, outs)
            ends = line_ends(columns, before, after, y, 0, stencil)
            tiles = ()
            for a in tl.static_range(2):
                tiles = tiles + (halves(pair_difference(ends[a][1], ends[a][0], narrow, stencil.ptx), narrow),)
            differences = all_beside(tiles, 0, 2)
            if stencil.identity:
                own = tl.dot(tl.trans(g), halves(here, narrow), own)
            plain = tl.dot(tl.trans(g), differences, plain)
            times_x = tl.dot(tl.trans(times_rows(g, x_coordinate, stencil.ptx)), differences, times_x)
            times_y -= plain * (as_type(v.inverse_scale[0], tl.float32) + v.inverse_scale[1])
            before = here
            here = after
            after = coming
            g = g_coming
        times_y += plain * coordinate(v, (z, bottom, x), box, 1, tl.float32)

    all_rows: tl.constexpr = stencil.generators + stencil.identity
    base = parts_sums + (as_type(part, tl.int64) * all_rows * groups + group) * outs * ins
    row_size = as_type(groups, tl.int64) * outs * ins
    c = in_block * CHANNELS + tl.arange(0, CHANNELS)
    if stencil.identity:
        tl.store(base + o[:, None] * ins + c[None, :], own, mask=(o < outs)[:, None])
    k = tl.arange(0, 2 * CHANNELS)
    places = base + (k // CHANNELS * 3 + stencil.identity)[None, :] * row_size + o[:, None] * ins
    places += (in_block * CHANNELS + k % CHANNELS)[None, :]
    tl.store(places, times_y, mask=(o < outs)[:, None])
    tl.store(places + row_size, times_x, mask=(o < outs)[:, None])
    tl.store(places + 2 * row_size, plain, mask=(o < outs)[:, None])
