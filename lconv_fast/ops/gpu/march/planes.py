"""apply for half types on contiguous data, marching along lines: the points of a channel lie side by side.

Blocks of features, channels by points as they come, stand on one another in shared memory as the second factor of
products with W; results are channels by points, too. Affine fields are taken in their basis, with coordinates after the
products: of L_i^T g, with zeros around the grid and h_a the step of x_a,

    (x_b D_a)^T g = -x_b D_a g for b != a,    (x_a D_a)^T g = -x_a D_a g - h_a (g(x + e_a) + g(x - e_a)).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind
from lconv_fast.ops.gpu.boundary import beside
from lconv_fast.ops.gpu.call import Call, Layout
from lconv_fast.ops.gpu.fields import as_type, coordinate
from lconv_fast.ops.gpu.march.activations import CODES, activated
from lconv_fast.ops.gpu.march.apply import Plan
from lconv_fast.ops.gpu.march.basis import basis_for
from lconv_fast.ops.gpu.march.lines import Columns, Stencil
from lconv_fast.ops.gpu.march.mixing import Mixture
from lconv_fast.ops.gpu.march.registers import (
    BLOCK,
    RUN,
    half_sum,
    joined_runs,
    split_runs,
    times_columns,
)
from lconv_fast.ops.gpu.march.way import filled, why_not
from lconv_fast.ops.gpu.tables import width_of
from lconv_fast.ops.gpu.tile.points import base_of
from lconv_fast.ops.gpu.views import AFFINE_BASIS, block, box_of, cdiv

AT_ONCE = 3  # tiles that are written to shared memory together
LEAST_OUTS = 64  # rows of the result of a warpgroup's product


def plan(call: Call) -> Plan | str:
    if reason := why_not(call, channels_last=False):
        return reason
    g = call.geometry
    if g.kind == CoefficientKind.SAMPLED:
        return "coefficients at every point"
    ins, outs = (call.outs, call.ins) if call.transposed else (call.ins, call.outs)
    most = call.table.most_channels[g.ndim]
    if ins > most:
        return f"{ins} channels to sum over are more than {most}"
    entry = call.table.planes.get((g.ndim, width_of(ins // BLOCK), call.transposed))
    if entry is None:
        return f"{ins} channels to sum over spill registers"
    if not filled(call, entry.points):
        return f"lines of {g.spatial[-1]} points leave most of a program's {entry.points} columns empty"
    kind = basis_for(call, entry)
    if isinstance(kind, str):
        return kind
    if kind == AFFINE_BASIS.value and call.transposed and g.padding_mode != PaddingMode.ZEROS:
        return "transposed affine fields in their basis without zeros around the grid"
    stencil = Stencil.of(call, kind, identity=call.identity, transposed=call.transposed)
    bn = max(LEAST_OUTS, block(outs, entry.outs))
    rows = 1 + stencil.generators
    if kind == AFFINE_BASIS.value and g.ndim == 3:
        rows -= 3  # with z among those without a coordinate
    if kind == AFFINE_BASIS.value and call.transposed:
        rows += g.ndim - 1
    channels = 2 * BLOCK if ins % (2 * BLOCK) == 0 else BLOCK
    # All of W, and blocks of features and results.
    shared = 2 * (bn * ins * rows + (AT_ONCE * channels + bn) * entry.points)
    if shared > call.card.shared:
        return f"W takes {shared >> 10} KiB of shared memory, the card gives {call.card.shared >> 10}"
    launch = call.launcher(
        march_planes_kernel,
        entry.warps,
        stencil=stencil,
        has_bias=call.bias,
        has_residual=call.residual is not None,
        keep=bool(call.epilogue and call.epilogue.keep),
        activation=CODES[call.epilogue.activation if call.epilogue else None],
        runs=has_runs(call.source),
        held=entry.held,
        ahead=min(entry.ahead, ins // channels),
        index=call.index,
        channel_blocks=ins // channels,
        CHANNELS=channels,
        at_once=AT_ONCE,
        BM=entry.points,
        BN=bn,
    )
    mixture = Mixture.of(call, kind, 0, call.transposed)
    return Plan(call, entry, launch, mixture, box_of(g), cdiv(g.spatial[-1], entry.points), cdiv(outs, bn))


def has_runs(data: Layout) -> bool:
    """Whether threads load RUN points in a row, which they can shift: then only the ends are loaded once more."""
    return data.aligned and data.shape[-1] % 16 == 0 and all(s % 16 == 0 for s in data.strides[:-1])


def finished_plan(call: Call) -> Plan | str:
    if not (call.batch and call.outs):
        return "there is nothing to compute"
    return plan(call)


@triton.jit
def block_at(columns, z, y, step: tl.constexpr, c, padding: tl.constexpr):
    """Channels c at the points (z, y, x + step), z and y the same for all; zero where there is none:
    (channels, points)."""
    box = columns.box
    z, z_inside = beside(z, box.out[0], padding)
    y, y_inside = beside(y, box.out[1], padding)
    width = tl.where(z_inside & y_inside, box.out[2], 0)
    x = columns.x + step
    if step == 0:  # no column is before the first
        there = x < width
    else:
        x, inside = beside(x, box.out[2], padding)
        there = inside & (x < width)
    return tl.load(places(columns, z, y, x, c), mask=there[None, :], other=0.0)


@triton.jit
def places(columns, z, y, x, c):
    view = columns.view
    offset = z * view.axes[0] + y * view.axes[1] + x * view.axes[2]
    return columns.base + (c * view.channel)[:, None] + offset[None, :]


@triton.jit
def _block_beside(columns, own, y, step: tl.constexpr, c, runs: tl.constexpr, padding: tl.constexpr):
    """Line y, whose channels c `own` is, one point below or above."""
    box = columns.box
    if runs:
        x, inside = beside(columns.x + step, box.out[2], padding)
        # The same places as those of all points, so that a thread has the ends of its own run.
        last = (columns.x & (RUN - 1)) == (RUN - 1 if step == 1 else 0)
        ends = tl.load(places(columns, columns.z, y, x, c), mask=(inside & last)[None, :], other=0.0)
        points = split_runs(own)
        shifted = ()
        if step == -1:
            shifted = shifted + (split_runs(ends)[0],)
        for j in tl.static_range(RUN - 1):
            shifted = shifted + (points[j + 1 if step == 1 else j],)
        if step == 1:
            shifted = shifted + (split_runs(ends)[RUN - 1],)
        found = joined_runs(shifted)
    else:
        found = block_at(columns, columns.z, y, step, c, padding)
    return found


@triton.jit
def line_ends(columns, lines, y, c, runs: tl.constexpr, stencil: tl.constexpr):
    """For each axis the features one step below and above, of channels c, from three lines."""
    padding: tl.constexpr = stencil.padding
    ends = (
        (lines[0], lines[2]),
        (
            _block_beside(columns, lines[1], y, -1, c, runs, padding),
            _block_beside(columns, lines[1], y, 1, c, runs, padding),
        ),
    )
    if stencil.ndim == 3:
        z = columns.z
        ends = ((block_at(columns, z - 1, y, 0, c, padding), block_at(columns, z + 1, y, 0, c, padding)),) + ends
    return ends


@triton.jit
def block_of_row(columns, lines, r: tl.constexpr, y, c, runs: tl.constexpr, stencil: tl.constexpr):
    """f, or f at a tap: one of the three lines, shifted, or from the first-level cache."""
    if r == 0:
        f = lines[1]
    else:
        t0: tl.constexpr = stencil.taps[r - 1][0]
        t1: tl.constexpr = stencil.taps[r - 1][1]
        t2: tl.constexpr = stencil.taps[r - 1][2]
        if t0 == 0 and t2 == 0 and t1 * t1 == 1:
            f = lines[1 + t1]
        elif t0 == 0 and t1 == 0 and t2 * t2 == 1:
            f = _block_beside(columns, lines[1], y, t2, c, runs, stencil.padding)
        else:
            f = block_at(columns, columns.z + t0, y + t1, t2, c, stencil.padding)
    return f


@triton.jit
def _weights(weight, group, row, o, c, outs):
    """W of the row of each output channel o: (o, c)."""
    places = group * weight.group + row * weight.row + o * weight.out
    inside = (o < outs)[:, None] & (c >= 0)[None, :]
    return tl.load(weight.data + places[:, None] + (c * weight.into)[None, :], mask=inside, other=0.0)


@triton.jit
def _difference_weights(weight, group, a: tl.constexpr, m, c, z, first, outs, n: tl.constexpr, BN: tl.constexpr):
    """For D_a f: without a coordinate, and times z where there is one; and on it for y: (2 outs, c)."""
    o = first + m % BN
    found = _weights(weight, group, 1 + a * (n + 1) + tl.where(m < BN, n, n - 2), o, c, outs)
    if n == 3:
        of_z = _weights(weight, group, 1 + a * (n + 1), tl.where(m < BN, o, outs), c, outs)
        found = (found.to(tl.float32) + z * of_z.to(tl.float32)).to(found.dtype)
    return found


@triton.jit
def _both(sums, BN: tl.constexpr):
    """(2 outs, points) to twice (outs, points)."""
    return tl.split(tl.permute(tl.reshape(sums, (2, BN, sums.shape[1])), (1, 2, 0)))


@triton.jit(do_not_specialize=["strips", "strip_lines"])
def march_planes_kernel(
    source,
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
    runs: tl.constexpr,  # whether a thread has RUN points in a row
    held: tl.constexpr,  # of the lines y - 1 and y in registers; others are read again, from the first-level cache
    ahead: tl.constexpr,  # how many blocks of channels are loaded before they are needed
    index: tl.constexpr,
    channel_blocks: tl.constexpr,
    CHANNELS: tl.constexpr,  # of a block
    at_once: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    program = tl.program_id(0)
    block, program = program % blocks, program // blocks
    group, program = program % groups, program // groups
    x_tile, program = program % x_tiles, program // x_tiles
    strip, program = program % strips, program // strips
    z, batch = as_type(program % box.out[0], index), program // box.out[0]

    narrow: tl.constexpr = target.data.dtype.element_ty
    padding: tl.constexpr = stencil.padding
    n: tl.constexpr = stencil.ndim
    rows: tl.constexpr = stencil.generators + stencil.identity
    post: tl.constexpr = stencil.kind == AFFINE_BASIS
    x = as_type(x_tile, index) * BM + tl.arange(0, BM)
    columns = Columns(source, base_of(source, batch, group, channel_blocks * CHANNELS), box, z, x)
    channels = ()
    for k in tl.static_range(channel_blocks):
        channels = channels + ((k * CHANNELS + tl.arange(0, CHANNELS)).to(index),)
    o = block * BN + tl.arange(0, BN)

    # W stays in shared memory all along.
    w = ()
    w_x = ()
    w_own = ()
    w_ends = ()
    if post:
        z_coordinate = coordinate(v, (z, z, x), box, 0, tl.float32)
        x_coordinate = coordinate(v, (x, x, x), box, 2, tl.float32)
        h = as_type(v.inverse_scale[0], tl.float32) + v.inverse_scale[1]
    for k in tl.static_range(channel_blocks):
        c = channels[k]
        if post:
            m = tl.arange(0, 2 * BN)
            for a in tl.static_range(n):
                w = w + (_difference_weights(weight, group, a, m, c, z_coordinate, block * BN, outs, n, BN),)
                w_x = w_x + (_weights(weight, group, 1 + a * (n + 1) + n - 1, o, c, outs),)
            if stencil.transposed:
                for a in tl.static_range(n - 1):
                    of_ends = _weights(weight, group, 1 + a * (n + 2), o, c, outs)
                    w_ends = w_ends + ((h * of_ends.to(tl.float32)).to(narrow),)
            if stencil.identity:
                w_own = w_own + (_weights(weight, group, 0, o, c, outs),)
        else:
            for r in tl.static_range(rows):
                w = w + (_weights(weight, group, r, o, c, outs),)
    start = tl.zeros((BN, BM), tl.float32)
    if has_bias:
        start += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(tl.float32)[:, None]
    place = base_of(target, batch, group, outs)
    if has_residual:
        residual_place = base_of(residual, batch, group, outs)
    if keep:
        kept_place = base_of(kept, batch, group, outs)
    stored = (o < outs)[:, None] & (x < box.out[2])[None, :]
    wide_o = o.to(index)

    top = as_type(strip, index) * strip_lines
    bottom = tl.minimum(top + strip_lines, box.out[1])
    before = ()
    here = ()
    coming = ()
    for k in tl.static_range(channel_blocks):
        if held == 2:
            before = before + (block_at(columns, z, top - 1, 0, channels[k], padding),)
        if held > 0:
            here = here + (block_at(columns, z, top, 0, channels[k], padding),)
    for k in tl.static_range(ahead):
        coming = coming + (block_at(columns, z, top + 1, 0, channels[k], padding),)
    for step in range(0, (bottom - top).to(tl.int32)):
        y = top + step
        total = start
        if post:
            sums = tl.zeros((2 * BN, BM), tl.float32)
        after = coming
        owns = ()
        for k in tl.static_range(channel_blocks):
            after = after + (
                block_at(
                    columns,
                    z,
                    y + 1 + (k + ahead) // channel_blocks,
                    0,
                    channels[(k + ahead) % channel_blocks],
                    padding,
                ),
            )
            owns = owns + (here[k] if held > 0 else block_at(columns, z, y, 0, channels[k], padding),)
            below = before[k] if held == 2 else block_at(columns, z, y - 1, 0, channels[k], padding)
            lines = (below, owns[k], after[k])
            # Several tiles together: then they are in shared memory by one barrier.
            if post:
                ends = line_ends(columns, lines, y, channels[k], runs, stencil)
                differences = ()
                for a in tl.static_range(n):
                    differences = differences + (half_sum(ends[a][1], ends[a][0], -1.0, stencil.ptx),)
                for a in tl.static_range(n):
                    sums = tl.dot(w[k * n + a], differences[a], sums)
                times_x = ()
                for a in tl.static_range(n):
                    f = times_columns(differences[a], x_coordinate, stencil.ptx)
                    if stencil.transposed and a == n - 1:
                        around = half_sum(ends[a][1], ends[a][0], 1.0, stencil.ptx)
                        f = half_sum(f, times_columns(around, h + x * 0.0, stencil.ptx), 1.0, stencil.ptx)
                    times_x = times_x + (f,)
                for a in tl.static_range(n):
                    total = tl.dot(w_x[k * n + a], times_x[a], total)
                if stencil.transposed:
                    for a in tl.static_range(n - 1):
                        around = half_sum(ends[a][1], ends[a][0], 1.0, stencil.ptx)
                        total = tl.dot(w_ends[k * (n - 1) + a], around, total)
                if stencil.identity:
                    total = tl.dot(w_own[k], owns[k], total)
            else:
                for first in tl.static_range(0, rows, at_once):
                    tiles = ()
                    for r in tl.static_range(first, min(first + at_once, rows)):
                        tiles = tiles + (block_of_row(columns, lines, r, y, channels[k], runs, stencil),)
                    for r in tl.static_range(len(tiles)):
                        total = tl.dot(w[k * rows + first + r], tiles[r], total)
        if post:
            plain, of_y = _both(sums, BN)
            total += plain + coordinate(v, (z, y, x), box, 1, tl.float32) * of_y
        if has_residual:
            offset = z * residual.axes[0] + y * residual.axes[1] + x * residual.axes[2]
            at = residual_place + (wide_o * residual.channel)[:, None] + offset[None, :]
            total += tl.load(at, mask=stored, other=0.0).to(tl.float32)
        if keep:
            offset = z * kept.axes[0] + y * kept.axes[1] + x * kept.axes[2]
            at = kept_place + (wide_o * kept.channel)[:, None] + offset[None, :]
            tl.store(at, total.to(narrow), mask=stored)
        offset = z * target.axes[0] + y * target.axes[1] + x * target.axes[2]
        at = place + (wide_o * target.channel)[:, None] + offset[None, :]
        tl.store(at, activated(total, activation).to(narrow), mask=stored)
        if held == 2:
            before = here
        if held > 0:
            here = ()
            for k in tl.static_range(channel_blocks):
                here = here + (after[k],)
        coming = ()
        for k in tl.static_range(ahead):
            coming = coming + (after[channel_blocks + k],)
