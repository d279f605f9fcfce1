"""Layers that run on the emulated chips: output and every gradient, against the library's CPU kernels in float64."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import lconv_fast as lc
from tools.emulate.operators import on_gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from problems import TOLERANCE, Problem, problems, relative_rms

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# The few numbers of an affine gradient are sums over all points that may cancel: rounding weighs more.
_FOR_GENERATORS = 2.5
_TF32_TOLERANCE = 1e-3
# Of gradients: z, and u times the derivative at z, are rounded to the type before a kernel sees them.
_FOR_ACTIVATIONS = 1.5


@dataclass(frozen=True)
class _Sized(Problem):
    size: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        return self.size


@dataclass(frozen=True)
class Case:
    kind: str
    size: tuple[int, ...]
    dtype: torch.dtype
    ins: int  # of a group
    outs: int
    count: int = 2
    mode: str = "zeros"
    accuracy: int = 2
    stride: int = 1
    groups: int = 1
    last: bool = True  # channels-last
    batch: int = 2
    shifted: bool = False  # one number off in memory: not aligned for wide loads
    sliced: bool = False  # a part of the channels of a wider tensor
    tf32: bool = False
    activation: str | None = None
    residual: bool = False

    def __str__(self) -> str:
        words = [
            self.kind,
            "x".join(map(str, self.size)),
            str(self.dtype).removeprefix("torch."),
            f"C={self.ins}>{self.outs}",
            f"n_L={self.count}",
            self.mode,
        ]
        words += [f"order {self.accuracy}"] if self.accuracy > 2 else []
        words += [f"stride {self.stride}"] if self.stride > 1 else []
        words += [f"groups {self.groups}"] if self.groups > 1 else []
        words += [] if self.last else ["contiguous"]
        words += [f"batch {self.batch}"] if self.batch != 2 else []
        words += [name for name in ("shifted", "sliced", "tf32", "residual") if getattr(self, name)]
        words += [self.activation] if self.activation else []
        return " ".join(words)

    def _laid_out(self, t: Tensor) -> Tensor:
        """The same numbers as the case wants them in memory."""
        if self.last:
            t = t.movedim(1, -1).contiguous().movedim(-1, 1)
        if self.sliced:
            wide = torch.full((t.shape[0], 2 * t.shape[1], *t.shape[2:]), float("nan"), dtype=t.dtype)
            if self.last:
                wide = wide.movedim(1, -1).contiguous().movedim(-1, 1)
            return wide[:, : t.shape[1]].copy_(t)
        if self.shifted:
            room = torch.full((t.numel() + 1,), float("nan"), dtype=t.dtype)
            return room.as_strided(t.shape, t.stride(), 1).copy_(t)
        return t

    def results(self, emulated: bool) -> list[Tensor]:
        """y and the gradients of x, W, the bias and the generators' numbers; the same numbers in both ways."""
        random = torch.Generator().manual_seed(1)

        def rounded(*shape: int, scale: float = 1.0) -> Tensor:
            t = (torch.randn(*shape, generator=random, dtype=F64) * scale).to(self.dtype)
            return t if emulated else t.double()

        problem = _Sized(self.kind, len(self.size), self.mode, self.accuracy, self.count, self.size)
        numbers = [n.to(F64 if self.dtype == F64 else F32) for n in problem.numbers()]
        generators = problem.make(tuple(n if emulated else n.double() for n in numbers), learnable=True)
        channels = self.ins * self.groups
        x = self._laid_out(rounded(self.batch, channels, *self.size)).requires_grad_()
        w = rounded(
            self.count + 1, self.outs * self.groups, self.ins, scale=(self.ins * (self.count + 1)) ** -0.5
        ).requires_grad_()
        b = rounded(self.outs * self.groups).requires_grad_()
        out = [(n - 1) // self.stride + 1 for n in self.size]
        u = self._laid_out(rounded(self.batch, self.outs * self.groups, *out))
        extra = {"stride": self.stride, "groups": self.groups, "activation": self.activation}
        inputs = [x, w, b, *generators.parameters()]
        if self.residual:
            extra["residual"] = self._laid_out(rounded(*u.shape)).requires_grad_()
            inputs.append(extra["residual"])
        with on_gpu() if emulated else contextlib.nullcontext():
            y = lc.functional.lconv(x, w, generators, b, **extra)
            gradients = torch.autograd.grad(y, inputs, u)
        return [y.detach(), *gradients]

    def errors(self) -> list[tuple[float, float]]:
        """(relative rms error, limit) of each result."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        try:
            found = self.results(True)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        truth = self.results(False)
        limit = _TF32_TOLERANCE if self.tf32 else TOLERANCE[self.dtype]
        chain = _FOR_ACTIVATIONS if self.activation else 1
        return [
            (relative_rms(a, b), limit * (1 if k < 4 else _FOR_GENERATORS) * (chain if k else 1))
            for k, (a, b) in enumerate(zip(found, truth, strict=True))
        ]


# Each kernel, kind, dtype, boundary and layout at least once.
REPRESENTATIVE = [
    Case("affine", (4, 70), BF16, 64, 64, 3),
    Case("affine", (3, 40), F16, 32, 32, 6, mode="circular"),
    Case("affine", (34, 33), BF16, 32, 20, 1, batch=1),
    Case("affine", (2, 70), BF16, 128, 64, 4, batch=1),
    Case("field", (3, 40), F16, 32, 32, mode="circular", groups=2, batch=1),
    Case("field", (2, 66), BF16, 64, 128, 3, batch=1),
    Case("affine", (3, 2, 40), BF16, 32, 32, 3, batch=1),
    Case("field", (2, 3, 70), F16, 64, 64, 3, mode="circular", batch=1),
    Case("affine", (3, 40), BF16, 32, 32, shifted=True, batch=1),
    Case("field", (3, 40), BF16, 32, 32, sliced=True, batch=1),
    Case("affine", (7, 6), F32, 5, 7, mode="reflect", accuracy=4),
    Case("field", (5, 6), BF16, 5, 7, mode="replicate", stride=2, groups=2, last=False),
    Case("stencil", (5, 6), F16, 5, 7, mode="circular"),
    Case("constant", (7,), F64, 5, 7),
    Case("affine", (4, 5, 3), F64, 4, 3, stride=2, groups=2, last=False),
    Case("stencil", (4, 5, 3), F32, 5, 7, mode="replicate"),
    Case("field", (5, 6), F32, 5, 7, mode="reflect", tf32=True),
    Case("affine", (3, 70), BF16, 64, 64, 3, batch=1, activation="silu", residual=True),
    Case("field", (3, 40), F16, 32, 32, batch=1, activation="gelu"),
    Case("differential", (3, 70), BF16, 64, 64, 1, batch=1),
    Case("constant", (3, 48), BF16, 64, 64, last=False, batch=1),
    Case("affine", (3, 48), F16, 32, 32, 3, last=False, batch=1, activation="silu", residual=True),
]


def _marching() -> Iterator[Case]:
    """What the marching kernels serve, and where their tables leave off, in several tiles of columns and strips."""
    large = {2: (67, 150), 3: (5, 6, 70)}
    for kind, ndim, mode, count, dtype, ins, outs, groups in (
        ("affine", 2, "zeros", 3, BF16, 64, 64, 1),
        ("affine", 2, "circular", 2, F16, 32, 32, 1),
        ("affine", 2, "zeros", 6, BF16, 64, 64, 1),
        ("affine", 2, "circular", 6, F16, 32, 32, 1),
        ("affine", 2, "zeros", 4, BF16, 128, 64, 1),
        ("affine", 2, "circular", 3, BF16, 64, 128, 1),
        ("affine", 2, "zeros", 1, F16, 32, 20, 2),
        ("field", 2, "zeros", 3, BF16, 64, 64, 1),
        ("field", 2, "circular", 6, BF16, 64, 128, 1),
        ("field", 2, "zeros", 2, F16, 32, 32, 2),
        ("affine", 3, "zeros", 3, BF16, 32, 32, 1),
        ("affine", 3, "circular", 3, F16, 64, 64, 1),
        ("affine", 3, "zeros", 6, BF16, 64, 128, 1),
        ("affine", 3, "circular", 12, BF16, 32, 32, 1),
        ("field", 3, "zeros", 3, F16, 32, 32, 1),
        ("field", 3, "circular", 6, BF16, 64, 64, 1),
        ("affine", 2, "zeros", 2, BF16, 256, 256, 1),
    ):
        size = large[ndim] if ins < 256 else (3, 70)
        yield Case(kind, size, dtype, ins, outs, count, mode, groups=groups, batch=1)
    for kind, ndim, mode, dtype, ins, outs, groups in (
        ("constant", 2, "zeros", BF16, 64, 64, 1),
        ("constant", 2, "circular", F16, 32, 20, 2),
        ("differential", 2, "circular", BF16, 64, 128, 1),
        ("constant", 2, "zeros", BF16, 128, 128, 1),
        ("constant", 2, "zeros", BF16, 256, 64, 1),
        ("constant", 3, "zeros", BF16, 32, 32, 1),
        ("constant", 3, "circular", BF16, 64, 64, 1),
        ("constant", 3, "zeros", F16, 128, 32, 1),
    ):
        for last in (True, False):
            size = {2: (34, 80), 3: (3, 4, 80)}[ndim]
            yield Case(kind, size, dtype, ins, outs, 2, mode, groups=groups, last=last, batch=1)
    for ndim, mode, dtype, ins, outs, count in (
        (2, "zeros", BF16, 64, 64, 3),
        (2, "circular", F16, 32, 64, 6),
        (3, "zeros", BF16, 32, 32, 2),
        (3, "zeros", BF16, 64, 64, 6),
    ):
        for width in (80, 70):  # lines that threads shift, and that they load again
            size = {2: (34, width), 3: (3, 4, width)}[ndim]
            yield Case("affine", size, dtype, ins, outs, count, mode, last=False, batch=1)
    for kind in ("affine", "field"):  # a circle of one line
        yield Case(kind, (1, 40), BF16, 32, 32, 2, "circular", batch=1)


def _everything() -> Iterator[Case]:
    for problem in problems():
        for dtype in (F64, F32, F16, BF16):
            case = Case(problem.kind, problem.grid, dtype, 5, 7, problem.count, problem.mode, problem.accuracy)
            yield case
            yield replace(case, ins=4, outs=3, stride=2, groups=2, last=False)


FULL = [*REPRESENTATIVE, *_marching(), *_everything()]
# What compiles to other instructions on sm_80: products of one warp in every type.
EARLIER = [REPRESENTATIVE[k] for k in (0, 1, 4, 6, 10, 11, 14, 16)]
SETS = {"representative": REPRESENTATIVE, "earlier": EARLIER, "marching": list(_marching()), "full": FULL}
