"""From the operators' arguments to launches: the three functions behind torch.ops.lconv_fast.* on CUDA tensors."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.apply import apply_kernel
from lconv_fast.ops.gpu.correlate import correlate_kernel
from lconv_fast.ops.gpu.gram import gram_kernel
from lconv_fast.ops.gpu.march import march_kernel
from lconv_fast.ops.gpu.points import Box, Coefficients, Data, Stencil, Weight
from lconv_fast.ops.gpu.tiles import MARCHES, March, tile_for
from lconv_fast.ops.reference import Geometry
from lconv_fast.ops.schema import empty_like_format

AXES = 3
WIDE = {torch.float64: tl.float64}
MOST_HELD = 6  # tiles in registers besides the sums
MOST_UNROLLED = 8  # generators
PROGRAMS = 528  # of a sum over points: four for each multiprocessor of a large card, the same on all
MOST_PART_BYTES = 1 << 26


def _fail_unless(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"lconv_fast: {message}")


def _padded(values: Sequence[Any], fill: Any) -> tuple[Any, ...]:
    return (*[fill] * (AXES - len(values)), *values)


def _check(g: Geometry, data: Tensor, channels: int, extent: Sequence[int], name: str) -> None:
    shape = (data.shape[0], channels, *extent)
    _fail_unless(tuple(data.shape) == shape, f"the shape of {name} does not fit the other arguments")


def _check_geometry(g: Geometry, data: Tensor, others: dict[str, Tensor | None], same_type: Sequence[str]) -> None:
    n, taps = len(g.spatial), len(g.tap_weights)
    _fail_unless(1 <= n <= AXES, "expected 1 to 3 spatial axes")
    _fail_unless(
        len(g.taps) == taps * n
        and len(g.components) == taps
        and len(g.stride) == n
        and len(g.halo) == 2 * n
        and (g.kind != 2 or len(g.center) == n),
        "taps, tap_weights, components, stride, halo and center differ in length",
    )
    _fail_unless(g.kind in (0, 1, 2) and g.padding_mode in (0, 1, 2, 3), "unknown kind or padding mode")
    _fail_unless(g.groups >= 1, "no group")
    _fail_unless(
        min(g.spatial) >= 1 and min(g.stride) >= 1 and min(g.halo) >= 0, "expected spatial, stride >= 1 and halo >= 0"
    )
    _fail_unless(g.padding_mode == 0 or max(g.halo) == 0, "a halo goes with padding mode zeros")
    for axis, size in enumerate(g.spatial):
        reach = max([abs(t) for t in g.taps[axis::n]], default=0)
        _fail_unless(g.padding_mode != 3 or reach < size, "reflect padding is wider than the grid")
    _fail_unless(
        data.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        "expected float32, float64, bfloat16 or float16 tensors",
    )
    for name, other in others.items():
        if other is None:
            continue
        _fail_unless(other.device == data.device, f"{name} is on {other.device}, the data are on {data.device}")
        _fail_unless(name not in same_type or other.dtype == data.dtype, f"the type of {name} is not that of the data")


def _check_weight(g: Geometry, weight: Tensor) -> None:
    _fail_unless(
        weight.dim() == 3 and weight.shape[0] >= 1 and weight.shape[1] % g.groups == 0,
        "expected weight (n_L + 1, out, in / groups), out a multiple of groups",
    )


def _check_coefficients(g: Geometry, v: Tensor, count: int) -> None:
    m = max(g.components, default=-1) + 1
    rest = {0: (), 1: tuple(g.spatial), 2: (g.ndim + 1,)}[g.kind]
    _fail_unless(tuple(v.shape) == (count, m, *rest), "the shape of coefficients does not fit the other arguments")


def _data(t: Tensor) -> Data:
    return Data(t, t.stride(0), t.stride(1), _padded(t.stride()[2:], 0))


def _weight(w: Tensor, g: Geometry, transposed: bool) -> Weight:
    group = w.shape[1] // g.groups * w.stride(1)
    into, out = (1, 2) if transposed else (2, 1)
    return Weight(w, w.stride(0), group, w.stride(into), w.stride(out))


def _coefficients(v: Tensor, g: Geometry) -> Coefficients:
    axes = v.stride()[2:]
    inverse = 1.0 / g.scale
    high = torch.tensor(inverse, dtype=torch.float32).item()
    center = _padded(g.center, 0) if g.kind == 2 else (0,) * AXES
    strides = _padded(axes, 0) if g.kind == 1 else (*axes, *[0] * (AXES - len(axes)))
    return Coefficients(
        v, v.stride(0), v.stride(1), strides, tuple(float(c) for c in center), (high, float(inverse - high))
    )


def _box(g: Geometry) -> Box:
    return Box(array=_padded(g.array, 1), out=_padded(g.out, 1), step=_padded(g.stride, 1), low=_padded(g.halo[::2], 0))


def _stencil(g: Geometry, count: int) -> Stencil:
    n = g.ndim
    taps = [t for j in range(0, len(g.taps), n) for t in _padded(g.taps[j : j + n], 0)]
    m = max(g.components, default=-1) + 1
    return Stencil(
        tuple(taps), tuple(g.tap_weights), tuple(g.components), count, len(g.tap_weights), m, n, g.kind, g.padding_mode
    )


def _index(*tensors: Tensor | None) -> tl.dtype:
    """int32 while all offsets and points fit, with room for the last tile."""
    spans = [
        sum((size - 1) * abs(step) for size, step in zip(t.shape, t.stride(), strict=True))
        for t in tensors
        if t is not None
    ]
    return tl.int64 if max(spans) >= 2**31 - 2**12 else tl.int32


def _precision(dtype: torch.dtype) -> str:
    """For float32, what PyTorch's own switch for matrix products says."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting == "none":
        setting = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return "tf32" if dtype == torch.float32 and setting == "tf32" else "ieee"


def _block(channels: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(channels)))


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device: make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _launch(kernel, programs: int, device: torch.device, num_warps: int, /, *arguments, **constants) -> None:
    _fail_unless(programs < 2**31, f"{programs} programs are more than a launch takes")
    with _on(device):
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, num_stages=1, enable_fp_fusion=True)


def _pairs(t: Tensor) -> Data:
    """A channels-last tensor of a half type, two channels in one int32."""
    pairs = t.movedim(1, -1).view(torch.int32)
    return Data(pairs, pairs.stride(0), 1, _padded(pairs.stride()[1:-1], 0))


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


class Card(NamedTuple):
    capability: int  # major, of NVIDIA's cards; others count as the first with all that is needed
    shared: int  # bytes of shared memory that a program may take


@functools.cache
def card(device: torch.device) -> Card:
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return Card(8 if torch.version.hip else properties.major, shared)


def _march(
    g: Geometry, input: Tensor, output: Tensor, ins: int, outs: int, count: int, transposed: bool
) -> tuple[March, tuple[float, ...]] | None:
    """The row of MARCHES that serves this call, if one does; see march.py."""
    if input.dtype not in (torch.float16, torch.bfloat16) or g.ndim < 2 or g.kind == 0 or g.padding_mode > 1:
        return None
    if max(g.stride) > 1 or max(g.halo) > 0 or ins % 32 or input.stride(1) != 1 or output.stride(1) != 1:
        return None
    if input.data_ptr() % 16 or any(step % 32 for k, step in enumerate(input.stride()) if k != 1):
        return None
    steps, row = _central_steps(g), MARCHES.get((g.ndim, ins // 32, transposed))
    if steps is None or row is None:
        return None
    # All of W, and the result on its way out.
    shared = 2 * _block(outs, row.outs) * ((count + 1) * ins + row.points)
    here = card(input.device)
    most = row.most_generators[min(max(here.capability, 8), 10) - 8]
    return (row, steps) if shared <= here.shared and here.capability >= 8 and count <= most else None


def apply(input, weight, coefficients, bias, *arguments) -> Tensor:
    *geometry, identity, transposed = arguments
    g = Geometry(*geometry)
    _check_geometry(
        g, input, {"weight": weight, "coefficients": coefficients, "bias": bias}, same_type=("weight", "bias")
    )
    _check_weight(g, weight)
    _fail_unless(
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
        _fail_unless(tuple(bias.shape) == (makes,), "the shape of bias does not fit the other arguments")
        bias = bias.contiguous()

    output = empty_like_format(input, makes, target_extent)
    if output.numel() == 0:
        return output
    ins, outs = sums // g.groups, makes // g.groups
    march = _march(g, input, output, ins, outs, count, transposed)
    if march is not None:
        _launch_march(*march, g, input, weight, coefficients, bias, output, ins, outs, identity, transposed)
        return output
    tile = tile_for("apply", input.dtype, input.device)
    stencil = _stencil(g, count)
    slots = stencil.tap_count if transposed else stencil.component_count
    bn = _block(outs, tile.outs)
    tiles, blocks = triton.cdiv(math.prod(target_extent), tile.points), triton.cdiv(outs, bn)
    _launch(
        apply_kernel,
        tiles * blocks * g.groups * input.shape[0],
        input.device,
        tile.warps,
        _data(input),
        _weight(weight, g, transposed),
        _coefficients(coefficients, g),
        bias,
        _data(output),
        _box(g),
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
        index=_index(input, output, coefficients),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=_precision(input.dtype),
        BM=tile.points,
        BN=bn,
        BK=_block(ins, tile.ins),
    )
    return output


def _launch_march(row, steps, g, input, weight, coefficients, bias, output, ins, outs, identity, transposed) -> None:
    planes, rows, columns = _padded(g.spatial, 1)
    bn = _block(outs, row.outs)
    x_tiles, blocks = triton.cdiv(columns, row.points), triton.cdiv(outs, bn)
    # Two rows of each strip are read for its neighbours as well: strips are as long as they can be for enough programs.
    others = x_tiles * blocks * g.groups * input.shape[0] * planes
    strips = max(1, min(triton.cdiv(PROGRAMS, others), rows // row.least_rows))
    strip_rows = triton.cdiv(rows, strips)
    strips = triton.cdiv(rows, strip_rows)
    _launch(
        march_kernel,
        others * strips,
        input.device,
        row.warps,
        _pairs(input),
        _weight(weight, g, transposed),
        _coefficients(coefficients, g),
        bias,
        _data(output),
        _box(g),
        g.groups,
        outs,
        x_tiles,
        strips,
        strip_rows,
        blocks,
        stencil=_stencil(g, weight.shape[0] - 1),
        steps=steps,
        identity=identity,
        transposed=transposed,
        has_bias=bias is not None,
        index=_index(input, output, coefficients),
        channel_blocks=ins // 32,
        warps=row.warps,
        BM=row.points,
        BN=bn,
    )


def gram(input, cotangent, coefficients, *arguments) -> Tensor:
    *geometry, identity = arguments
    g = Geometry(*geometry)
    _check_geometry(g, input, {"cotangent": cotangent, "coefficients": coefficients}, same_type=("cotangent",))
    count = coefficients.shape[0]
    _check_coefficients(g, coefficients, count)
    _check(g, input, input.shape[1], g.array, "input")
    _fail_unless(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    _check(g, cotangent, cotangent.shape[1], g.out, "cotangent")
    _fail_unless(
        input.shape[1] % g.groups == 0 and cotangent.shape[1] % g.groups == 0, "groups does not divide the channels"
    )
    ins, outs, rows = input.shape[1] // g.groups, cotangent.shape[1] // g.groups, count + 1
    size = (rows, cotangent.shape[1], ins)
    if 0 in size or input.numel() == 0 or cotangent.numel() == 0:
        return input.new_zeros(size)
    tile = tile_for("gram", input.dtype, input.device)
    bn, bk = _block(outs, tile.outs), _block(ins, tile.ins)
    stencil = _stencil(g, count)
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
    _launch(
        gram_kernel,
        blocks * parts,
        input.device,
        tile.warps,
        _data(input),
        _data(cotangent),
        _coefficients(coefficients, g),
        sums,
        _box(g),
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
        index=_index(input, cotangent, coefficients),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=_precision(input.dtype),
        BM=tile.points,
        BN=bn,
        BK=bk,
    )
    return sums.sum(0).to(input.dtype)


def correlate(input, weight, cotangent, *geometry) -> Tensor:
    g = Geometry(*geometry)
    _check_geometry(g, input, {"weight": weight, "cotangent": cotangent}, same_type=("weight", "cotangent"))
    _check_weight(g, weight)
    _fail_unless(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    _check(g, input, weight.shape[2] * g.groups, g.array, "input")
    _check(g, cotangent, weight.shape[1], g.out, "cotangent")
    count, stencil = weight.shape[0] - 1, _stencil(g, weight.shape[0] - 1)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    m, sampled = stencil.component_count, g.kind == 1
    columns = g.ndim + 1 if g.kind == 2 else 1
    size = (count, m, *(g.spatial if sampled else (columns,)))
    if math.prod(size) == 0 or input.numel() == 0 or cotangent.numel() == 0:
        result = input.new_zeros(size, dtype=wide)
        return result.squeeze(-1) if g.kind == 0 else result
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
    _launch(
        correlate_kernel,
        parts * count,
        input.device,
        tile.warps,
        _data(input),
        _weight(weight, g, True),
        _data(cotangent),
        _coefficients(weight.as_strided(shape, [1] * len(shape)), g),
        result,
        _box(g),
        _padded(g.spatial, 1),
        input.shape[0],
        g.groups,
        ins,
        outs,
        tiles,
        parts,
        stencil=stencil,
        index=_index(input, cotangent, result),
        wide=WIDE.get(input.dtype, tl.float32),
        precision=_precision(input.dtype),
        BM=tile.points,
        BN=_block(outs, tile.outs),
        BK=_block(ins, tile.ins),
    )
    if sampled:
        return result
    result = result.sum(0)
    return result.squeeze(-1) if g.kind == 0 else result
