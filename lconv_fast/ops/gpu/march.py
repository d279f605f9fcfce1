"""apply for half types and central differences of order 2, marching along rows.

A program keeps BM columns of three rows in registers and loads one new row a step. The blocks of features lie where the
matrix instructions want their first factor, once rows and channels are permuted: it never passes through shared
memory, where all of W lies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type
from lconv_fast.ops.gpu.rows import (
    PAIRS,
    affine_lines,
    all_beside,
    permuted,
    point_order,
    row_of,
    row_tiles,
    stacks_of,
    weight_stack,
)


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
    identity: tl.constexpr,  # 1 if f itself is the first row, else 0
    transposed: tl.constexpr,
    has_bias: tl.constexpr,
    held: tl.constexpr,  # whether the rows y - 1 and y stay in registers, or are read again, from the first-level cache
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
    rows: tl.constexpr = count + identity
    stacks: tl.constexpr = stacks_of(rows, True)
    stack_count: tl.constexpr = len(stacks)
    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    z = as_type(z, index)
    base = source.data + as_type(batch, tl.int64) * source.batch + as_type(group, tl.int64) * channel_blocks * PAIRS
    o = block * BN + tl.arange(0, BN)

    # W stays in shared memory all along.
    w = ()
    for q in tl.static_range(channel_blocks * stack_count):
        w = w + (
            weight_stack(
                weight,
                group,
                q // stack_count,
                stacks[q % stack_count][0],
                stacks[q % stack_count][1],
                rows,
                identity,
                o,
                outs,
            ),
        )
    x_out = as_type(x_tile, index) * BM + point_order(BM, warps)
    start = tl.zeros((BM, BN), tl.float32)
    if has_bias:
        start += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    place = target.data + as_type(batch, tl.int64) * target.batch + as_type(group, tl.int64) * outs * target.channel

    lines, slopes = affine_lines(v, z, x, box, steps, stencil, transposed)
    first = as_type(strip, index) * strip_rows
    last = tl.minimum(first + strip_rows, box.out[1])
    before = ()
    here = ()
    if held:
        for b in tl.static_range(channel_blocks):
            before = before + (row_of(source, base, z, first - 1, x, b, box, padding),)
            here = here + (row_of(source, base, z, first, x, b, box, padding),)
    for step in range(0, (last - first).to(tl.int32)):
        y = first + step
        total = start
        after = ()
        for b in tl.static_range(channel_blocks):
            after = after + (row_of(source, base, z, y + 1, x, b, box, padding),)
            tiles = row_tiles(
                source,
                base,
                before[b] if held else row_of(source, base, z, y - 1, x, b, box, padding),
                here[b] if held else row_of(source, base, z, y, x, b, box, padding),
                after[b],
                v,
                lines,
                slopes,
                z,
                y,
                x,
                b,
                box,
                steps,
                stencil,
                identity,
                0,
                rows,
                transposed,
                narrow,
            )
            for q in tl.static_range(stack_count):
                f = permuted(all_beside(tiles, stacks[q][0], stacks[q][1]), warps)
                total = tl.dot(f, w[b * stack_count + q], total)
        offset = z * target.axes[0] + y * target.axes[1] + x_out * target.axes[2]
        tl.store(
            place + offset[:, None] + o[None, :] * target.channel,
            total.to(narrow),
            mask=(x_out < box.out[2])[:, None] & (o < outs)[None, :],
        )
        if held:
            before = here
            here = after
