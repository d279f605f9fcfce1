"""apply transposed and gram at once, for half types and central differences of order 2, marching along rows.

The blocks of L_r^T g are made once: permuted they are the first factor of the product with W_r, whose sum is the
gradient of f, and side by side and transposed that of the product with f, whose sums over the strip stay in registers.
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
def march_backward_kernel(
    cotangent,  # pairs of channels, int32
    features,
    weight,
    v,
    target,  # the gradient of the features
    strip_sums,  # (strips of all planes and examples, rows, outs of all groups, ins), contiguous
    box,
    groups,
    ins,
    x_tiles,
    strips,
    strip_rows,
    stencil: tl.constexpr,
    steps: tl.constexpr,
    identity: tl.constexpr,  # 1 if g itself is the first row, else 0
    index: tl.constexpr,
    channel_blocks: tl.constexpr,
    warps: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    program = tl.program_id(0)
    group, part = program % groups, program // groups
    x_tile, rest = part % x_tiles, part // x_tiles
    strip, rest = rest % strips, rest // strips
    z, batch = as_type(rest % box.out[0], index), as_type(rest // box.out[0], tl.int64)

    narrow: tl.constexpr = features.data.dtype.element_ty
    padding: tl.constexpr = stencil.padding
    count: tl.constexpr = stencil.generators
    rows: tl.constexpr = count + identity
    stacks: tl.constexpr = stacks_of(rows, False)
    stack_count: tl.constexpr = len(stacks)
    c = tl.arange(0, BN)
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
                c,
                ins,
            ),
        )
    totals = ()
    for q in tl.static_range(channel_blocks * stack_count):
        totals = totals + (tl.zeros((2 * PAIRS * stacks[q % stack_count][1], BN), tl.float32),)

    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    x_out = as_type(x_tile, index) * BM + point_order(BM, warps)
    base = cotangent.data + batch * cotangent.batch + as_type(group, tl.int64) * channel_blocks * PAIRS
    f_base = features.data + batch * features.batch + as_type(group, tl.int64) * ins * features.channel
    place = target.data + batch * target.batch + as_type(group, tl.int64) * ins * target.channel
    lines, slopes = affine_lines(v, z, x, box, steps, stencil, True)
    top = as_type(strip, index) * strip_rows
    bottom = tl.minimum(top + strip_rows, box.out[1])
    before = ()
    here = ()
    for b in tl.static_range(channel_blocks):
        before = before + (row_of(cotangent, base, z, top - 1, x, b, box, padding),)
        here = here + (row_of(cotangent, base, z, top, x, b, box, padding),)
    for step in range(0, (bottom - top).to(tl.int32)):
        y = top + step
        f = tl.load(
            f_base
            + (z * features.axes[0] + y * features.axes[1] + x * features.axes[2])[:, None]
            + c[None, :] * features.channel,
            mask=(x < box.out[2])[:, None] & (c < ins)[None, :],
            other=0.0,
        )
        total = tl.zeros((BM, BN), tl.float32)
        after = ()
        sums = ()
        for b in tl.static_range(channel_blocks):
            after = after + (row_of(cotangent, base, z, y + 1, x, b, box, padding),)
            tiles = row_tiles(
                cotangent,
                base,
                before[b],
                here[b],
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
                True,
                narrow,
            )
            for q in tl.static_range(stack_count):
                g = all_beside(tiles, stacks[q][0], stacks[q][1])
                total = tl.dot(permuted(g, warps), w[b * stack_count + q], total)
                sums = sums + (tl.dot(tl.trans(g), f, totals[b * stack_count + q]),)
        totals = sums
        offset = z * target.axes[0] + y * target.axes[1] + x_out * target.axes[2]
        tl.store(
            place + offset[:, None] + c[None, :] * target.channel,
            total.to(narrow),
            mask=(x_out < box.out[2])[:, None] & (c < ins)[None, :],
        )
        before = here
        here = after

    for q in tl.static_range(channel_blocks * stack_count):
        n = tl.arange(0, 2 * PAIRS * stacks[q % stack_count][1])
        row = stacks[q % stack_count][0] + n // (2 * PAIRS)
        o = (q // stack_count) * 2 * PAIRS + n % (2 * PAIRS)
        line = ((as_type(part, tl.int64) * rows + row) * groups + group) * (channel_blocks * 2 * PAIRS) + o
        tl.store(
            strip_sums + line[:, None] * ins + c[None, :], totals[q], mask=(row < rows)[:, None] & (c < ins)[None, :]
        )
