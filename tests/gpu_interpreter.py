"""Imports the GPU kernels for Triton's interpreter, on CPU tensors; before anything else imports Triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from lconv_fast.ops.gpu import launch, marching
from lconv_fast.ops.gpu.arguments import Card

assert isinstance(launch.apply_kernel, interpreter.InterpretedFunction), (
    "Triton was imported before its interpreter was chosen"
)
marching.card = lambda device: Card(9, 227 << 10)
marching.LEAST_FILLED = 0  # the marching kernels on small images

_dot = interpreter.InterpreterBuilder.create_dot


def _dot_of_bfloat16(self, a, b, d, *options):
    """The interpreter multiplies the bits of bfloat16: widen them first."""

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.ascontiguousarray(handle.data).view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    return _dot(self, widened(a), widened(b), d, *options)


interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16


def guarded(t: torch.Tensor) -> torch.Tensor:
    """The same tensor with NaN before and after it in memory: what is read outside shows in the result."""
    span = 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    buffer = torch.full((span + 512,), float("nan"), dtype=t.dtype)
    view = buffer.as_strided(t.shape, t.stride(), 256)
    view.copy_(t)
    return view
