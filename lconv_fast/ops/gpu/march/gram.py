"""gram for half types, marching along lines; and correlate, contracted from it.

A program keeps the sums of one block of input channels and one of output channels in registers, and walks through its
part of the strips; f is unpacked once for all generators, whose blocks stand side by side in one product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import CoefficientKind
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.basis import terms_of, with_own
from lconv_fast.ops.gpu.march.lines import Columns, Stencil, field_of, line_of, line_of_partner, row_tiles
from lconv_fast.ops.gpu.march.mixing import Mixture
from lconv_fast.ops.gpu.march.moments import march_moments_kernel
from lconv_fast.ops.gpu.march.registers import BLOCK, CHANNELS, PAIRS, all_beside, stacks_of
from lconv_fast.ops.gpu.march.way import filled, why_not
from lconv_fast.ops.gpu.tables import GramMarch
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import (
    AFFINE_BASIS,
    TAP_BASIS,
    Box,
    Coefficients,
    Coordinates,
    box_of,
    cdiv,
    coefficients_view,
    coordinates_view,
    data_view,
    padded,
    pairs_view,
)
from lconv_fast.ops.gpu.waves import Strips, shares_of


class Sums(NamedTuple):
    """(L_r f)^T g for f itself, if it takes part, and every generator or every member of a basis: float32, in
    parts (parts, rows, outs, ins)."""

    call: Call
    entry: GramMarch
    launches: list[Launch]  # for some rows each
    stencil: Stencil
    box: Box
    x_tiles: int
    in_blocks: int
    out_blocks: int

    def shares(self, places: int) -> Strips:
        """For so many programs on a multiprocessor."""
        call = self.call
        planes, lines, _ = padded(call.geometry.spatial, 1)
        blocks = self.in_blocks * self.out_blocks * call.geometry.groups
        capacity = max(1, places * call.card.multiprocessors // blocks)
        return shares_of(lines, self.x_tiles * planes * call.batch, capacity, self.entry.least_lines)

    def __call__(self, input: Tensor, cotangent: Tensor, v: Coefficients) -> Tensor:
        call, device = self.call, input.device
        groups = call.geometry.groups
        source = pairs_view(input) if input.stride(1) == 1 else data_view(input)
        before = (source, data_view(cotangent), v)
        after = (self.box, call.batch, groups, call.ins, call.outs, self.x_tiles, self.in_blocks, self.out_blocks)
        nothing = input.new_empty(0, dtype=torch.float32)
        places = self.launches[0].places(call.card, device, (*before, nothing, *after, 1, 1, 1))
        strips = self.shares(places or self.entry.places)
        rows, parts = self.stencil.generators + self.stencil.identity, strips.programs
        sums = input.new_empty((parts, rows, call.outs * groups, call.ins), dtype=torch.float32)
        programs = self.in_blocks * self.out_blocks * groups * parts
        for launch in self.launches:
            launch(programs, device, *before, sums, *after, strips.number, strips.lines, parts)
        return sums


class Plan(NamedTuple):
    sums: Sums
    mixture: Mixture | None  # in a basis

    def run(self, coordinates: Coordinates, input: Tensor, cotangent: Tensor, coefficients: Tensor) -> Tensor:
        call, stencil = self.sums.call, self.sums.stencil
        v = coefficients_view(coefficients, call.geometry.kind, coordinates)
        if self.mixture:
            sums = self.sums(input, cotangent, coordinates_view(cotangent, coordinates))
            return self.mixture.gradient(sums, v, call.generators, input.dtype)
        sums = self.sums(input, cotangent, v)
        return with_own(sums.sum(0), stencil.identity).to(input.dtype)


class CorrelatePlan(NamedTuple):
    """dQ/dv of coefficients that make up the generators from a basis: sums of <W_i, (B_r f)^T g>."""

    sums: Sums

    def run(self, coordinates: Coordinates, input: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor:
        g, stencil = self.sums.call.geometry, self.sums.stencil
        sums = self.sums(input, cotangent, coordinates_view(weight, coordinates)).sum(0)
        found = torch.einsum("ioc,roc->ri", weight[1:].float(), sums)
        result = found.new_zeros(g.coefficient_shape(weight.shape[0] - 1))
        by_place = result.unsqueeze(2) if g.kind == CoefficientKind.CONSTANT else result
        for row, component, place, factor in terms_of(g, stencil.kind, False):
            by_place[:, component, place].add_(found[row - 1 + stencil.identity], alpha=factor)
        return result


def plan(call: Call) -> Plan | str:
    kind = _kind(call, call.generators > call.geometry.ndim + 1)
    sums = _sums(call, kind, call.identity)
    if isinstance(sums, str):
        return sums
    stencil = sums.stencil
    return Plan(sums, Mixture.of(call, kind, stencil.identity, False) if stencil.in_basis else None)


def correlate_plan(call: Call) -> CorrelatePlan | str:
    if call.geometry.kind == CoefficientKind.SAMPLED:
        return "the gradient of a field is wanted at every point"
    sums = _sums(call, _kind(call, True), False)
    return sums if isinstance(sums, str) else CorrelatePlan(sums)


def _kind(call: Call, many: bool) -> int:
    """What kernels work in: the call's own kind, or a basis; of affine fields the latter if they are many."""
    kind = call.geometry.kind
    if kind == CoefficientKind.CONSTANT:
        return TAP_BASIS.value
    return AFFINE_BASIS.value if many and kind == CoefficientKind.AFFINE else int(kind)


def _moments_entry(call: Call) -> GramMarch | None:
    """Of the kernel for 2D affine bases, where it serves."""
    if call.geometry.ndim != 2:
        return None
    for more in (call.outs > 64, False):
        entry = call.table.gram_marches[2, more]
        if entry.moments[call.card.generation]:
            return entry
    return None


def _entry(call: Call, kind: int) -> tuple[GramMarch, int]:
    """The entry for these channels, and how many generators, with f itself, a launch takes."""
    for more in (call.outs > 64, False):
        entry = call.table.gram_marches[call.geometry.ndim, more]
        limits = {
            CoefficientKind.AFFINE: entry.most_affine,
            CoefficientKind.SAMPLED: entry.most_fields,
            AFFINE_BASIS.value: entry.most_basis,
            TAP_BASIS.value: entry.most_taps,
        }
        limit = limits[kind][call.card.generation]
        if limit:
            break
    return entry, limit


def _sums(call: Call, kind: int, identity: bool) -> Sums | str:
    if reason := why_not(call):
        return reason
    g = call.geometry
    by_moments = _moments_entry(call) if kind == AFFINE_BASIS.value else None
    entry, most = (by_moments, 0) if by_moments else _entry(call, kind)
    if not filled(call, entry.points):
        return f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
    stencil = Stencil.of(call, kind, identity=identity, transposed=False)
    rows = stencil.generators + stencil.identity
    constants = {"stencil": stencil, "index": call.index, "BM": entry.points, "BN": entry.outs}
    if by_moments:
        launches = [call.launcher(march_moments_kernel, entry.warps, **constants)]
    else:
        ahead = {CoefficientKind.AFFINE: entry.most_ahead, TAP_BASIS.value: entry.most_taps_ahead}
        constants["ahead"] = kind in ahead and rows <= ahead[kind][call.card.generation]
        launches = [
            call.launcher(march_gram_kernel, entry.warps, first=first, rows=min(most, rows - first), **constants)
            for first in range(0, rows, most)
        ]
    blocks = (call.ins // BLOCK, cdiv(call.outs, entry.outs))
    return Sums(call, entry, launches, stencil, box_of(g), cdiv(g.spatial[-1], entry.points), *blocks)


@triton.jit(do_not_specialize=["strips", "strip_lines", "parts"])
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
    in_blocks,
    out_blocks,
    strips,
    strip_lines,
    parts,
    stencil: tl.constexpr,
    first: tl.constexpr,  # row of this launch
    rows: tl.constexpr,
    ahead: tl.constexpr,  # whether lines are loaded a step before they are needed
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
    all_rows: tl.constexpr = stencil.generators + stencil.identity
    stacks: tl.constexpr = stacks_of(rows, stencil.kind == TAP_BASIS)
    o = (out_block * BN + tl.arange(0, BN)).to(index)
    totals = ()
    for k in tl.static_range(len(stacks)):
        totals = totals + (tl.zeros((BN, CHANNELS * stacks[k][1]), tl.float32),)

    every = as_type(batch_count, tl.int64) * box.out[0] * strips * x_tiles
    start, end = (every * part // parts).to(tl.int32), (every * (part + 1) // parts).to(tl.int32)
    for work in range(start, end):
        x_tile, rest = work % x_tiles, work // x_tiles
        strip, rest = rest % strips, rest // strips
        z, batch = as_type(rest % box.out[0], index), rest // box.out[0]
        x = as_type(x_tile, index) * BM + tl.arange(0, BM)
        columns = Columns(source, base_of(source, batch, group, ins // 2) + in_block * PAIRS, box, z, x)
        g_base = base_of(cotangent, batch, group, outs)
        field = field_of(v, columns, stencil)
        top = as_type(strip, index) * strip_lines
        bottom = tl.minimum(top + strip_lines, box.out[1])
        before = line_of(columns, top - 1, 0, padding)
        here = line_of(columns, top, 0, padding)
        if ahead:
            after = line_of(columns, top + 1, 0, padding)
            g = line_of_partner(cotangent, g_base, columns, top, bottom, o, outs)
        for step in range(0, (bottom - top).to(tl.int32)):
            y = top + step
            if ahead:
                coming = line_of(columns, y + 2, 0, padding)
                g_coming = line_of_partner(cotangent, g_base, columns, y + 1, bottom, o, outs)
            else:
                after = line_of(columns, y + 1, 0, padding)
                g = line_of_partner(cotangent, g_base, columns, y, bottom, o, outs)
            tiles = row_tiles(columns, field, (before, here, after), y, 0, stencil, first, rows, narrow)
            sums = ()
            for k in tl.static_range(len(stacks)):
                f = all_beside(tiles, stacks[k][0], stacks[k][1])
                sums = sums + (tl.dot(tl.trans(g), f, totals[k]),)
            totals = sums
            before = here
            here = after
            if ahead:
                after = coming
                g = g_coming

    for k in tl.static_range(len(stacks)):
        n = tl.arange(0, CHANNELS * stacks[k][1])
        row = first + stacks[k][0] + n // CHANNELS
        c = in_block * CHANNELS + n % CHANNELS
        place = ((as_type(part, tl.int64) * all_rows + row) * groups + group) * outs
        tl.store(
            parts_sums + (place[None, :] + o[:, None]) * ins + c[None, :],
            totals[k],
            mask=(o < outs)[:, None] & (row < first + rows)[None, :],
        )
