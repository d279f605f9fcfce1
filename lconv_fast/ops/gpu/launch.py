"""From the operators' arguments to launches: the three functions behind torch.ops.lconv_fast.* on CUDA tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import Geometry, empty_like_format
from lconv_fast.ops.gpu import marching
from lconv_fast.ops.gpu.apply import apply_kernel
from lconv_fast.ops.gpu.arguments import (
    AXES,
    PROGRAMS,
    block,
    box_of,
    coefficients_view,
    data_view,
    fail_unless,
    index_type,
    launch_kernel,
    padded,
    precision,
    stencil_of,
    weight_view,
)
from lconv_fast.ops.gpu.correlate import correlate_kernel
from lconv_fast.ops.gpu.gram import gram_kernel
from lconv_fast.ops.gpu.tiles import tile_for

WIDE = {torch.float64: tl.float64}
MOST_HELD = 6  # tiles in registers besides the sums
MOST_UNROLLED = 8  # generators
MOST_PART_BYTES = 1 << 26


def _check(g: Geometry, data: Tensor, channels: int, extent: Sequence[int], name: str) -> None:
    shape = (data.shape[0], channels, *extent)
    fail_unless(tuple(data.shape) == shape, f"the shape of {name} does not fit the other arguments")


def _check_geometry(g: Geometry, data: Tensor, others: dict[str, Tensor | None], same_type: Sequence[str]) -> None:
    n, taps = len(g.spatial), len(g.tap_weights)
    fail_unless(1 <= n <= AXES, "expected 1 to 3 spatial axes")
    fail_unless(
        len(g.taps) == taps * n and len(g.components) == taps and len(g.stride) == n and len(g.halo) == 2 * n,
        "taps, tap_weights, components, stride, halo and center differ in length",
    )
    fail_unless(g.kind in (0, 1, 2) and g.padding_mode in (0, 1, 2, 3), "unknown kind or padding mode")
    fail_unless(g.groups >= 1, "no group")
    fail_unless(
        min(g.spatial) >= 1 and min(g.stride) >= 1 and min(g.halo) >= 0, "expected spatial, stride >= 1 and halo >= 0"
    )
    fail_unless(g.padding_mode == 0 or max(g.halo) == 0, "a halo goes with padding mode zeros")
    for axis, size in enumerate(g.spatial):
        reach = max([abs(t) for t in g.taps[axis::n]], default=0)
        fail_unless(g.padding_mode != 3 or reach < size, "reflect padding is wider than the grid")
    fail_unless(
        data.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        "expected float32, float64, bfloat16 or float16 tensors",
    )
    for name, other in others.items():
        if other is None:
            continue
        fail_unless(other.device == data.device, f"{name} is on {other.device}, the data are on {data.device}")
        fail_unless(name not in same_type or other.dtype == data.dtype, f"the type of {name} is not that of the data")


def _check_weight(g: Geometry, weight: Tensor) -> None:
    fail_unless(
        weight.dim() == 3 and weight.shape[0] >= 1 and weight.shape[1] % g.groups == 0,
        "expected weight (n_L + 1, out, in / groups), out a multiple of groups",
    )


def _check_coefficients(g: Geometry, v: Tensor, count: int) -> None:
    m = max(g.components, default=-1) + 1
    rest = {0: (), 1: tuple(g.spatial), 2: (g.ndim + 1,)}[g.kind]
    fail_unless(tuple(v.shape) == (count, m, *rest), "the shape of coefficients does not fit the other arguments")


def apply(input, weight, coefficients, bias, *arguments) -> Tensor:
    *geometry, identity, transposed = arguments
    g = Geometry(*geometry)
    _check_geometry(
        g, input, {"weight": weight, "coefficients": coefficients, "bias": bias}, same_type=("weight", "bias")
    )
    _check_weight(g, weight)
    fail_unless(
        not transposed or g.padding_mode < 2, "transposed, replicate and reflect are a halo that is folded back"
    )
    count = weight.shape[0] - 1
    _check_coefficients(g, coefficients, count)
    makes, sums = weight.shape[1], weight.shape[2] * g.groups
    if transposed:
        makes, sums = sums, makes
    target_extent = g.array if transposed else g.out
    _check(g, input, sums, g.out if transposed else g.array, "input")
    if bias is not None:
        fail_unless(tuple(bias.shape) == (makes,), "the shape of bias does not fit the other arguments")
        bias = bias.contiguous()

    output = empty_like_format(input, makes, target_extent)
    if output.numel() == 0:
        return output
    if not marching.apply(g, input, weight, coefficients, bias, output, identity, transposed):
        _tile_apply(g, input, weight, coefficients, bias, output, identity, transposed)
    return output


def _tile_apply(g, input, weight, coefficients, bias, output, identity, transposed) -> None:
    ins, outs, extent = input.shape[1] // g.groups, output.shape[1] // g.groups, output.shape[2:]
    count = weight.shape[0] - 1
    tile = tile_for("apply", input.dtype, input.device)
    stencil = stencil_of(g, count)
    slots = stencil.tap_count if transposed else stencil.component_count
    bn = block(outs, tile.outs)
    tiles, blocks = triton.cdiv(math.prod(extent), tile.points), triton.cdiv(outs, bn)
    launch_kernel(
        apply_kernel,
        tiles * blocks * g.groups * input.shape[0],
        input.device,
        tile.warps,
        data_view(input),
        weight_view(weight, g, transposed),
        coefficients_view(coefficients, g),
        bias,
        data_view(output),
        box_of(g),
        g.groups,
        ins,
        outs,
        tiles,
        blocks,
        stencil=stencil,
        identity=identity,
        transposed=transposed,
        has_bias=bias is not None,
        held=count > 1 and slots <= MOST_HELD,
        unrolled=count <= MOST_UNROLLED,
        index=index_type(input, output, coefficients),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=precision(input.dtype),
        BM=tile.points,
        BN=bn,
        BK=block(ins, tile.ins),
    )


def gram(input, cotangent, coefficients, *arguments) -> Tensor:
    *geometry, identity = arguments
    g = Geometry(*geometry)
    _check_geometry(g, input, {"cotangent": cotangent, "coefficients": coefficients}, same_type=("cotangent",))
    count = coefficients.shape[0]
    _check_coefficients(g, coefficients, count)
    _check(g, input, input.shape[1], g.array, "input")
    fail_unless(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    _check(g, cotangent, cotangent.shape[1], g.out, "cotangent")
    fail_unless(
        input.shape[1] % g.groups == 0 and cotangent.shape[1] % g.groups == 0, "groups does not divide the channels"
    )
    size = (count + 1, cotangent.shape[1], input.shape[1] // g.groups)
    if 0 in size or input.numel() == 0 or cotangent.numel() == 0:
        return input.new_zeros(size)
    marched = marching.gram(g, input, cotangent, coefficients, identity)
    return _tile_gram(g, input, cotangent, coefficients, identity) if marched is None else marched


def _tile_gram(g, input, cotangent, coefficients, identity) -> Tensor:
    ins, outs, rows = input.shape[1] // g.groups, cotangent.shape[1] // g.groups, coefficients.shape[0] + 1
    size, count = (rows, cotangent.shape[1], ins), rows - 1
    tile = tile_for("gram", input.dtype, input.device)
    bn, bk = block(outs, tile.outs), block(ins, tile.ins)
    stencil = stencil_of(g, count)
    rows_each = rows if rows <= 4 else 1
    chunks = triton.cdiv(rows, rows_each)
    tiles, in_blocks, out_blocks = (
        triton.cdiv(math.prod(g.out), tile.points),
        triton.cdiv(ins, bk),
        triton.cdiv(outs, bn),
    )
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    blocks = in_blocks * out_blocks * chunks * g.groups
    affordable = max(1, MOST_PART_BYTES // (math.prod(size) * wide.itemsize))
    parts = max(1, min(PROGRAMS // blocks, affordable, tiles * input.shape[0]))
    sums = input.new_empty((parts, *size), dtype=wide)
    launch_kernel(
        gram_kernel,
        blocks * parts,
        input.device,
        tile.warps,
        data_view(input),
        data_view(cotangent),
        coefficients_view(coefficients, g),
        sums,
        box_of(g),
        input.shape[0],
        g.groups,
        ins,
        outs,
        tiles,
        parts,
        in_blocks,
        out_blocks,
        chunks,
        stencil=stencil,
        identity=identity,
        rows=rows_each,
        held=rows_each > 2 and stencil.component_count <= MOST_HELD,
        index=index_type(input, cotangent, coefficients),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=precision(input.dtype),
        BM=tile.points,
        BN=bn,
        BK=bk,
    )
    return sums.sum(0).to(input.dtype)


def correlate(input, weight, cotangent, *geometry) -> Tensor:
    g = Geometry(*geometry)
    _check_geometry(g, input, {"weight": weight, "cotangent": cotangent}, same_type=("weight", "cotangent"))
    _check_weight(g, weight)
    fail_unless(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    _check(g, input, weight.shape[2] * g.groups, g.array, "input")
    _check(g, cotangent, weight.shape[1], g.out, "cotangent")
    columns = g.ndim + 1 if g.kind == 2 else 1
    size = (weight.shape[0] - 1, max(g.components, default=-1) + 1, *(g.spatial if g.kind == 1 else (columns,)))
    if math.prod(size) == 0 or input.numel() == 0 or cotangent.numel() == 0:
        result = input.new_zeros(size, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)
        return result.squeeze(-1) if g.kind == 0 else result
    marched = marching.correlate(g, input, weight, cotangent)
    return _tile_correlate(g, input, weight, cotangent, size) if marched is None else marched


def _tile_correlate(g, input, weight, cotangent, size) -> Tensor:
    sampled, count = g.kind == 1, weight.shape[0] - 1
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    tile = tile_for("correlate", input.dtype, input.device)
    ins, outs = weight.shape[2], weight.shape[1] // g.groups
    tiles = triton.cdiv(math.prod(g.out), tile.points)
    if sampled:
        # Points that a stride leaves out take no part.
        parts = tiles
        result = input.new_zeros(size, dtype=wide) if max(g.stride) > 1 else input.new_empty(size, dtype=wide)
    else:
        parts = max(1, min(PROGRAMS // count, tiles))
        result = input.new_empty((parts, *size), dtype=wide)
    # Of v only the centre and the scale are read: any tensor stands for its numbers.
    shape = (1, 1, *[1] * {0: 0, 1: g.ndim, 2: 1}[g.kind])
    launch_kernel(
        correlate_kernel,
        parts * count,
        input.device,
        tile.warps,
        data_view(input),
        weight_view(weight, g, True),
        data_view(cotangent),
        coefficients_view(weight.as_strided(shape, [1] * len(shape)), g),
        result,
        box_of(g),
        padded(g.spatial, 1),
        input.shape[0],
        g.groups,
        ins,
        outs,
        tiles,
        parts,
        stencil=stencil_of(g, count),
        index=index_type(input, cotangent, result),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=precision(input.dtype),
        BM=tile.points,
        BN=block(outs, tile.outs),
        BK=block(ins, tile.ins),
    )
    if sampled:
        return result
    result = result.sum(0)
    return result.squeeze(-1) if g.kind == 0 else result


def backward(cotangent, input, weight, coefficients, *arguments) -> tuple[Tensor, Tensor]:
    *geometry, identity = arguments
    g = Geometry(*geometry)
    tensors = {"cotangent": cotangent, "weight": weight, "coefficients": coefficients}
    _check_geometry(g, input, tensors, same_type=("cotangent", "weight"))
    _check_weight(g, weight)
    _check_coefficients(g, coefficients, weight.shape[0] - 1)
    _check(g, input, weight.shape[2] * g.groups, g.array, "input")
    _check(g, cotangent, weight.shape[1], g.out, "cotangent")
    fail_unless(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    fail_unless(g.padding_mode < 2, "transposed, replicate and reflect are a halo that is folded back")
    if cotangent.numel() and input.numel():
        marched = marching.backward(g, cotangent, input, weight, coefficients, identity)
        if marched is not None:
            return marched
    features = apply(cotangent, weight, coefficients, None, *geometry, identity, True)
    return features, gram(input, cotangent, coefficients, *arguments)
