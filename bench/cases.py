"""What is measured: one row a case."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import lconv_fast as lc


@dataclass(frozen=True)
class Case:
    kind: str  # "affine", "field" or "stencil"
    size: tuple[int, ...]
    batch: int
    channels: int
    basis: str = "se"  # affine: the named basis; its number of generators serves the other kinds as well
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        layout = "channels-last" if self.channels_last else "contiguous"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kind} n_L={self.count} C={self.channels} {self.batch}x{size} {dtype} {layout}"

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def count(self) -> int:
        return lc.AffineGenerators.named(self.basis, self.ndim).num_generators

    @property
    def points(self) -> int:
        return self.batch * math.prod(self.size)

    @property
    def flops(self) -> int:
        """Of the product over the (n_L + 1) C deep inner dimension, as eq. (17) counts it."""
        return 2 * self.points * (self.count + 1) * self.channels**2

    def generators(self) -> lc.Generators:
        """Learnable, with numbers in float32 (float64 in the reference)."""
        if self.kind == "affine":
            return lc.AffineGenerators.named(self.basis, self.ndim, learnable=True)
        if self.kind == "field":
            return lc.FieldGenerators(torch.randn(self.count, self.ndim, *self.size), learnable=True)
        taps = [[sign * (a == b) for b in range(self.ndim)] for a in range(self.ndim) for sign in (-1, 1)]
        return lc.StencilGenerators(torch.randn(self.count, len(taps), *self.size), taps, learnable=True)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight, and the gradient that comes in."""
        x, g = (torch.randn(self.batch, self.channels, *self.size, dtype=self.dtype) for _ in range(2))
        if self.channels_last:
            x, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, g))
        weight = torch.randn(self.count + 1, self.channels, self.channels, dtype=self.dtype)
        return x, weight / (self.channels * (self.count + 1)) ** 0.5, g


SMALL = [
    Case("affine", (128, 128), 2, 64),
    Case("affine", (128, 128), 2, 64, "translation"),
    Case("affine", (128, 128), 2, 64, "affine"),
    Case("field", (128, 128), 2, 64),
    Case("stencil", (128, 128), 2, 64),
    Case("affine", (128, 128), 2, 64, channels_last=False),
    Case("affine", (128, 128), 4, 32),
    Case("affine", (128, 128), 4, 16),
    Case("affine", (128, 128), 8, 8),
    Case("affine", (64, 64), 1, 16),
    Case("affine", (32, 32, 32), 1, 32, "affine"),
    Case("affine", (128, 128), 2, 64, dtype=torch.bfloat16),
]
FULL = SMALL + [
    Case(kind, (256, 256), 2, channels, basis, channels_last=last)
    for kind in ("affine", "field", "stencil")
    for basis in ("translation", "se", "affine")
    for channels in (8, 16, 32, 64, 128)
    for last in (True, False)
]
FULL += [
    Case("affine", (64, 64), 32, 64),
    Case("affine", (64, 64), 1, 64),
    Case("affine", (1024, 1024), 1, 32),
    Case("affine", (65536,), 4, 64, "affine"),
    Case("affine", (65536,), 4, 64, "scaling"),
    Case("field", (65536,), 4, 32, "affine"),
    Case("affine", (64, 64, 64), 1, 32, "affine"),
    Case("affine", (96, 96, 96), 1, 16, "se"),
    Case("field", (32, 32, 32), 2, 64, "se"),
    Case("stencil", (48, 48, 48), 1, 32, "se"),
    Case("field", (128, 128), 4, 32, dtype=torch.bfloat16),
    Case("stencil", (128, 128), 4, 32, dtype=torch.bfloat16, channels_last=False),
]
# One layer at growing sizes: cost against points.
GROWTH = [Case("affine", (size, size), 1, 16) for size in (16, 32, 64, 128, 256, 512)]
SELECTIONS = {"small": SMALL, "full": FULL, "growth": GROWTH}
