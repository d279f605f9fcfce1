"""Imports the GPU kernels for Triton's interpreter, on CPU tensors; before anything else imports Triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from lconv_fast.ops.gpu.card import CARDS
from lconv_fast.ops.gpu.dispatch import Operators
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tables import Table
from lconv_fast.ops.gpu.tile.apply import apply_kernel

assert isinstance(apply_kernel, interpreter.InterpretedFunction), (
    "Triton was imported before its interpreter was chosen"
)


def _small(entries):
    """The same kernels on small images: narrow ones, and of few lines in several strips."""
    return {
        key: tuple(e._replace(least_lines=2) for e in entry)
        if isinstance(entry[0], tuple)
        else entry._replace(least_lines=2)
        for key, entry in entries.items()
    }


TABLE = Table()
TABLE = TABLE._replace(
    least_filled=0,
    marches=_small(TABLE.marches),
    backward_marches=_small(TABLE.backward_marches),
    gram_marches=_small(TABLE.gram_marches),
)


def interpreted(table: Table = TABLE, launcher=Launch) -> Operators:
    """The operators on a Hopper that is not there."""
    # Its multiprocessors are few: a strip or a part is a program, and the interpreter takes its time for each.
    card = CARDS["H100"]._replace(multiprocessors=2, ptx=False)
    return Operators(lambda device: card, lambda card: table, launcher)


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
