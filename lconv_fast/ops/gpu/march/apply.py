"""apply for half types, marching along lines.

A program keeps BM columns of three lines in registers and loads one new line a step. The blocks of features lie where
the matrix instructions want their first factor, once points and channels are permuted: it never passes through shared
memory, where all of W lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import CoefficientKind, empty_like_format
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type, coordinate
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.activations import CODES, activated
from lconv_fast.ops.gpu.march.basis import basis_for
from lconv_fast.ops.gpu.march.lines import Columns, Stencil, field_of, keep_behind, line_ends, line_of, row_tiles
from lconv_fast.ops.gpu.march.mixing import Mixture
from lconv_fast.ops.gpu.march.registers import (
    BLOCK,
    PAIRS,
    all_beside,
    channel_order,
    halves,
    in_blocks,
    load_blocks,
    pair_difference,
    permuted,
    point_order,
    stacks_of,
    store_blocks,
    store_line,
)
from lconv_fast.ops.gpu.march.way import filled, why_not
from lconv_fast.ops.gpu.march.weights import difference_weight, own_weight, tap_weight, weight_stack
from lconv_fast.ops.gpu.tables import March, width_of
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import (
    AFFINE_BASIS,
    TAP_BASIS,
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
    mixture: Mixture | None  # in a basis
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
        self,
        coordinates: Coordinates,
        input: Tensor,
        weight: Tensor,
        coefficients: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
    ) -> Any:
        """The result; of a call with an epilogue, and what the activation was given, empty if that is not kept."""
        call = self.call
        g, device = call.geometry, input.device
        outs = call.ins if call.transposed else call.outs
        output = empty_like_format(input, outs * g.groups, g.spatial)
        kept = torch.empty_like(output) if call.epilogue and call.epilogue.keep else None
        v = coefficients_view(coefficients, g.kind, coordinates)
        if self.mixture:
            weight = self.mixture.weight(weight, v)
            v = coordinates_view(weight, coordinates)
        before = (
            pairs_view(input) if input.stride(1) == 1 else data_view(input),
            weight_view(weight, g.groups, call.transposed),
            v,
            bias,
            data_view(output),
            None if residual is None else data_view(residual),
            None if kept is None else data_view(kept),
            self.box,
            g.groups,
            outs,
            self.x_tiles,
            self.blocks,
        )
        places = self.launch.places(call.card, device, (*before, 1, 1))
        strips = self.strips(places or self.entry.places)
        self.launch(strips.programs, device, *before, strips.number, strips.lines)
        if call.epilogue is None:
            return output
        return output, input.new_empty(0) if kept is None else kept


def plan(call: Call) -> Plan | str:
    if reason := why_not(call):
        return reason
    g, card = call.geometry, call.card
    ins, outs = (call.outs, call.ins) if call.transposed else (call.ins, call.outs)
    most = call.table.most_channels[g.ndim]
    if ins > most:
        return f"{ins} channels to sum over are more than {most}"
    reason = f"{ins} channels to sum over spill registers"
    for entry in _entries(call, width_of(ins // BLOCK)):
        kind = basis_for(call, entry)
        if not filled(call, entry.points):
            reason = f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
            continue
        if isinstance(kind, str):
            reason = kind
            continue
        stencil = Stencil.of(call, kind, identity=call.identity, transposed=call.transposed)
        bn, rows = block(outs, entry.outs), stencil.generators + stencil.identity
        # All of W.
        exact = stencil.kind == TAP_BASIS.value or not (entry.apart and call.transposed)
        stacked = sum(size for _, size in stacks_of(rows, exact))
        shared = 2 * bn * ins * stacked
        if shared > card.shared:
            reason = f"W takes {shared >> 10} KiB of shared memory, the card gives {card.shared >> 10}"
        else:
            break
    else:
        return reason
    launch = call.launcher(
        march_apply_kernel,
        entry.warps,
        stencil=stencil,
        has_bias=call.bias,
        has_residual=call.residual is not None,
        keep=bool(call.epilogue and call.epilogue.keep),
        activation=CODES[call.epilogue.activation if call.epilogue else None],
        held=entry.held,
        ahead=min(entry.ahead, ins // BLOCK),
        apart=entry.apart,
        index=call.index,
        channel_blocks=ins // BLOCK,
        warps=entry.warps,
        BM=entry.points,
        BN=bn,
    )
    mixture = Mixture.of(call, kind, 0, call.transposed) if stencil.in_basis else None
    return Plan(call, entry, launch, mixture, box_of(g), cdiv(g.spatial[-1], entry.points), cdiv(outs, bn))


def _entries(call: Call, width: int) -> Sequence[March]:
    g, table = call.geometry, call.table
    if g.kind == CoefficientKind.CONSTANT:
        return table.taps.get((g.ndim, width), ())
    return table.marches[g.ndim, width, call.transposed]


def finished_plan(call: Call) -> Plan | str:
    if not (call.batch and call.outs):
        return "there is nothing to compute"
    if call.residual is not None and call.residual.strides[1] != 1:
        return "the residual is not channels-last"
    return plan(call)


@triton.constexpr_function
def coordinates_after(stencil):
    """Whether products are with differences, and coordinates multiply their sums."""
    return stencil.kind == AFFINE_BASIS.value and not stencil.transposed


@triton.jit
def side_by_side(pairs, first: tl.constexpr, size: tl.constexpr, narrow: tl.constexpr):
    tiles = ()
    for k in tl.static_range(len(pairs)):
        tiles = tiles + (halves(pairs[k], narrow),)
    return all_beside(tiles, first, size)


@triton.jit(do_not_specialize=["strips", "strip_lines"])
def march_apply_kernel(
    source,  # pairs of channels, int32
    weight,
    v,
    bias,
    target,
    residual,  # as the target; or None
    kept,  # for what the activation is given, as the target; or None
    box,
    groups,
    outs,
    x_tiles,
    blocks,
    strips,
    strip_lines,
    stencil: tl.constexpr,
    has_bias: tl.constexpr,
    has_residual: tl.constexpr,
    keep: tl.constexpr,
    activation: tl.constexpr,
    held: tl.constexpr,  # of the lines y - 1 and y in registers; others are read again, from the first-level cache
    ahead: tl.constexpr,  # how many blocks of channels are loaded before they are needed
    apart: tl.constexpr,  # whether the loads of a block wait for the products of the one before
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
    n: tl.constexpr = stencil.ndim
    rows: tl.constexpr = stencil.generators + stencil.identity
    post: tl.constexpr = coordinates_after(stencil)
    together: tl.constexpr = (
        2 if post and channel_blocks % 2 == 0 and not apart else 1
    )  # blocks whose tiles make one product
    groups_of_blocks: tl.constexpr = channel_blocks // together
    taps: tl.constexpr = stencil.kind == TAP_BASIS
    # Of f at taps the tiles of all channels stand in a row, which makes fewer products.
    tile_count: tl.constexpr = n * together if post else (rows * channel_blocks if taps else rows)
    stacks: tl.constexpr = stacks_of(tile_count, taps or not (apart and stencil.transposed))
    stack_count: tl.constexpr = len(stacks)
    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    columns = Columns(source, base_of(source, batch, group, channel_blocks * PAIRS), box, as_type(z, index), x)
    o = block * BN + channel_order(BN)

    # W stays in shared memory all along.
    w = ()
    w_own = ()
    if post:
        for k in tl.static_range(groups_of_blocks):
            if stencil.identity:
                w_own = w_own + (own_weight(weight, group, k * together, together, o, outs),)
            for q in tl.static_range(stack_count):
                for b in tl.static_range(n + 1):
                    w = w + (
                        difference_weight(
                            weight,
                            group,
                            k * together,
                            stacks[q][0],
                            stacks[q][1],
                            b,
                            together,
                            stencil,
                            o,
                            outs,
                        ),
                    )
        field = ()
    elif taps:
        for q in tl.static_range(stack_count):
            w = w + (tap_weight(weight, group, stacks[q][0], stacks[q][1], rows, o, outs),)
        field = ()
    else:
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
        field = field_of(v, columns, stencil)
    start = tl.zeros((BM, BN), tl.float32)
    # Where registers are few, the bias is loaded again for each line, and added last.
    if has_bias and not apart:
        start += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
    place = base_of(target, batch, group, outs)
    if has_residual:
        residual_place = base_of(residual, batch, group, outs)
    if keep:
        kept_place = base_of(kept, batch, group, outs)

    top = as_type(strip, index) * strip_lines
    bottom = tl.minimum(top + strip_lines, box.out[1])
    before = ()
    here = ()
    coming = ()
    for k in tl.static_range(channel_blocks):
        if held == 2:
            before = before + (line_of(columns, top - 1, k, padding),)
        if held > 0:
            here = here + (line_of(columns, top, k, padding),)
    for k in tl.static_range(ahead):
        coming = coming + (line_of(columns, top + 1, k, padding),)
    for step in range(0, (bottom - top).to(tl.int32)):
        y = top + step
        total = start
        if has_residual:
            added = load_blocks(residual_place, y, columns, residual, block * BN, outs, BN)
        sums = ()
        if post:
            for _ in tl.static_range(n):
                sums = sums + (tl.zeros((BM, BN), tl.float32),)
        after = coming
        own = ()
        differences = ()
        tiles = ()
        for k in tl.static_range(channel_blocks):
            after = after + (
                line_of(columns, y + 1 + (k + ahead) // channel_blocks, (k + ahead) % channel_blocks, padding),
            )
            own = own + (here[k] if held > 0 else line_of(columns, y, k, padding),)
            below = before[k] if held == 2 else line_of(columns, y - 1, k, padding)
            if post:
                ends = line_ends(columns, below, after[k], y, k, stencil)
                for a in tl.static_range(n):
                    differences = differences + (pair_difference(ends[a][1], ends[a][0], narrow, stencil.ptx),)
                if k % together == together - 1:
                    for q in tl.static_range(stack_count):
                        f = side_by_side(differences, k // together * together * n + stacks[q][0], stacks[q][1], narrow)
                        f = permuted(f, warps)
                        more = ()
                        for b in tl.static_range(n):
                            more = more + (tl.dot(f, w[(k // together * stack_count + q) * (n + 1) + b], sums[b]),)
                        sums = more
                        total = tl.dot(f, w[(k // together * stack_count + q) * (n + 1) + n], total)
                    if stencil.identity:
                        f = side_by_side(own, k - together + 1, together, narrow)
                        total = tl.dot(permuted(f, warps), w_own[k // together], total)
            elif taps:
                tiles = tiles + row_tiles(columns, field, (below, own[k], after[k]), y, k, stencil, 0, rows, narrow)
                for q in tl.static_range(stack_count):
                    if (stacks[q][0] + stacks[q][1] - 1) // rows == k:
                        f = permuted(all_beside(tiles, stacks[q][0], stacks[q][1]), warps)
                        total = tl.dot(f, w[q], total)
            else:
                tiles = row_tiles(columns, field, (below, own[k], after[k]), y, k, stencil, 0, rows, narrow)
                for q in tl.static_range(stack_count):
                    f = permuted(all_beside(tiles, stacks[q][0], stacks[q][1]), warps)
                    total = tl.dot(f, w[k * stack_count + q], total)
            if apart:
                keep_behind(step, stencil.ptx and channel_blocks <= 4 and not stencil.transposed)
        if post:
            x_row = as_type(x_tile, index) * BM + point_order(BM, warps)
            for b in tl.static_range(n):
                factor = coordinate(v, (columns.z, y, x_row), box, b + 3 - n, tl.float32)
                total += (factor[:, None] if b == n - 1 else factor) * sums[b]
        if has_bias and apart:
            total += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[None, :]
        if has_residual or keep or activation != 0:
            results = in_blocks(total, warps)
            if has_residual:
                more = ()
                for k in tl.static_range(len(results)):
                    more = more + (results[k] + added[k].to(tl.float32),)
                results = more
            if keep:
                store_blocks(results, kept_place, y, columns, kept, block * BN, outs)
            more = ()
            for k in tl.static_range(len(results)):
                more = more + (activated(results[k], activation),)
            store_blocks(more, place, y, columns, target, block * BN, outs)
        else:
            store_line(total, place, y, columns, target, block * BN, outs, warps)
        if held == 2:
            before = here
        if held > 0:
            here = ()
            for k in tl.static_range(channel_blocks):
                here = here + (after[k],)
        coming = ()
        for k in tl.static_range(ahead):
            coming = coming + (after[channel_blocks + k],)
