"""gram for half types on contiguous data, marching along lines; and correlate, contracted from it.

A program keeps (B_r f)^T g for one block of input channels and one of output channels in registers, for the members B_r
of a basis; of affine fields in 2D those with y are made by parts, as in moments.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.geometry import CoefficientKind
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type, coordinate
from lconv_fast.ops.gpu.march.gram import CorrelatePlan, Plan, Sums
from lconv_fast.ops.gpu.march.lines import Columns, Stencil
from lconv_fast.ops.gpu.march.mixing import Mixture
from lconv_fast.ops.gpu.march.planes import block_at, block_of_row, has_runs, line_ends, places
from lconv_fast.ops.gpu.march.registers import BLOCK, half_sum, times_columns
from lconv_fast.ops.gpu.march.way import filled, why_not
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import AFFINE_BASIS, TAP_BASIS, box_of, cdiv


def plan(call: Call) -> Plan | str:
    sums = _sums(call, call.identity)
    if isinstance(sums, str):
        return sums
    stencil = sums.stencil
    return Plan(sums, Mixture.of(call, stencil.kind, stencil.identity, False))


def correlate_plan(call: Call) -> CorrelatePlan | str:
    sums = _sums(call, False)
    return sums if isinstance(sums, str) else CorrelatePlan(sums)


def _sums(call: Call, identity: bool) -> Sums | str:
    if reason := why_not(call, channels_last=False):
        return reason
    g, partner = call.geometry, call.partner
    assert partner is not None
    if partner.strides[-1] != 1:
        return "the cotangent is not contiguous"
    if g.kind == CoefficientKind.SAMPLED:
        return "coefficients at every point"
    taps = g.kind == CoefficientKind.CONSTANT
    entry = call.table.planes_gram[g.ndim]
    if not filled(call, entry.points):
        return f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
    stencil = Stencil.of(call, TAP_BASIS.value if taps else AFFINE_BASIS.value, identity=identity, transposed=False)
    rows = stencil.generators + stencil.identity
    most = (entry.most_taps if taps else entry.most_basis)[call.card.generation]
    if not taps and rows > most:
        return "sums with all affine fields spill registers"
    launches = [
        call.launcher(
            march_planes_gram_kernel,
            entry.warps,
            stencil=stencil,
            first=first,
            rows=min(most, rows - first),
            runs=has_runs(call.source),
            ahead=rows <= entry.most_taps_ahead[call.card.generation],
            index=call.index,
            CHANNELS=BLOCK,
            BM=entry.points,
            BN=entry.outs,
        )
        for first in range(0, rows, most)
    ]
    blocks = (call.ins // BLOCK, cdiv(call.outs, entry.outs))
    return Sums(call, entry, launches, stencil, box_of(g), cdiv(g.spatial[-1], entry.points), *blocks)


@triton.jit
def _line_of_partner(columns, y, bottom, o, outs):
    """Line y, as far as `bottom`, of a tensor that is read without taps: (channels, points)."""
    there = columns.x < tl.where(y < bottom, columns.box.out[2], 0)
    return tl.load(places(columns, columns.z, y, columns.x, o), mask=(o < outs)[:, None] & there[None, :], other=0.0)


@triton.jit
def _store(parts_sums, total, part, row, all_rows: tl.constexpr, group, groups, o, outs, c, ins):
    place = ((as_type(part, tl.int64) * all_rows + row) * groups + group) * outs + o
    tl.store(parts_sums + place[:, None] * ins + c[None, :], total, mask=(o < outs)[:, None] & (c >= 0)[None, :])


@triton.jit(do_not_specialize=["strips", "strip_lines", "parts"])
def march_planes_gram_kernel(
    source,
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
    first: tl.constexpr,  # row of this launch
    rows: tl.constexpr,
    runs: tl.constexpr,
    ahead: tl.constexpr,  # whether lines are loaded a step before they are needed
    index: tl.constexpr,
    CHANNELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    program = tl.program_id(0)
    in_block, program = program % in_blocks, program // in_blocks
    out_block, program = program % out_blocks, program // out_blocks
    group, part = program % groups, program // groups

    padding: tl.constexpr = stencil.padding
    all_rows: tl.constexpr = stencil.generators + stencil.identity
    taps: tl.constexpr = stencil.kind == TAP_BASIS
    n: tl.constexpr = stencil.ndim
    o = (out_block * BN + tl.arange(0, BN)).to(index)
    c = (in_block * CHANNELS + tl.arange(0, CHANNELS)).to(index)
    none = tl.zeros((BN, CHANNELS), tl.float32)
    own = none
    totals = ()  # of rows; or of D_a f
    times_x = ()
    times_y = ()
    for _ in tl.static_range(rows if taps else n):
        totals = totals + (none,)
        if not taps:
            times_x = times_x + (none,)
            times_y = times_y + (none,)

    every = as_type(batch_count, tl.int64) * box.out[0] * strips * x_tiles
    start, end = (every * part // parts).to(tl.int32), (every * (part + 1) // parts).to(tl.int32)
    for work in range(start, end):
        x_tile, rest = work % x_tiles, work // x_tiles
        strip, rest = rest % strips, rest // strips
        z, batch = as_type(rest % box.out[0], index), rest // box.out[0]
        x = as_type(x_tile, index) * BM + tl.arange(0, BM)
        columns = Columns(source, base_of(source, batch, group, ins), box, z, x)
        partner = Columns(cotangent, base_of(cotangent, batch, group, outs), box, z, x)
        top = as_type(strip, index) * strip_lines
        bottom = tl.minimum(top + strip_lines, box.out[1])
        if not taps:
            x_coordinate = coordinate(v, (z, top, x), box, 2, tl.float32)
            # From no line, whose y is zero, to the first; and from the last to no line.
            more = ()
            for a in tl.static_range(n):
                more = more + (times_y[a] - totals[a] * coordinate(v, (z, top, x), box, 1, tl.float32),)
            times_y = more
        before = block_at(columns, z, top - 1, 0, c, padding)
        here = block_at(columns, z, top, 0, c, padding)
        if ahead:
            after = block_at(columns, z, top + 1, 0, c, padding)
            g = _line_of_partner(partner, top, bottom, o, outs)
        for step in range(0, (bottom - top).to(tl.int32)):
            y = top + step
            if ahead:
                coming = block_at(columns, z, y + 2, 0, c, padding)
                g_coming = _line_of_partner(partner, y + 1, bottom, o, outs)
            else:
                after = block_at(columns, z, y + 1, 0, c, padding)
                g = _line_of_partner(partner, y, bottom, o, outs)
            lines = (before, here, after)
            tiles = ()
            if taps:
                for r in tl.static_range(first, first + rows):
                    tiles = tiles + (block_of_row(columns, lines, r, y, c, runs, stencil),)
            else:
                ends = line_ends(columns, lines, y, c, runs, stencil)
                for a in tl.static_range(n):
                    tiles = tiles + (half_sum(ends[a][1], ends[a][0], -1.0, stencil.ptx),)
                if stencil.identity:
                    own = tl.dot(g, tl.trans(here), own)
            sums = ()
            for r in tl.static_range(len(tiles)):
                sums = sums + (tl.dot(g, tl.trans(tiles[r]), totals[r]),)
            totals = sums
            if not taps:
                g_x = times_columns(g, x_coordinate, stencil.ptx)
                of_x = ()
                of_y = ()
                for a in tl.static_range(n):
                    of_x = of_x + (tl.dot(g_x, tl.trans(tiles[a]), times_x[a]),)
                    step_y = as_type(v.inverse_scale[0], tl.float32) + v.inverse_scale[1]
                    of_y = of_y + (times_y[a] - totals[a] * step_y,)
                times_x = of_x
                times_y = of_y
            before = here
            here = after
            if ahead:
                after = coming
                g = g_coming
        if not taps:
            more = ()
            for a in tl.static_range(n):
                more = more + (times_y[a] + totals[a] * coordinate(v, (z, bottom, x), box, 1, tl.float32),)
            times_y = more

    if taps:
        for r in tl.static_range(rows):
            _store(parts_sums, totals[r], part, first + r, all_rows, group, groups, o, outs, c, ins)
    else:
        if stencil.identity:
            _store(parts_sums, own, part, 0, all_rows, group, groups, o, outs, c, ins)
        for a in tl.static_range(n):
            row = stencil.identity + a * (n + 1)
            _store(parts_sums, times_y[a], part, row, all_rows, group, groups, o, outs, c, ins)
            _store(parts_sums, times_x[a], part, row + 1, all_rows, group, groups, o, outs, c, ins)
            _store(parts_sums, totals[a], part, row + 2, all_rows, group, groups, o, outs, c, ins)
