"""correlate: dQ/dv[i,a](x) = sum over batch and channels of (D_a f) (g W_i), per point or summed against (x, 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.points import as_type, coordinate, difference_tile, load_tile, point_of, weight_tile


@triton.jit
def correlate_kernel(
    source,
    weight,  # from the cotangent's channels to the source's
    cotangent,
    v,  # affine: centre and scale
    result,  # sampled: (n_L, m, *grid); else sums of the parts (parts, n_L, m, 1 or n + 1); contiguous
    box,
    grid,
    batch_count,
    groups,
    ins,
    outs,
    tiles,
    parts,
    stencil: tl.constexpr,
    index: tl.constexpr,
    wide: tl.constexpr,
    precision: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i = tl.program_id(0) % stencil.generators
    part = tl.program_id(0) // stencil.generators
    sampled: tl.constexpr = stencil.kind == 1
    components: tl.constexpr = stencil.component_count
    columns: tl.constexpr = stencil.ndim + 1 if stencil.kind == 2 else 1
    sums_kept: tl.constexpr = 0 if sampled else components * columns

    # Every component's sums against each coordinate and against one: scalars, but for sampled coefficients.
    moments = ()
    for _ in tl.static_range(sums_kept):
        moments = moments + (tl.zeros((BM,), wide),)
    first_tile = (as_type(part, tl.int64) * tiles // parts).to(tl.int32)
    last_tile = (as_type(part + 1, tl.int64) * tiles // parts).to(tl.int32)
    for tile in range(first_tile, last_tile):
        p = as_type(tile, index) * BM + tl.arange(0, BM)
        here = p < as_type(box.out[0], index) * box.out[1] * box.out[2]
        point = point_of(p, box.out)
        h = ()
        for _ in tl.static_range(components):
            h = h + (tl.zeros((BM,), wide),)
        for batch in range(batch_count):
            for group in range(groups):
                base = (
                    source.data
                    + as_type(batch, tl.int64) * source.batch
                    + as_type(group, tl.int64) * ins * source.channel
                )
                g_base = (
                    cotangent.data
                    + as_type(batch, tl.int64) * cotangent.batch
                    + as_type(group, tl.int64) * outs * cotangent.channel
                )
                for first in range(0, ins, BK):
                    c = (first + tl.arange(0, BK)).to(index)
                    mixed = tl.zeros((BM, BK), wide)
                    for first_out in range(0, outs, BN):
                        o = (first_out + tl.arange(0, BN)).to(index)
                        g = load_tile(cotangent, g_base, point, here, o, outs)
                        w = weight_tile(weight, group, i + 1, o, c, outs, ins)
                        mixed = tl.dot(g, w, mixed, input_precision=precision, out_dtype=wide)
                    sums = ()
                    for a in tl.static_range(components):
                        d = difference_tile(source, base, point, here, box, c, ins, a, stencil, wide)
                        sums = sums + (h[a] + tl.sum(d * mixed, axis=1),)
                    h = sums
        if sampled:
            x = ((point[0] * box.step[0]).to(tl.int64) * grid[1] + point[1] * box.step[1]) * grid[2] + point[
                2
            ] * box.step[2]
            size = as_type(grid[0], tl.int64) * grid[1] * grid[2]
            for a in tl.static_range(components):
                tl.store(result + (i * components + a) * size + x, h[a], mask=here)
        else:
            sums = ()
            for a in tl.static_range(components):
                for b in tl.static_range(columns):
                    if b == columns - 1:
                        sums = sums + (moments[a * columns + b] + h[a],)
                    else:
                        sums = sums + (
                            moments[a * columns + b] + h[a] * coordinate(v, point, box, b + 3 - stencil.ndim, wide),
                        )
            moments = sums
    if not sampled:
        for k in tl.static_range(sums_kept):
            place = (part * stencil.generators + i) * components * columns + k
            tl.store(result + place, tl.sum(moments[k], axis=0))
