"""Lines of the image in registers: what the marching kernels share, for half types.

Channels come as pairs in int32, 32 channels (a block) at a time, in 16-byte loads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lconv_fast.ops.gpu.boundary import beside
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type, coefficient, coordinate
from lconv_fast.ops.gpu.march.basis import basis_size, members_of
from lconv_fast.ops.gpu.march.registers import PAIRS, halves, pair_difference, unpacked
from lconv_fast.ops.gpu.march.way import steps_of
from lconv_fast.ops.gpu.views import AFFINE, AFFINE_BASIS, TAP_BASIS, padded

MOST_INTERCEPTS = 18  # of an affine field, kept in registers


class Stencil(NamedTuple):
    """Compile-time: what the generators are made of, and what is asked of them."""

    steps: tuple[float, ...]  # without a basis, weight of f(x + e_a) for each component; f(x - e_a) has its negative
    generators: int  # n_L, or the size of the basis
    ndim: int
    kind: int  # a CoefficientKind, or a basis
    padding: int
    transposed: bool
    identity: int  # 1 if f itself is the first of the rows, else 0
    ptx: bool  # whether kernels may hold instructions of PTX
    taps: tuple[tuple[int, ...], ...] = ()  # of constant stencils, but that of f itself; three offsets each

    @staticmethod
    def of(call: Call, kind: int, *, identity: bool, transposed: bool) -> Stencil:
        g = call.geometry
        in_taps = kind == TAP_BASIS.value
        own_kind = kind == g.kind
        steps = (steps_of(g) if own_kind else None) or ()
        generators = call.generators if own_kind else basis_size(g, kind)
        # The transpose of a shift goes the other way, where the padding inverts.
        side = -1 if transposed else 1
        taps = tuple(padded([side * t for t in offset], 0) for offset in members_of(g)) if in_taps else ()
        numbers = (g.ndim, kind, int(g.padding_mode), transposed, int(identity or in_taps), call.card.ptx)
        return Stencil(steps, generators, *numbers, taps)

    @property
    def in_basis(self) -> bool:
        return not self.steps


class Columns(NamedTuple):
    """Columns of one plane, example and group, in which a program marches from line to line."""

    view: Any  # Data, in pairs of channels
    base: Any  # where the example's and group's numbers begin
    box: Any
    z: Any
    x: Any


class Field(NamedTuple):
    """v(x) in a program's columns. Affine, the step along a times v[i, a] is intercept + slope * y where kept."""

    v: Any  # Coefficients
    intercepts: Any  # (points,) for every [i, a]; transposed two each, for the points one step below and above along a
    slopes: Any  # () for every [i, a]


@triton.jit
def keep_behind(step, ptx: tl.constexpr):
    """Keeps the loads that follow, which would take registers, behind the products before."""
    if ptx:
        tl.inline_asm_elementwise(
            "bar.warp.sync 0xffffffff; mov.b32 $0, $1;", "=r,r", [step], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        tl.debug_barrier()


@triton.jit
def _neighbour(i, step: tl.constexpr, size, padding: tl.constexpr):
    i, _ = beside(i + step, size, padding)
    return i


@triton.jit
def _line_at(columns, z, y, x, k: tl.constexpr, padding: tl.constexpr):
    """Block k of the channels at the points (z, y, x), z and y the same for all; zero where there is none."""
    view, box = columns.view, columns.box
    z, z_inside = beside(z, box.out[0], padding)
    y, y_inside = beside(y, box.out[1], padding)
    x, x_inside = beside(x, box.out[2], padding)
    c = k * PAIRS + tl.arange(0, PAIRS)
    there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
    offset = z * view.axes[0] + y * view.axes[1] + x * view.axes[2]
    return tl.load(columns.base + offset[:, None] + c[None, :], mask=there[:, None], other=0)


@triton.jit
def line_of(columns, y, k: tl.constexpr, padding: tl.constexpr):
    """Line y of the columns, block k of the channels."""
    return _line_at(columns, columns.z, y, columns.x, k, padding)


@triton.jit
def line_of_partner(view, base, columns, y, bottom, c, channels):
    """Line y, as far as `bottom`, of a tensor that is read without taps: (points, channels)."""
    x = columns.x
    offset = columns.z * view.axes[0] + y * view.axes[1] + x * view.axes[2]
    there = x < tl.where(y < bottom, columns.box.out[2], 0)
    return tl.load(
        base + offset[:, None] + c[None, :] * view.channel, mask=there[:, None] & (c < channels)[None, :], other=0.0
    )


@triton.constexpr_function
def _has_intercepts(kind, generators, ndim, transposed):
    return kind == AFFINE.value and generators * ndim * (2 if transposed else 1) <= MOST_INTERCEPTS


@triton.jit
def _intercept(v, columns, i: tl.constexpr, a: tl.constexpr, step: tl.constexpr, stencil: tl.constexpr):
    """steps[a] times v[i, a] of an affine field where y is the centre, `step` further along axis a of the grid."""
    n: tl.constexpr = stencil.ndim
    axis: tl.constexpr = a + 3 - n
    box = columns.box
    entry = v.data + as_type(i, tl.int64) * v.generator + a * v.component
    value = tl.load(entry + n * v.axes[0]).to(tl.float32)
    if n == 3:
        z = _neighbour(columns.z, step if axis == 0 else 0, box.out[0], stencil.padding)
        value += tl.load(entry).to(tl.float32) * coordinate(v, (z, z, z), box, 0, tl.float32)
    x = _neighbour(columns.x, step if axis == 2 else 0, box.out[2], stencil.padding)
    along_x = tl.load(entry + (n - 1) * v.axes[0]).to(tl.float32)
    return stencil.steps[a] * (value + along_x * coordinate(v, (x, x, x), box, 2, tl.float32))


@triton.jit
def field_of(v, columns, stencil: tl.constexpr):
    intercepts = ()
    slopes = ()
    count: tl.constexpr = stencil.generators
    n: tl.constexpr = stencil.ndim
    if _has_intercepts(stencil.kind, stencil.generators, stencil.ndim, stencil.transposed):
        for i in tl.static_range(count):
            for a in tl.static_range(n):
                if stencil.transposed:
                    low = _intercept(v, columns, i, a, -1, stencil)
                    high = _intercept(v, columns, i, a, 1, stencil)
                    intercepts = intercepts + (low, high)
                else:
                    intercepts = intercepts + (_intercept(v, columns, i, a, 0, stencil),)
                entry = v.data + as_type(i, tl.int64) * v.generator + a * v.component
                slopes = slopes + (stencil.steps[a] * tl.load(entry + (n - 2) * v.axes[0]).to(tl.float32),)
    return Field(v, intercepts, slopes)


@triton.jit
def end_coefficient(field, columns, y, i: tl.constexpr, a: tl.constexpr, end: tl.constexpr, stencil: tl.constexpr):
    """The step along a times v[i, a] at a point, transposed at its neighbour below (end 0) or above (1) along a.

    Any number where there is no point: its features are zero.
    """
    axis: tl.constexpr = a + 3 - stencil.ndim
    step: tl.constexpr = (2 * end - 1) if stencil.transposed else 0
    box = columns.box
    if _has_intercepts(stencil.kind, stencil.generators, stencil.ndim, stencil.transposed):
        k: tl.constexpr = i * stencil.ndim + a
        y_end = _neighbour(y, step if axis == 1 else 0, box.out[1], stencil.padding)
        intercept = field.intercepts[2 * k + end if stencil.transposed else k]
        return intercept + field.slopes[k] * coordinate(field.v, (y_end, y_end, y_end), box, 1, tl.float32)
    else:
        z, z_inside = beside(columns.z + (step if axis == 0 else 0), box.out[0], stencil.padding)
        y, y_inside = beside(y + (step if axis == 1 else 0), box.out[1], stencil.padding)
        x, x_inside = beside(columns.x + (step if axis == 2 else 0), box.out[2], stencil.padding)
        there = x_inside & (x < tl.where(z_inside & y_inside, box.out[2], 0))
        return stencil.steps[a] * coefficient(field.v, i, a, (z, y, x), there, box, stencil, tl.float32)


@triton.jit
def _basis_tile(b: tl.constexpr, a: tl.constexpr, ends, difference, v, columns, y, stencil: tl.constexpr):
    """x_b D_a f, or D_a f where b = n. Transposed its negative, -(x_b D_a)^T g, so that most of it is the same."""
    n: tl.constexpr = stencil.ndim
    axis: tl.constexpr = b + 3 - n
    padding: tl.constexpr = stencil.padding
    box, x = columns.box, columns.x
    if b == n:
        f = difference
    elif axis == 2:
        if stencil.transposed and a == b:
            left, right = _neighbour(x, -1, box.out[2], padding), _neighbour(x, 1, box.out[2], padding)
            low = coordinate(v, (left, left, left), box, 2, tl.float32)
            high = coordinate(v, (right, right, right), box, 2, tl.float32)
            f = high[:, None] * ends[1] - low[:, None] * ends[0]
        else:
            f = coordinate(v, (x, x, x), box, 2, tl.float32)[:, None] * difference
    else:
        if axis == 0:
            at, size = columns.z, box.out[0]
        else:
            at, size = y, box.out[1]
        if stencil.transposed and a == b:
            low, high = _neighbour(at, -1, size, padding), _neighbour(at, 1, size, padding)
            f = coordinate(v, (high, high, x), box, axis, tl.float32) * ends[1]
            f -= coordinate(v, (low, low, x), box, axis, tl.float32) * ends[0]
        else:
            f = coordinate(v, (at, at, x), box, axis, tl.float32) * difference
    return f


@triton.jit
def _generator_tile(i: tl.constexpr, ends, differences, field, columns, y, stencil: tl.constexpr):
    """L_i f (L_i^T g, if transposed) on a line for a block of channels, from both ends of every axis."""
    n: tl.constexpr = stencil.ndim
    if stencil.kind == AFFINE_BASIS:
        a: tl.constexpr = i // (n + 1)
        f = _basis_tile(i % (n + 1), a, ends[a], differences[a], field.v, columns, y, stencil)
    else:
        for a in tl.static_range(n):
            low = end_coefficient(field, columns, y, i, a, 0, stencil)
            if stencil.transposed:
                high = end_coefficient(field, columns, y, i, a, 1, stencil)
                f = low[:, None] * ends[a][0] if a == 0 else f + low[:, None] * ends[a][0]
                f -= high[:, None] * ends[a][1]
            else:
                f = low[:, None] * differences[a] if a == 0 else f + low[:, None] * differences[a]
    return f


@triton.jit
def line_ends(columns, before, after, y, k: tl.constexpr, stencil: tl.constexpr):
    """For each axis the features one step below and above, of block k of the channels, in pairs."""
    padding: tl.constexpr = stencil.padding
    z, x = columns.z, columns.x
    ends = (
        (before, after),
        (_line_at(columns, z, y, x - 1, k, padding), _line_at(columns, z, y, x + 1, k, padding)),
    )
    if stencil.ndim == 3:
        ends = ((_line_at(columns, z - 1, y, x, k, padding), _line_at(columns, z + 1, y, x, k, padding)),) + ends
    return ends


@triton.jit
def row_tiles(
    columns,
    field,
    lines,
    y,
    k: tl.constexpr,
    stencil: tl.constexpr,
    first: tl.constexpr,
    rows: tl.constexpr,
    narrow: tl.constexpr,
):
    """What `rows` rows of W from `first` on are multiplied with, in the half type: of (f, L_1 f, L_2 f, ...), which
    begins with L_1 f if the identity takes no part. Of block k of the channels, from lines y - 1, y and y + 1."""
    if stencil.kind == TAP_BASIS:
        tiles = ()
        for r in tl.static_range(first, first + rows):
            tiles = tiles + (halves(_line_of_row(columns, lines, r, y, k, stencil), narrow),)
    else:
        pairs = line_ends(columns, lines[0], lines[2], y, k, stencil)
        tiles = _field_tiles(columns, field, lines[1], pairs, y, stencil, first, rows, narrow)
    return tiles


@triton.jit
def _line_of_row(columns, lines, r: tl.constexpr, y, k: tl.constexpr, stencil: tl.constexpr):
    """f, or f at a tap: one of the three lines, or from the first-level cache."""
    if r == 0:
        f = lines[1]
    else:
        t0: tl.constexpr = stencil.taps[r - 1][0]
        t1: tl.constexpr = stencil.taps[r - 1][1]
        t2: tl.constexpr = stencil.taps[r - 1][2]
        if t0 == 0 and t2 == 0 and t1 * t1 == 1:
            f = lines[1 + t1]
        else:
            f = _line_at(columns, columns.z + t0, y + t1, columns.x + t2, k, stencil.padding)
    return f


@triton.jit
def _field_tiles(
    columns,
    field,
    own,
    pairs,
    y,
    stencil: tl.constexpr,
    first: tl.constexpr,
    rows: tl.constexpr,
    narrow: tl.constexpr,
):
    ends = ()
    differences = ()
    n: tl.constexpr = stencil.ndim
    for a in tl.static_range(n):
        if stencil.transposed:
            ends = ends + ((unpacked(pairs[a][0], narrow), unpacked(pairs[a][1], narrow)),)
            differences = differences + (ends[a][1] - ends[a][0],)
        else:
            ends = ends + ((0, 0),)
            differences = differences + (
                unpacked(pair_difference(pairs[a][1], pairs[a][0], narrow, stencil.ptx), narrow),
            )
    tiles = ()
    for r in tl.static_range(first, first + rows):
        if stencil.identity and r == 0:
            tiles = tiles + (halves(own, narrow),)
        else:
            f = _generator_tile(r - stencil.identity, ends, differences, field, columns, y, stencil)
            tiles = tiles + (f.to(narrow),)
    return tiles
