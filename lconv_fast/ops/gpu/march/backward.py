"""apply transposed and gram at once, for half types, marching along lines.

The blocks of L_r^T g are made once: permuted they are the first factor of the product with W_r, whose sum is the
gradient of f, and side by side and transposed that of the product with f, whose sums over the strip stay in registers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import empty_like_format
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.basis import basis_for, with_own
from lconv_fast.ops.gpu.march.lines import Columns, Stencil, field_of, line_of, line_of_partner, row_tiles
from lconv_fast.ops.gpu.march.mixing import Mixture
from lconv_fast.ops.gpu.march.registers import (
    BLOCK,
    CHANNELS,
    PAIRS,
    all_beside,
    channel_order,
    permuted,
    stacks_of,
    store_line,
)
from lconv_fast.ops.gpu.march.way import filled, why_not
from lconv_fast.ops.gpu.march.weights import weight_stack
from lconv_fast.ops.gpu.tables import March
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import (
    Box,
    Coordinates,
    block,
    box_of,
    cdiv,
    coefficients_view,
    coordinates_view,
    data_view,
    padded,
    pairs_view,
    weight_view,
)
from lconv_fast.ops.gpu.waves import Strips, strips_of


class Plan(NamedTuple):
    call: Call
    entry: March
    launch: Launch
    stencil: Stencil
    mixture: Mixture | None  # in a basis
    box: Box
    x_tiles: int
    others: int  # columns of all planes and examples
    most_strips: int

    def strips(self, places: int) -> Strips:
        """For so many programs on a multiprocessor."""
        call = self.call
        lines, columns = padded(call.geometry.spatial, 1)[1], self.others * call.geometry.groups
        capacity = places * call.card.multiprocessors
        return strips_of(lines, columns, capacity, self.entry.least_lines, self.most_strips)

    def run(
        self, coordinates: Coordinates, cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        call, stencil, device = self.call, self.stencil, input.device
        g = call.geometry
        v = coefficients_view(coefficients, g.kind, coordinates)
        count = weight.shape[0] - 1
        in_kernel = v
        if self.mixture:
            weight = self.mixture.weight(weight, v)
            in_kernel = coordinates_view(weight, coordinates)
        output = empty_like_format(cotangent, call.ins * g.groups, g.spatial)
        before = (
            pairs_view(cotangent),
            data_view(input),
            weight_view(weight, g.groups, True),
            in_kernel,
            data_view(output),
        )
        after = (self.box, g.groups, call.ins, self.x_tiles)
        nothing = input.new_empty(0, dtype=torch.float32)
        places = self.launch.places(call.card, device, (*before, nothing, *after, 1, 1))
        strips = self.strips(places or self.entry.places)
        shape = (self.others * strips.number, stencil.generators + stencil.identity, call.outs * g.groups, call.ins)
        sums = input.new_empty(shape, dtype=torch.float32)
        self.launch(strips.programs, device, *before, sums, *after, strips.number, strips.lines)
        if self.mixture:
            return output, self.mixture.gradient(sums, v, count, input.dtype)
        return output, with_own(sums.sum(0), stencil.identity).to(input.dtype)


def plan(call: Call) -> Plan | str:
    if reason := why_not(call):
        return reason
    g, features, card = call.geometry, call.partner, call.card
    assert features is not None
    if 0 in (call.batch, call.ins, call.outs):
        return "there is nothing to compute"
    entry = call.table.backward_marches.get((g.ndim, call.outs // BLOCK))
    if entry is None:
        return f"{call.outs} channels of g: their products would leave the registers"
    if call.ins > entry.outs:
        return f"{call.ins} channels of f are more than {entry.outs}"
    if features.strides[1] != 1:
        return "f is not channels-last"
    if not filled(call, entry.points):
        return f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
    kind = basis_for(call, entry)
    if isinstance(kind, str):
        return kind
    stencil = Stencil.of(call, kind, identity=call.identity, transposed=True)
    rows, bn = stencil.generators + stencil.identity, block(call.ins, entry.outs)
    # All of W, a stack of blocks, and features and result.
    shared = 2 * (bn * rows * call.outs + 4 * BLOCK * entry.points + 2 * bn * entry.points)
    if shared > card.shared:
        return f"W and blocks take {shared >> 10} KiB of shared memory, the card gives {card.shared >> 10}"
    x_tiles = cdiv(g.spatial[-1], entry.points)
    others = x_tiles * padded(g.spatial, 1)[0] * call.batch
    # Partial sums stay small beside the data.
    data = features.dtype.itemsize * call.batch * call.ins * g.groups * math.prod(g.spatial)
    affordable = max(call.table.most_sum_bytes, data // 16)
    most_strips = affordable // (4 * others * rows * call.outs * g.groups * call.ins)
    if not most_strips:
        return f"partial sums would take more than {affordable >> 20} MiB"
    launch = call.launcher(
        march_backward_kernel,
        entry.warps,
        stencil=stencil,
        ahead=min(entry.ahead, call.outs // BLOCK),
        index=call.index,
        channel_blocks=call.outs // BLOCK,
        warps=entry.warps,
        BM=entry.points,
        BN=bn,
    )
    mixture = Mixture.of(call, kind, stencil.identity, True) if stencil.in_basis else None
    return Plan(call, entry, launch, stencil, mixture, box_of(g), x_tiles, others, most_strips)


@triton.jit(do_not_specialize=["strips", "strip_lines"])
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
    strip_lines,
    stencil: tl.constexpr,
    ahead: tl.constexpr,  # how many blocks of channels are loaded before they are needed; if any, the features too
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
    rows: tl.constexpr = stencil.generators + stencil.identity
    stacks: tl.constexpr = stacks_of(rows, False)
    stack_count: tl.constexpr = len(stacks)
    c = tl.arange(0, BN)
    # W stays in shared memory all along.
    w = ()
    totals = ()
    for q in tl.static_range(channel_blocks * stack_count):
        w = w + (
            weight_stack(
                weight,
                group,
                q // stack_count,
                stacks[q % stack_count][0],
                stacks[q % stack_count][1],
                stencil,
                channel_order(BN),
                ins,
            ),
        )
        totals = totals + (tl.zeros((CHANNELS * stacks[q % stack_count][1], BN), tl.float32),)

    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    columns = Columns(cotangent, base_of(cotangent, batch, group, channel_blocks * PAIRS), box, z, x)
    f_base = base_of(features, batch, group, ins)
    place = base_of(target, batch, group, ins)
    field = field_of(v, columns, stencil)
    top = as_type(strip, index) * strip_lines
    bottom = tl.minimum(top + strip_lines, box.out[1])
    before = ()
    here = ()
    for k in tl.static_range(channel_blocks):
        before = before + (line_of(columns, top - 1, k, padding),)
        here = here + (line_of(columns, top, k, padding),)
    coming = ()
    for k in tl.static_range(ahead):
        coming = coming + (line_of(columns, top + 1, k, padding),)
    if ahead > 0:
        f = line_of_partner(features, f_base, columns, top, bottom, c, ins)
    for step in range(0, (bottom - top).to(tl.int32)):
        y = top + step
        if ahead > 0:
            f_coming = line_of_partner(features, f_base, columns, y + 1, bottom, c, ins)
        else:
            f = line_of_partner(features, f_base, columns, y, bottom, c, ins)
        total = tl.zeros((BM, BN), tl.float32)
        after = coming
        sums = ()
        for k in tl.static_range(channel_blocks):
            after = after + (
                line_of(columns, y + 1 + (k + ahead) // channel_blocks, (k + ahead) % channel_blocks, padding),
            )
            tiles = row_tiles(columns, field, (before[k], here[k], after[k]), y, k, stencil, 0, rows, narrow)
            for q in tl.static_range(stack_count):
                g = all_beside(tiles, stacks[q][0], stacks[q][1])
                total = tl.dot(permuted(g, warps), w[k * stack_count + q], total)
                sums = sums + (tl.dot(tl.trans(g), f, totals[k * stack_count + q]),)
        totals = sums
        store_line(total, place, y, columns, target, 0, ins, warps)
        before = here
        here = ()
        for k in tl.static_range(channel_blocks):
            here = here + (after[k],)
        coming = ()
        for k in tl.static_range(ahead):
            coming = coming + (after[channel_blocks + k],)
        if ahead > 0:
            f = f_coming

    for q in tl.static_range(channel_blocks * stack_count):
        n = tl.arange(0, CHANNELS * stacks[q % stack_count][1])
        row = stacks[q % stack_count][0] + n // CHANNELS
        o = (q // stack_count) * CHANNELS + n % CHANNELS
        entry = ((as_type(part, tl.int64) * rows + row) * groups + group) * (channel_blocks * CHANNELS) + o
        tl.store(
            strip_sums + entry[:, None] * ins + c[None, :], totals[q], mask=(row < rows)[:, None] & (c < ins)[None, :]
        )
