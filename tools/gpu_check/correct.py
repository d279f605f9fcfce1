"""Every kernel and gradient against float64 on the CPU, twice for equal bits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}


def layer_gradients(problem, dtype, device, size, stride, groups, last, ins, outs, activation) -> list[Tensor]:
    """The layer's output and all its gradients, from the same numbers on every device and in every type."""
    import lconv_fast as lc

    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        # Rounded to the type under test first, so that all compute with the same numbers.
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    numbers = [n.to(torch.float32 if dtype != torch.float64 else dtype) for n in problem.numbers()]
    half = dtype in (torch.float16, torch.bfloat16)
    wide = torch.float64 if device == "cpu" else (torch.float32 if half else dtype)
    generators = problem.make([n.to(device=device, dtype=wide) for n in numbers], learnable=True)
    x, w, b = random(2, ins * groups, *size), random(problem.count + 1, outs * groups, ins), random(outs * groups)
    w = w / (ins * (problem.count + 1)) ** 0.5
    u = random(2, outs * groups, *[(n - 1) // stride + 1 for n in size])
    place = {"device": device, "dtype": torch.float64 if device == "cpu" else dtype}
    x, w, b, u = (t.to(dtype).to(**place) for t in (x, w, b, u))
    if last:
        x, u = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, u))
    leaves = [t.requires_grad_() for t in (x, w, b)] + list(generators.parameters())
    extra = {}
    if activation is not None:
        extra = {"activation": activation, "residual": torch.empty_like(u).copy_(u.flip(0)).requires_grad_()}
        leaves.append(extra["residual"])
    y = lc.functional.lconv(x, w, generators, b, stride=stride, groups=groups, **extra)
    return [y.detach(), *torch.autograd.grad(y, leaves, u)]


@dataclass(frozen=True)
class Check:
    """A layer whose output and gradients are compared with those in float64."""

    kind: str
    ndim: int
    mode: str
    accuracy: int
    count: int
    dtype: torch.dtype
    ins: int
    outs: int
    stride: int = 1
    groups: int = 1
    last: bool = True
    larger: bool = False  # several tiles of columns and strips of rows
    activation: str | None = None  # and a residual with it

    def __str__(self) -> str:
        dtype, larger = str(self.dtype).removeprefix("torch."), " larger" if self.larger else ""
        larger += f" {self.activation}" if self.activation else ""
        larger += "" if self.last else " contiguous"
        return (
            f"{self.kind} {self.ndim}D {self.mode} order {self.accuracy} n_L={self.count} C={self.ins}>{self.outs} "
            f"{dtype} stride {self.stride} groups {self.groups}{larger}"
        )

    def run(self, only_compile: bool = False) -> dict[str, Any]:
        from problems import Problem, relative_rms

        last = self.last

        class Larger(Problem):
            @property
            def grid(self) -> tuple[int, ...]:
                # Contiguous lines of a multiple of 16 points have instructions of their own.
                return {2: (67, 150 if last else 160), 3: (5, 6, 70 if last else 80)}[self.ndim]

        torch.set_num_threads(1)
        problem = (Larger if self.larger else Problem)(self.kind, self.ndim, self.mode, self.accuracy, self.count)
        arguments = (problem.grid, self.stride, self.groups, self.last, self.ins, self.outs, self.activation)
        found = layer_gradients(problem, self.dtype, "cuda", *arguments)
        if only_compile:
            return {}
        again = layer_gradients(problem, self.dtype, "cuda", *arguments)
        truth = layer_gradients(problem, self.dtype, "cpu", *arguments)
        errors = [relative_rms(a.cpu(), b) for a, b in zip(found, truth, strict=True)]
        same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        # The few numbers of an affine gradient are sums over all points that may cancel: rounding weighs more.
        limits = [TOLERANCE[self.dtype] * (1 if k < 4 else 2.5) for k in range(len(errors))]
        right = same and all(error < limit for error, limit in zip(errors, limits, strict=True))
        return {"error": max(errors), "same_bits": same, "right": right}


def checks() -> Iterator[Check]:
    from problems import problems

    # What the marching kernels serve, and where their tables leave off, first: they compile longest.
    bfloat16, float16 = torch.bfloat16, torch.float16
    for kind, ndim, mode, count, dtype, ins, outs, groups in (
        ("affine", 2, "zeros", 3, bfloat16, 64, 64, 1),
        ("affine", 2, "circular", 2, float16, 32, 32, 1),
        ("affine", 2, "zeros", 6, bfloat16, 64, 64, 1),
        ("affine", 2, "circular", 6, float16, 32, 32, 1),
        ("affine", 2, "zeros", 4, bfloat16, 128, 64, 1),
        ("affine", 2, "circular", 3, bfloat16, 64, 128, 1),
        ("affine", 2, "zeros", 1, float16, 32, 20, 2),
        ("field", 2, "zeros", 3, bfloat16, 64, 64, 1),
        ("field", 2, "circular", 6, bfloat16, 64, 128, 1),
        ("field", 2, "zeros", 2, float16, 32, 32, 2),
        ("affine", 3, "zeros", 3, bfloat16, 32, 32, 1),
        ("affine", 3, "circular", 3, float16, 64, 64, 1),
        ("affine", 3, "zeros", 6, bfloat16, 64, 128, 1),
        ("affine", 3, "circular", 12, bfloat16, 32, 32, 1),
        ("field", 3, "zeros", 3, float16, 32, 32, 1),
        ("field", 3, "circular", 6, bfloat16, 64, 64, 1),
    ):
        yield Check(kind, ndim, mode, 2, count, dtype, ins, outs, groups=groups, larger=True)
    for kind, ndim, mode, count, dtype, ins, outs in (
        ("constant", 2, "zeros", 2, bfloat16, 64, 64),
        ("differential", 2, "circular", 2, float16, 32, 20),
        ("constant", 2, "circular", 2, bfloat16, 128, 128),
        ("constant", 3, "zeros", 2, bfloat16, 32, 64),
        ("affine", 2, "zeros", 6, bfloat16, 64, 64),
        ("affine", 3, "zeros", 3, float16, 32, 32),
    ):
        for last in (True, False):
            yield Check(kind, ndim, mode, 2, count, dtype, ins, outs, last=last, larger=True)
    # ReLU's gradient jumps where rounding decides.
    for activation, dtype, channels in (("silu", bfloat16, 64), ("gelu", float16, 32)):
        yield Check("affine", 2, "zeros", 2, 3, dtype, channels, channels, larger=True, activation=activation)
    rest = []
    for problem in problems():
        for dtype in TOLERANCE:
            about = (problem.kind, problem.ndim, problem.mode, problem.accuracy, problem.count, dtype)
            rest += [Check(*about, 5, 7), Check(*about, 4, 3, stride=2, groups=2, last=False)]
    # In an order that leaves no kind or type to the end, where the time may be over.
    yield from random.Random(0).sample(rest, len(rest))
