"""apply for half types and central differences of order 2, marching along lines.

A program keeps BM columns of three lines in registers and loads one new line a step. The blocks of features lie where
the matrix instructions want their first factor, once points and channels are permuted: it never passes through shared
memory, where all of W lies.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import empty_like_format
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.basis import basis_size, basis_weight, in_basis, mixing
from lconv_fast.ops.gpu.march.lines import (
    BLOCK,
    PAIRS,
    Columns,
    Stencil,
    all_beside,
    field_of,
    line_of,
    permuted,
    point_order,
    row_tiles,
    stacks_of,
    weight_stack,
)
from lconv_fast.ops.gpu.march.way import filled, steps_of
from lconv_fast.ops.gpu.tables import March, width_of
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import (
    Box,
    Coordinates,
    block,
    box_of,
    cdiv,
    coefficients_view,
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
    in_basis: bool
    box: Box
    x_tiles: int
    blocks: int

    def strips(self, places: int) -> Strips:
        """For so many programs on a multiprocessor."""
        call = self.call
        planes, lines, _ = padded(call.geometry.spatial, 1)
        others = self.x_tiles * self.blocks * call.geometry.groups * call.batch * planes
        return strips_of(lines, others, places * call.card.multiprocessors, self.entry.least_lines)

    def run(
        self, coordinates: Coordinates, input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None
    ) -> Tensor:
        call = self.call
        g, device = call.geometry, input.device
        outs = call.ins if call.transposed else call.outs
        output = empty_like_format(input, outs * g.groups, g.spatial)
        if self.in_basis:
            weight = basis_weight(weight, mixing(coefficients, self.stencil.steps, call.transposed))
        before = (
            pairs_view(input),
            weight_view(weight, g.groups, call.transposed),
            coefficients_view(coefficients, g.kind, coordinates),
            bias,
            data_view(output),
            self.box,
            g.groups,
            outs,
            self.x_tiles,
            self.blocks,
        )
        places = self.launch.places(call.card, device, (*before, 1, 1))
        strips = self.strips(places or self.entry.places)
        self.launch(strips.programs, device, *before, strips.number, strips.lines)
        return output


def plan(call: Call) -> Plan | str:
    steps = steps_of(call)
    if isinstance(steps, str):
        return steps
    g, card = call.geometry, call.card
    ins, outs = (call.outs, call.ins) if call.transposed else (call.ins, call.outs)
    most = call.table.most_channels[g.ndim]
    if ins > most:
        return f"{ins} channels to sum over are more than {most}"
    reason = ""
    for entry in call.table.marches[g.ndim, width_of(ins // BLOCK), call.transposed]:
        basis = in_basis(call, entry)
        bn, rows = block(outs, entry.outs), (basis_size(g) if basis else call.generators) + call.identity
        # All of W, and the result on its way out.
        stacked = sum(size for _, size in stacks_of(rows, entry.held))
        shared = 2 * bn * (stacked * ins + entry.points)
        if isinstance(basis, str):
            reason = basis
        elif shared > card.shared:
            reason = f"W takes {shared >> 10} KiB of shared memory, the card gives {card.shared >> 10}"
        elif not filled(call, entry.points):
            reason = f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
        else:
            break
    else:
        return reason
    stencil = Stencil.of(g, steps, rows - call.identity, basis, call.transposed, call.identity)
    launch = call.launcher(
        march_apply_kernel,
        entry.warps,
        stencil=stencil,
        has_bias=call.bias,
        held=entry.held,
        index=call.index,
        channel_blocks=ins // BLOCK,
        warps=entry.warps,
        BM=entry.points,
        BN=bn,
    )
    return Plan(call, entry, launch, stencil, basis, box_of(g), cdiv(g.spatial[-1], entry.points), cdiv(outs, bn))


@triton.jit(do_not_specialize=["strips", "strip_lines"])
def march_apply_kernel(
    source,  # pairs of channels, int32
    weight,
    v,
    bias,
    target,
    box,
    groups,
    outs,
    x_tiles,
    blocks,
    strips,
    strip_lines,
    stencil: tl.constexpr,
    has_bias: tl.constexpr,
    held: tl.constexpr,  # whether lines y - 1 and y stay in registers, or are read again, from the first-level cache
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
    rows: tl.constexpr = stencil.generators + stencil.identity
    stacks: tl.constexpr = stacks_of(rows, held)
    stack_count: tl.constexpr = len(stacks)
    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    base = base_of(source, batch, group, channel_blocks * PAIRS)
    columns = Columns(source, base, box, as_type(z, index), x)
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
                stencil,
                o,
                outs,
            ),
        )
    x_out = as_type(x_tile, index) * BM + point_order(BM, warps)
    start = tl.zeros((BM, BN), tl.float32)
    # Where registers are few, the bias is loaded again for each line, and added last.
    if has_bias and held:
        start += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    place = base_of(target, batch, group, outs)

    field = field_of(v, columns, stencil)
    top = as_type(strip, index) * strip_lines
    bottom = tl.minimum(top + strip_lines, box.out[1])
    before = ()
    here = ()
    if held:
        for k in tl.static_range(channel_blocks):
            before = before + (line_of(columns, top - 1, k, padding),)
            here = here + (line_of(columns, top, k, padding),)
    for step in range(0, (bottom - top).to(tl.int32)):
        y = top + step
        total = start
        after = ()
        for k in tl.static_range(channel_blocks):
            after = after + (line_of(columns, y + 1, k, padding),)
            lines = (
                before[k] if held else line_of(columns, y - 1, k, padding),
                here[k] if held else line_of(columns, y, k, padding),
                after[k],
            )
            tiles = row_tiles(columns, field, lines, y, k, stencil, 0, rows, narrow)
            for q in tl.static_range(stack_count):
                f = permuted(all_beside(tiles, stacks[q][0], stacks[q][1]), warps)
                total = tl.dot(f, w[k * stack_count + q], total)
            if not held:
                # Keeps the loads of the next block, which would take registers, behind the products of this one.
                tl.debug_barrier()
        if has_bias and not held:
            total += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
        offset = columns.z * target.axes[0] + y * target.axes[1] + x_out * target.axes[2]
        tl.store(
            place + offset[:, None] + o[None, :] * target.channel,
            total.to(narrow),
            mask=(x_out < box.out[2])[:, None] & (o < outs)[None, :],
        )
        if held:
            before = here
            here = after
