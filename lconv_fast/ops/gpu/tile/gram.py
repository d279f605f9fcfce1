"""gram: dQ/dW_r = sum over points of (L_r f)^T g; a program sums a part of the points for some rows r of W."""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import accumulate_type
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tile.apply import MOST_HELD
from lconv_fast.ops.gpu.tile.points import (
    Patch,
    Stencil,
    base_of,
    generator_tile,
    identity_tile,
    load_tile,
    points_of,
    slot_tiles,
)
from lconv_fast.ops.gpu.views import Box, Coordinates, block, box_of, cdiv, coefficients_view, data_view

MOST_ROWS = 4  # of W, whose sums one program keeps


class Plan(NamedTuple):
    call: Call
    launch: Launch
    box: Box
    tiles: int
    in_blocks: int
    out_blocks: int
    chunks: int  # of rows of W
    places: int  # programs of a multiprocessor, where nothing is compiled
    most_parts: int

    def run(self, coordinates: Coordinates, input: Tensor, cotangent: Tensor, coefficients: Tensor) -> Tensor:
        call = self.call
        g, device = call.geometry, input.device
        before = (data_view(input), data_view(cotangent), coefficients_view(coefficients, g.kind, coordinates))
        after = (self.box, call.batch, g.groups, call.ins, call.outs, self.tiles)
        blocks = (self.in_blocks, self.out_blocks, self.chunks)
        wide = accumulate_type(call.dtype)
        places = self.launch.places(call.card, device, (*before, input.new_empty(0, dtype=wide), *after, 1, *blocks))
        programs = (places or self.places) * call.card.multiprocessors
        each = math.prod(blocks) * g.groups
        parts = max(1, min(programs // each, self.most_parts))
        sums = input.new_empty((parts, call.generators + 1, call.outs * g.groups, call.ins), dtype=wide)
        self.launch(each * parts, device, *before, sums, *after, parts, *blocks)
        return sums.sum(0).to(input.dtype)


def plan(call: Call) -> Plan | str:
    g, tile, rows = call.geometry, call.table.tile("gram", call.dtype), call.generators + 1
    bn, bk = block(call.outs, tile.outs), block(call.ins, tile.ins)
    rows_each = rows if rows <= MOST_ROWS else 1
    tiles = cdiv(math.prod(g.out), tile.points)
    size = rows * call.outs * g.groups * call.ins * accumulate_type(call.dtype).itemsize
    most_parts = min(max(1, call.table.most_sum_bytes // size), tiles * call.batch)
    held = rows_each > 2 and g.component_count <= MOST_HELD
    launch = call.launcher(
        gram_kernel,
        tile.warps,
        stencil=Stencil.of(g, call.generators, False, call.identity, held),
        rows=rows_each,
        index=call.index,
        wide=call.wide,
        precision=call.precision,
        BM=tile.points,
        BN=bn,
        BK=bk,
    )
    blocks = (cdiv(call.ins, bk), cdiv(call.outs, bn), cdiv(rows, rows_each))
    return Plan(call, launch, box_of(g), tiles, *blocks, tile.places, most_parts)


@triton.jit
def row_tile(row, held, v, patch, stencil: tl.constexpr, wide: tl.constexpr):
    """L_r f at a tile's points; r = 0 is f itself, or zero where the identity takes no part."""
    if row == 0:
        if stencil.identity:
            f = identity_tile(patch, stencil).to(wide)
        else:
            f = tl.zeros((patch.here.shape[0], patch.c.shape[0]), wide)
    else:
        f = generator_tile(row - 1, held, v, patch, stencil, wide)
    return f


@triton.jit(do_not_specialize=["parts"])
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
    rows: tl.constexpr,  # of one program: all, or some
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
        point, here = points_of(tile, box.out, index, BM)
        patch = Patch(source, base_of(source, batch, group, ins), box, point, here, c, ins)
        g_patch = Patch(cotangent, base_of(cotangent, batch, group, outs), box, point, here, o, outs)
        g = load_tile(g_patch, point, here)
        held = slot_tiles(patch, stencil, wide)
        sums = ()
        for k in tl.static_range(rows):
            if whole:
                f = row_tile(k, held, v, patch, stencil, wide)
            else:
                f = row_tile(chunk * rows + k, held, v, patch, stencil, wide)
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
