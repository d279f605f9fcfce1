"""apply: y = sum_r (L_r f) W_r, or its transpose; a program makes a tile of points by a tile of channels."""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import empty_like_format
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tile.points import (
    Patch,
    Stencil,
    base_of,
    generator_tile,
    identity_tile,
    points_of,
    slot_tiles,
    weight_tile,
)
from lconv_fast.ops.gpu.views import (
    Box,
    Coordinates,
    block,
    box_of,
    cdiv,
    coefficients_view,
    data_view,
    weight_view,
)

MOST_HELD = 6  # tiles in registers besides the sums
MOST_UNROLLED = 8  # generators


class Plan(NamedTuple):
    call: Call
    launch: Launch
    programs: int
    box: Box
    extent: list[int]  # of the result
    tiles: int
    blocks: int

    def run(
        self, coordinates: Coordinates, input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None
    ) -> Tensor:
        call = self.call
        g = call.geometry
        ins, outs = (call.outs, call.ins) if call.transposed else (call.ins, call.outs)
        output = empty_like_format(input, outs * g.groups, self.extent)
        self.launch(
            self.programs,
            input.device,
            data_view(input),
            weight_view(weight, g.groups, call.transposed),
            coefficients_view(coefficients, g.kind, coordinates),
            bias,
            data_view(output),
            self.box,
            g.groups,
            ins,
            outs,
            self.tiles,
            self.blocks,
        )
        return output


def plan(call: Call) -> Plan | str:
    g, tile = call.geometry, call.table.tile("apply", call.dtype)
    ins, outs = (call.outs, call.ins) if call.transposed else (call.ins, call.outs)
    slots = len(g.tap_weights) if call.transposed else g.component_count
    extent, bn = g.array if call.transposed else g.out, block(outs, tile.outs)
    tiles, blocks = cdiv(math.prod(extent), tile.points), cdiv(outs, bn)
    launch = call.launcher(
        apply_kernel,
        tile.warps,
        stencil=Stencil.of(
            g, call.generators, call.transposed, call.identity, call.generators > 1 and slots <= MOST_HELD
        ),
        has_bias=call.bias,
        unrolled=call.generators <= MOST_UNROLLED,
        index=call.index,
        wide=call.wide,
        precision=call.precision,
        BM=tile.points,
        BN=bn,
        BK=block(ins, tile.ins),
    )
    return Plan(call, launch, tiles * blocks * g.groups * call.batch, box_of(g), extent, tiles, blocks)


@triton.jit
def apply_kernel(
    source,
    weight,
    v,
    bias,
    target,
    box,
    groups,
    ins,  # channels of one group, of the source
    outs,  # and of the target
    tiles,
    blocks,
    stencil: tl.constexpr,
    has_bias: tl.constexpr,
    unrolled: tl.constexpr,
    index: tl.constexpr,
    wide: tl.constexpr,
    precision: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    program = tl.program_id(0)
    block, program = program % blocks, program // blocks
    group, program = program % groups, program // groups
    tile, batch = program % tiles, program // tiles

    narrow: tl.constexpr = source.data.dtype.element_ty
    count: tl.constexpr = stencil.generators
    extent = box.out
    if stencil.transposed:
        extent = box.array
    point, here = points_of(tile, extent, index, BM)
    o = (block * BN + tl.arange(0, BN)).to(index)
    base = base_of(source, batch, group, ins)

    total = tl.zeros((BM, BN), wide)
    for first in range(0, ins, BK):
        c = (first + tl.arange(0, BK)).to(index)
        patch = Patch(source, base, box, point, here, c, ins)
        if stencil.identity:
            own = identity_tile(patch, stencil)
            w0 = weight_tile(weight, group, 0, c, o, ins, outs)
            total = tl.dot(own, w0, total, input_precision=precision, out_dtype=wide)
        held = slot_tiles(patch, stencil, wide)
        if unrolled:
            for i in tl.static_range(count):
                f = generator_tile(i, held, v, patch, stencil, wide)
                w = weight_tile(weight, group, i + 1, c, o, ins, outs)
                total = tl.dot(f.to(narrow), w, total, input_precision=precision, out_dtype=wide)
        else:
            for i in range(count):
                f = generator_tile(i, held, v, patch, stencil, wide)
                w = weight_tile(weight, group, i + 1, c, o, ins, outs)
                total = tl.dot(f.to(narrow), w, total, input_precision=precision, out_dtype=wide)

    if has_bias:
        total += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(wide)[None, :]
    offset = point[0] * target.axes[0] + point[1] * target.axes[1] + point[2] * target.axes[2]
    tl.store(
        base_of(target, batch, group, outs) + offset[:, None] + o[None, :] * target.channel,
        total.to(target.data.dtype.element_ty),
        mask=here[:, None] & (o < outs)[None, :],
    )
