"""gram for half types and central differences of order 2, marching along lines; and correlate, contracted from it.

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
from lconv_fast.ops.gpu.march.basis import by_axis, mixing, weight_gradient
from lconv_fast.ops.gpu.march.lines import Columns, Stencil, field_of, line_of, row_tiles
from lconv_fast.ops.gpu.march.registers import BLOCK, CHANNELS, PAIRS, all_beside, stacks_of
from lconv_fast.ops.gpu.march.way import filled, steps_of
from lconv_fast.ops.gpu.tables import GramMarch
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import (
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
    """(L_r f)^T g for f itself, if it takes part, and every generator or every member of the affine basis; float32."""

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
        before = (pairs_view(input), data_view(cotangent), v)
        after = (self.box, call.batch, groups, call.ins, call.outs, self.x_tiles, self.in_blocks, self.out_blocks)
        nothing = input.new_empty(0, dtype=torch.float32)
        places = self.launches[0].places(call.card, device, (*before, nothing, *after, 1, 1, 1))
        strips = self.shares(places or self.entry.places)
        rows, parts = self.stencil.generators + self.stencil.identity, strips.programs
        sums = input.new_empty((parts, rows, call.outs * groups, call.ins), dtype=torch.float32)
        programs = self.in_blocks * self.out_blocks * groups * parts
        for launch in self.launches:
            launch(programs, device, *before, sums, *after, strips.number, strips.lines, parts)
        return sums.sum(0)


class Plan(NamedTuple):
    sums: Sums
    in_basis: bool

    def run(self, coordinates: Coordinates, input: Tensor, cotangent: Tensor, coefficients: Tensor) -> Tensor:
        g, stencil = self.sums.call.geometry, self.sums.stencil
        v = coefficients_view(coefficients, g.kind, coordinates)
        mixed = mixing(coefficients, stencil.steps) if self.in_basis else None
        sums = self.sums(input, cotangent, v)
        return weight_gradient(g, sums, mixed, bool(stencil.identity)).to(input.dtype)


class CorrelatePlan(NamedTuple):
    """dQ/dv of affine coefficients, v[i,a,b] = step_a <W_i, (x_b D_a f)^T g>."""

    sums: Sums

    def run(self, coordinates: Coordinates, input: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor:
        g, steps = self.sums.call.geometry, self.sums.stencil.steps
        sums = by_axis(g, self.sums(input, cotangent, coordinates_view(weight, coordinates)))
        return mixing(torch.einsum("ioc,aboc->iab", weight[1:].float(), sums), steps)


def plan(call: Call) -> Plan | str:
    g = call.geometry
    in_basis = g.kind == CoefficientKind.AFFINE and call.generators > g.ndim + 1
    sums = _sums(call, in_basis, call.identity)
    return sums if isinstance(sums, str) else Plan(sums, in_basis)


def correlate_plan(call: Call) -> CorrelatePlan | str:
    if call.geometry.kind == CoefficientKind.SAMPLED:
        return "the gradient of a field is wanted at every point"
    sums = _sums(call, True, False)
    return sums if isinstance(sums, str) else CorrelatePlan(sums)


def _entry(call: Call, in_basis: bool) -> tuple[GramMarch, int]:
    """The entry for these channels, and how many generators, with f itself, a launch takes."""
    g = call.geometry
    for more in (call.outs > 64, False):
        entry = call.table.gram_marches[g.ndim, more]
        affine = entry.most_basis if in_basis else entry.most_affine
        limit = (affine if g.kind == CoefficientKind.AFFINE else entry.most_fields)[call.card.generation]
        if limit:
            break
    return entry, limit


def _sums(call: Call, in_basis: bool, identity: bool) -> Sums | str:
    steps = steps_of(call)
    if isinstance(steps, str):
        return steps
    g = call.geometry
    entry, most = _entry(call, in_basis)
    if not filled(call, entry.points):
        return f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
    stencil = Stencil.of(call, steps, in_basis, identity=identity, transposed=False)
    rows = stencil.generators + stencil.identity
    launches = [
        call.launcher(
            march_gram_kernel,
            entry.warps,
            stencil=stencil,
            first=first,
            rows=min(most, rows - first),
            index=call.index,
            BM=entry.points,
            BN=entry.outs,
        )
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
    stacks: tl.constexpr = stacks_of(rows, False)
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
        for step in range(0, (bottom - top).to(tl.int32)):
            y = top + step
            after = line_of(columns, y + 1, 0, padding)
            g = tl.load(
                g_base
                + (z * cotangent.axes[0] + y * cotangent.axes[1] + x * cotangent.axes[2])[:, None]
                + o[None, :] * cotangent.channel,
                mask=(x < box.out[2])[:, None] & (o < outs)[None, :],
                other=0.0,
            )
            tiles = row_tiles(columns, field, (before, here, after), y, 0, stencil, first, rows, narrow)
            sums = ()
            for k in tl.static_range(len(stacks)):
                f = all_beside(tiles, stacks[k][0], stacks[k][1])
                sums = sums + (tl.dot(tl.trans(g), f, totals[k]),)
            totals = sums
            before = here
            here = after

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
