"""apply: y = sum_r (L_r f) W_r, or its transpose; a program makes a tile of points by a tile of channels."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type, generator_tile, identity_tile, point_of, slot_tiles, weight_tile


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
    identity: tl.constexpr,
    transposed: tl.constexpr,
    has_bias: tl.constexpr,
    held: tl.constexpr,
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
    if transposed:
        extent = box.array
    p = as_type(tile, index) * BM + tl.arange(0, BM)
    here = p < as_type(extent[0], index) * extent[1] * extent[2]
    point = point_of(p, extent)
    o = (block * BN + tl.arange(0, BN)).to(index)
    base = source.data + as_type(batch, tl.int64) * source.batch + as_type(group, tl.int64) * ins * source.channel

    total = tl.zeros((BM, BN), wide)
    for first in range(0, ins, BK):
        c = (first + tl.arange(0, BK)).to(index)
        if identity:
            own = identity_tile(source, base, point, here, box, c, ins, stencil.padding, transposed)
            w0 = weight_tile(weight, group, 0, c, o, ins, outs)
            total = tl.dot(own, w0, total, input_precision=precision, out_dtype=wide)
        held_tiles = slot_tiles(source, base, point, here, box, c, ins, held, stencil, transposed, wide)
        if unrolled:
            for i in tl.static_range(count):
                f = generator_tile(
                    i, held_tiles, v, source, base, point, here, box, c, ins, held, stencil, transposed, wide
                )
                w = weight_tile(weight, group, i + 1, c, o, ins, outs)
                total = tl.dot(f.to(narrow), w, total, input_precision=precision, out_dtype=wide)
        else:
            for i in range(count):
                f = generator_tile(
                    i, held_tiles, v, source, base, point, here, box, c, ins, held, stencil, transposed, wide
                )
                w = weight_tile(weight, group, i + 1, c, o, ins, outs)
                total = tl.dot(f.to(narrow), w, total, input_precision=precision, out_dtype=wide)

    if has_bias:
        total += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(wide)[None, :]
    place = target.data + as_type(batch, tl.int64) * target.batch + as_type(group, tl.int64) * outs * target.channel
    offset = point[0] * target.axes[0] + point[1] * target.axes[1] + point[2] * target.axes[2]
    tl.store(
        place + offset[:, None] + o[None, :] * target.channel,
        total.to(target.data.dtype.element_ty),
        mask=here[:, None] & (o < outs)[None, :],
    )
