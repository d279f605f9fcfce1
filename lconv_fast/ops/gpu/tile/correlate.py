"""correlate: dQ/dv[i,a](x) = sum over batch and channels of (D_a f) (g W_i), per point or summed against (x, 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import CoefficientKind, accumulate_type
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type, coordinate
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tile.points import Patch, Stencil, base_of, difference_tile, load_tile, points_of, weight_tile
from lconv_fast.ops.gpu.views import (
    AFFINE,
    SAMPLED,
    Box,
    Coordinates,
    block,
    box_of,
    cdiv,
    coordinates_view,
    data_view,
    padded,
    weight_view,
)


class Plan(NamedTuple):
    call: Call
    launch: Launch
    box: Box
    tiles: int
    places: int  # programs of a multiprocessor, where nothing is compiled

    def run(self, coordinates: Coordinates, input: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor:
        call = self.call
        g, device = call.geometry, input.device
        before = (
            data_view(input),
            weight_view(weight, g.groups, True),
            data_view(cotangent),
            coordinates_view(weight, coordinates),
        )
        after = (self.box, padded(g.spatial, 1), call.batch, g.groups, call.ins, call.outs, self.tiles)
        wide, shape = accumulate_type(call.dtype), g.coefficient_shape(call.generators)
        if g.kind == CoefficientKind.SAMPLED:
            # Points that a stride leaves out take no part.
            result = (input.new_zeros if max(g.stride) > 1 else input.new_empty)(shape, dtype=wide)
            self.launch(self.tiles * call.generators, device, *before, result, *after, self.tiles)
            return result
        places = self.launch.places(call.card, device, (*before, input.new_empty(0, dtype=wide), *after, 1))
        programs = (places or self.places) * call.card.multiprocessors
        parts = max(1, min(programs // call.generators, self.tiles))
        sums = input.new_empty((parts, *shape), dtype=wide)
        self.launch(parts * call.generators, device, *before, sums, *after, parts)
        return sums.sum(0)


def plan(call: Call) -> Plan | str:
    g, tile = call.geometry, call.table.tile("correlate", call.dtype)
    launch = call.launcher(
        correlate_kernel,
        tile.warps,
        stencil=Stencil.of(g, call.generators, False, False, False),
        index=call.index,
        wide=call.wide,
        precision=call.precision,
        BM=tile.points,
        BN=block(call.outs, tile.outs),
        BK=block(call.ins, tile.ins),
    )
    return Plan(call, launch, box_of(g), cdiv(math.prod(g.out), tile.points), tile.places)


@triton.jit(do_not_specialize=["parts"])
def correlate_kernel(
    source,
    weight,  # from the cotangent's channels to the source's
    cotangent,
    v,  # affine: its coordinates
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
    sampled: tl.constexpr = stencil.kind == SAMPLED
    components: tl.constexpr = stencil.component_count
    columns: tl.constexpr = stencil.ndim + 1 if stencil.kind == AFFINE else 1
    sums_kept: tl.constexpr = 0 if sampled else components * columns

    # Every component's sums against each coordinate and against one: scalars, but for sampled coefficients.
    moments = ()
    for _ in tl.static_range(sums_kept):
        moments = moments + (tl.zeros((BM,), wide),)
    first_tile = (as_type(part, tl.int64) * tiles // parts).to(tl.int32)
    last_tile = (as_type(part + 1, tl.int64) * tiles // parts).to(tl.int32)
    for tile in range(first_tile, last_tile):
        point, here = points_of(tile, box.out, index, BM)
        h = ()
        for _ in tl.static_range(components):
            h = h + (tl.zeros((BM,), wide),)
        for batch in range(batch_count):
            for group in range(groups):
                base = base_of(source, batch, group, ins)
                g_base = base_of(cotangent, batch, group, outs)
                for first in range(0, ins, BK):
                    c = (first + tl.arange(0, BK)).to(index)
                    mixed = tl.zeros((BM, BK), wide)
                    for first_out in range(0, outs, BN):
                        o = (first_out + tl.arange(0, BN)).to(index)
                        g = load_tile(Patch(cotangent, g_base, box, point, here, o, outs), point, here)
                        w = weight_tile(weight, group, i + 1, o, c, outs, ins)
                        mixed = tl.dot(g, w, mixed, input_precision=precision, out_dtype=wide)
                    patch = Patch(source, base, box, point, here, c, ins)
                    sums = ()
                    for a in tl.static_range(components):
                        d = difference_tile(patch, a, stencil, wide)
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
