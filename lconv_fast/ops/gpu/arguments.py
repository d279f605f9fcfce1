"""The operators' arguments as the kernels take them, and the launch itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.gpu.points import Box, Coefficients, Data, Stencil, Weight

AXES = 3
PROGRAMS = 528  # of a sum over points: four for each multiprocessor of a large card, the same on all


def fail_unless(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"lconv_fast: {message}")


def padded(values: Sequence[Any], fill: Any) -> tuple[Any, ...]:
    return (*[fill] * (AXES - len(values)), *values)


def data_view(t: Tensor) -> Data:
    return Data(t, t.stride(0), t.stride(1), padded(t.stride()[2:], 0))


def weight_view(w: Tensor, g: Geometry, transposed: bool) -> Weight:
    group = w.shape[1] // g.groups * w.stride(1)
    into, out = (1, 2) if transposed else (2, 1)
    return Weight(w, w.stride(0), group, w.stride(into), w.stride(out))


def coefficients_view(v: Tensor, g: Geometry) -> Coefficients:
    axes = v.stride()[2:]
    inverse = 1.0 / g.scale
    high = torch.tensor(inverse, dtype=torch.float32).item()
    center = padded(g.center, 0) if g.kind == 2 else (0,) * AXES
    strides = padded(axes, 0) if g.kind == 1 else (*axes, *[0] * (AXES - len(axes)))
    return Coefficients(
        v, v.stride(0), v.stride(1), strides, tuple(float(c) for c in center), (high, float(inverse - high))
    )


def box_of(g: Geometry) -> Box:
    return Box(array=padded(g.array, 1), out=padded(g.out, 1), step=padded(g.stride, 1), low=padded(g.halo[::2], 0))


def stencil_of(g: Geometry, count: int) -> Stencil:
    n = g.ndim
    taps = [t for j in range(0, len(g.taps), n) for t in padded(g.taps[j : j + n], 0)]
    m = max(g.components, default=-1) + 1
    return Stencil(
        tuple(taps), tuple(g.tap_weights), tuple(g.components), count, len(g.tap_weights), m, n, g.kind, g.padding_mode
    )


def index_type(*tensors: Tensor | None) -> tl.dtype:
    """int32 while all offsets and points fit, with room for the last tile."""
    spans = [
        sum((size - 1) * abs(step) for size, step in zip(t.shape, t.stride(), strict=True))
        for t in tensors
        if t is not None
    ]
    return tl.int64 if max(spans) >= 2**31 - 2**12 else tl.int32


def precision(dtype: torch.dtype) -> str:
    """For float32, what PyTorch's own switch for matrix products says."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting == "none":
        setting = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return "tf32" if dtype == torch.float32 and setting == "tf32" else "ieee"


def block(channels: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(channels)))


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device: make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch_kernel(kernel, programs: int, device: torch.device, num_warps: int, /, *arguments, **constants) -> None:
    fail_unless(programs < 2**31, f"{programs} programs are more than a launch takes")
    with _on(device):
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps, num_stages=1, enable_fp_fusion=True)


class Card(NamedTuple):
    capability: int  # major, of NVIDIA's cards; others count as the first with all that is needed
    shared: int  # bytes of shared memory that a program may take


@functools.cache
def card(device: torch.device) -> Card:
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return Card(8 if torch.version.hip else properties.major, shared)
