"""The calls that the marching kernels serve, and their launches. What they do not serve goes to the tile kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from lconv_fast.ops.geometry import Geometry, empty_like_format
from lconv_fast.ops.gpu.arguments import (
    PROGRAMS,
    block,
    box_of,
    card,
    coefficients_view,
    data_view,
    index_type,
    launch_kernel,
    padded,
    stencil_of,
    weight_view,
)
from lconv_fast.ops.gpu.march import march_kernel
from lconv_fast.ops.gpu.march_backward import march_backward_kernel
from lconv_fast.ops.gpu.march_gram import march_gram_kernel
from lconv_fast.ops.gpu.points import Data
from lconv_fast.ops.gpu.rows import BASIS
from lconv_fast.ops.gpu.tiles import BACKWARD_MARCHES, GRAM_MARCHES, MARCHES, GramMarch, March

AFFINE = 2
MOST_CHANNELS = {2: 256, 3: 128}  # by axes, to sum over: the loop over blocks of them is unrolled
LEAST_FILLED = 0.5  # of a program's columns: narrower images are for the tile kernels, whose tiles run over rows
MOST_SUM_BYTES = 1 << 26  # of partial sums, or a sixteenth of the data
LEAST_SHARE = 4  # strips of a part of a sum, where there are as many


def _pairs(t: Tensor) -> Data:
    """A channels-last tensor of a half type, two channels in one int32."""
    pairs = t.movedim(1, -1).view(torch.int32)
    return Data(pairs, pairs.stride(0), 1, padded(pairs.stride()[1:-1], 0))


def _central_steps(g: Geometry) -> tuple[float, ...] | None:
    """The weights of f(x + e_a), where component a is a difference of f(x + e_a) and f(x - e_a) and no more."""
    n = g.ndim
    if list(g.components) != [a for a in range(n) for _ in range(2)]:
        return None
    steps = []
    for a in range(n):
        weights = {}
        for j in (2 * a, 2 * a + 1):
            tap = list(g.taps[j * n : j * n + n])
            if [t for b, t in enumerate(tap) if b != a] != [0] * (n - 1) or abs(tap[a]) != 1:
                return None
            weights[tap[a]] = g.tap_weights[j]
        if len(weights) < 2 or weights[1] != -weights[-1]:
            return None
        steps.append(weights[1])
    return tuple(steps)


def _steps(g: Geometry, data: Tensor) -> tuple[float, ...] | None:
    """The steps of a call on data that a kernel can march along, or None."""
    if data.dtype not in (torch.float16, torch.bfloat16) or g.ndim < 2 or g.kind == 0 or g.padding_mode > 1:
        return None
    if max(g.stride) > 1 or max(g.halo) > 0 or (data.shape[1] // g.groups) % 32 or data.stride(1) != 1:
        return None
    if data.data_ptr() % 16 or any(step % 32 for k, step in enumerate(data.stride()) if k != 1):
        return None
    return _central_steps(g) if card(data.device).capability >= 8 else None


def _filled(g: Geometry, points: int) -> bool:
    return g.spatial[-1] >= LEAST_FILLED * points


def _generation(device: torch.device) -> int:
    """Column of the tables' limits: before Hopper, Hopper, after it."""
    return min(card(device).capability, 10) - 8


def _basis_size(g: Geometry) -> int:
    return g.ndim * (g.ndim + 1)


def _mixing(v: Tensor, steps: Sequence[float], transposed: bool = False) -> Tensor:
    """v[i,a,b], with what the kernels leave out of x_b D_a: the step along a, and transposed the sign."""
    sign = -1 if transposed else 1
    return torch.stack([v[:, a].float() * (sign * step) for a, step in enumerate(steps)], 1)


def _basis_weight(weight: Tensor, mixing: Tensor) -> Tensor:
    """W_ab = sum_i mixing[i,a,b] W_i."""
    mixed = torch.einsum("iab,ioc->aboc", mixing, weight[1:].float())
    return torch.cat([weight[:1], mixed.flatten(0, 1).to(weight.dtype)])


def _in_basis(g: Geometry, row: March, generation: int, count: int) -> bool | None:
    """Whether products with x_b D_a f and D_a f, at a factor a number each, serve better than those with every L_i f;
    None if neither fits the registers."""
    affine = g.kind == AFFINE
    most = (row.most_affine if affine else row.most_fields)[generation]
    if affine and row.basis[generation] and count > min(most, g.ndim + 1):
        return True
    return False if count <= most else None


def _strips(g: Geometry, least_rows: int, wanted: int) -> tuple[int, int]:
    """How many strips, and their rows. Two more rows are read for each: strips are no shorter than they must be."""
    height = padded(g.spatial, 1)[1]
    rows = triton.cdiv(height, max(1, min(wanted, height // least_rows)))
    return triton.cdiv(height, rows), rows


def apply(
    g: Geometry,
    input: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    output: Tensor,
    identity: bool,
    transposed: bool,
) -> bool:
    """Fills the output, if the call is one for the marching kernel."""
    ins, outs, device = input.shape[1] // g.groups, output.shape[1] // g.groups, input.device
    steps = _steps(g, input)
    if steps is None or output.stride(1) != 1 or ins > MOST_CHANNELS[g.ndim]:
        return False
    for row in MARCHES[g.ndim, min(ins // 32, 3), transposed]:
        count, bn = weight.shape[0] - 1, block(outs, row.outs)
        in_basis = _in_basis(g, row, _generation(device), count)
        if in_basis:
            count = _basis_size(g)
        # All of W, and the result on its way out.
        shared = 2 * bn * ((count + 1) * ins + row.points)
        if in_basis is not None and shared <= card(device).shared and _filled(g, row.points):
            break
    else:
        return False
    stencil = stencil_of(g, count)
    if in_basis:
        weight = _basis_weight(weight, _mixing(coefficients, steps, transposed))
        stencil = stencil._replace(kind=BASIS.value)
    planes, _, columns = padded(g.spatial, 1)
    x_tiles, blocks = triton.cdiv(columns, row.points), triton.cdiv(outs, bn)
    others = x_tiles * blocks * g.groups * input.shape[0] * planes
    strips, strip_rows = _strips(g, row.least_rows, triton.cdiv(PROGRAMS, others))
    launch_kernel(
        march_kernel,
        others * strips,
        device,
        row.warps,
        _pairs(input),
        weight_view(weight, g, transposed),
        coefficients_view(coefficients, g),
        bias,
        data_view(output),
        box_of(g),
        g.groups,
        outs,
        x_tiles,
        strips,
        strip_rows,
        blocks,
        stencil=stencil,
        steps=steps,
        identity=int(identity),
        transposed=transposed,
        has_bias=bias is not None,
        held=row.held,
        index=index_type(input, output, coefficients),
        channel_blocks=ins // 32,
        warps=row.warps,
        BM=row.points,
        BN=bn,
    )
    return True


def _gram_row(g: Geometry, outs: int, generation: int, in_basis: bool) -> tuple[GramMarch, int]:
    """The row of GRAM_MARCHES for these channels, and how many generators, with f itself, a launch takes."""
    for wide in (outs > 64, False):
        row = GRAM_MARCHES[g.ndim, wide]
        limits = row.most_basis if in_basis else row.most_affine if g.kind == AFFINE else row.most_fields
        if limits[generation]:
            break
    return row, limits[generation]


def _gram_filled(g: Geometry, input: Tensor, cotangent: Tensor, in_basis: bool) -> bool:
    row, _ = _gram_row(g, cotangent.shape[1] // g.groups, _generation(input.device), in_basis)
    return _filled(g, row.points)


def _gram_sums(
    g: Geometry,
    input: Tensor,
    cotangent: Tensor,
    coefficients: Tensor,
    steps: Sequence[float],
    in_basis: bool,
    identity: bool,
) -> Tensor:
    """(L_r f)^T g for f itself, if it takes part, and every generator or every field of the basis; float32."""
    count = _basis_size(g) if in_basis else coefficients.shape[0]
    rows, ins, outs = count + identity, input.shape[1] // g.groups, cotangent.shape[1] // g.groups
    row, most = _gram_row(g, outs, _generation(input.device), in_basis)
    stencil = stencil_of(g, count)
    if in_basis:
        stencil = stencil._replace(kind=BASIS.value)
    planes, _, columns = padded(g.spatial, 1)
    x_tiles, in_blocks, out_blocks = triton.cdiv(columns, row.points), ins // 32, triton.cdiv(outs, row.outs)
    blocks, others = in_blocks * out_blocks * g.groups, x_tiles * planes * input.shape[0]
    parts = triton.cdiv(PROGRAMS, blocks)
    strips, strip_rows = _strips(g, row.least_rows, triton.cdiv(LEAST_SHARE * parts, others))
    parts = min(parts, others * strips)
    sums = input.new_empty((parts, rows, cotangent.shape[1], ins), dtype=torch.float32)
    for first in range(0, rows, most):
        launch_kernel(
            march_gram_kernel,
            blocks * parts,
            input.device,
            row.warps,
            _pairs(input),
            data_view(cotangent),
            coefficients_view(coefficients, g),
            sums,
            box_of(g),
            input.shape[0],
            g.groups,
            ins,
            outs,
            x_tiles,
            strips,
            strip_rows,
            parts,
            in_blocks,
            out_blocks,
            stencil=stencil,
            steps=steps,
            identity=int(identity),
            first=first,
            rows=min(most, rows - first),
            index=index_type(input, cotangent, coefficients),
            BM=row.points,
            BN=row.outs,
        )
    return sums.sum(0)


def gram(g: Geometry, input: Tensor, cotangent: Tensor, coefficients: Tensor, identity: bool) -> Tensor | None:
    """dQ/dW, if the call is one for the marching kernel."""
    steps = _steps(g, input)
    in_basis = g.kind == AFFINE and coefficients.shape[0] > g.ndim + 1
    if steps is None or not _gram_filled(g, input, cotangent, in_basis):
        return None
    sums = _gram_sums(g, input, cotangent, coefficients, steps, in_basis, identity)
    return _weight_gradient(g, sums, _mixing(coefficients, steps) if in_basis else None, identity).to(input.dtype)


def _weight_gradient(g: Geometry, sums: Tensor, mixing: Tensor | None, identity: bool) -> Tensor:
    """dQ/dW of W^0, zero where it takes no part, and of all W_i, sum_ab mixing[i,a,b] sums[ab] from the basis."""
    own = sums[:1] if identity else sums.new_zeros(1, *sums.shape[1:])
    if identity:
        sums = sums[1:]
    if mixing is not None:
        sums = torch.einsum("iab,aboc->ioc", mixing, _by_axis(g, sums))
    return torch.cat([own, sums])


def _by_axis(g: Geometry, sums: Tensor) -> Tensor:
    """Rows of the basis as (a, b, outs, ins)."""
    return sums.unflatten(0, (g.ndim, g.ndim + 1))


def correlate(g: Geometry, input: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor | None:
    """dQ/dv of affine coefficients, v[i,a,b] = step_a <W_i, (x_b D_a f)^T g>, if the call is one for that kernel."""
    steps = _steps(g, input) if g.kind == AFFINE else None
    if steps is None or not _gram_filled(g, input, cotangent, True):
        return None
    stand_in = weight.as_strided((1, 1, 1), (1, 1, 1))  # of v only the centre and the scale are read
    sums = _gram_sums(g, input, cotangent, stand_in, steps, True, False)
    return _mixing(torch.einsum("ioc,aboc->iab", weight[1:].float(), _by_axis(g, sums)), steps)


def backward(
    g: Geometry, cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, identity: bool
) -> tuple[Tensor, Tensor] | None:
    """dQ/df and dQ/dW, if the call is one for the kernel that makes both."""
    ins, outs, device = input.shape[1] // g.groups, cotangent.shape[1] // g.groups, input.device
    steps, row = _steps(g, cotangent), BACKWARD_MARCHES.get((g.ndim, outs // 32))
    if steps is None or row is None or ins > row.outs or input.stride(1) != 1 or not _filled(g, row.points):
        return None
    count = coefficients.shape[0]
    in_basis = _in_basis(g, row, _generation(device), count)
    if in_basis is None:
        return None
    mixing = _mixing(coefficients, steps, True) if in_basis else None
    if mixing is not None:
        count = _basis_size(g)
    rows, bn = count + identity, block(ins, row.outs)
    # All of W, a stack of blocks, and features and result.
    if 2 * (bn * rows * outs + 4 * 32 * row.points + 2 * bn * row.points) > card(device).shared:
        return None
    stencil = stencil_of(g, count)
    if mixing is not None:
        weight = _basis_weight(weight, mixing)
        stencil = stencil._replace(kind=BASIS.value)
    planes, _, columns = padded(g.spatial, 1)
    x_tiles = triton.cdiv(columns, row.points)
    others = x_tiles * planes * input.shape[0]
    strips, strip_rows = _strips(g, row.least_rows, triton.cdiv(PROGRAMS, others * g.groups))
    size = (others * strips, rows, cotangent.shape[1], ins)
    if 4 * math.prod(size) > max(MOST_SUM_BYTES, input.numel() * input.element_size() // 16):
        return None
    output = empty_like_format(cotangent, input.shape[1], g.array)
    sums = input.new_empty(size, dtype=torch.float32)
    launch_kernel(
        march_backward_kernel,
        others * strips * g.groups,
        device,
        row.warps,
        _pairs(cotangent),
        data_view(input),
        weight_view(weight, g, True),
        coefficients_view(coefficients, g),
        data_view(output),
        sums,
        box_of(g),
        g.groups,
        ins,
        x_tiles,
        strips,
        strip_rows,
        stencil=stencil,
        steps=steps,
        identity=int(identity),
        index=index_type(input, cotangent, coefficients),
        channel_blocks=outs // 32,
        warps=row.warps,
        BM=row.points,
        BN=bn,
    )
    return output, _weight_gradient(g, sums.sum(0), mixing, identity).to(input.dtype)
