"""Imports the GPU kernels for Triton's interpreter, on CPU tensors; before anything else imports Triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import numpy as np
import pytest
import torch
import triton.language as tl
from problems import TOLERANCE, relative_rms, results
from triton.runtime import interpreter

from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry
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
    taps=_small(TABLE.taps),
    planes=_small(TABLE.planes),
    planes_gram=_small(TABLE.planes_gram),
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


OPERATORS = interpreted()


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def wide(t):
    return t.double() if isinstance(t, torch.Tensor) else t


def check(name, *arguments, tolerance=None, operators=OPERATORS):
    """An operator's kernel, on guarded arguments, against the reference in float64."""
    guards = [guarded(t) if isinstance(t, torch.Tensor) and t.numel() else t for t in arguments]
    found = getattr(operators, name)(*guards)
    expected = getattr(reference, name)(*map(wide, arguments))
    for ours, theirs in zip(results(found), results(expected), strict=True):
        assert ours.dtype == (arguments[0].dtype if name != "correlate" else ours.dtype)
        assert relative_rms(ours, theirs) < (tolerance or TOLERANCE[arguments[0].dtype]), name


def calls(generators, grid, dtype, stride=1, groups=1, ins=4, outs=3, batch=2, last=False, numbers=None):
    """Each operator's name and arguments."""
    geometry = Geometry.of(generators.stencil(), grid, [stride] * len(grid), groups)
    output = [(size - 1) // stride + 1 for size in grid]

    def data(channels, size):
        if last:
            return torch.randn(batch, *size, channels).to(dtype).movedim(-1, 1)
        return torch.randn(batch, channels, *size).to(dtype)

    f, g = data(ins * groups, grid), data(outs * groups, output)
    v = generators.coefficients().detach().to(numbers or dtype)
    w = (torch.randn(v.shape[0] + 1, outs * groups, ins) / (v.shape[0] * ins) ** 0.5).to(dtype)
    bias = torch.randn(outs * groups).to(dtype)
    yield "apply", (f, w, v, bias, *geometry, True, False)
    if generators.padding_mode in ("zeros", "circular"):
        yield "apply", (g, w, v, None, *geometry, True, True)
        yield "backward", (g, f, w, v, *geometry, True)
    yield "gram", (f, g, v, *geometry, True)
    yield "correlate", (f, w, g, *geometry)
