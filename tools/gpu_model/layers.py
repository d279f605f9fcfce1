"""The layers that are predicted, and the launches that each makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import lconv_fast as lc
from lconv_fast.generators import bases
from tools.emulate.driver import Launch
from tools.emulate.operators import on_gpu

SPACES = {2: (8, 1024, 1024), 3: (2, 128, 128, 128)}  # batch and grid
ITEM = 2  # bytes: bfloat16


@dataclass(frozen=True)
class Layer:
    operator: str  # forward, transposed, gram, backward (both gradients)
    ndim: int
    channels: int
    count: int  # affine generators; 0: a layer's default, the translations and the Laplacian
    last: bool = True  # channels-last, else contiguous

    def __str__(self) -> str:
        generators = f"n_L={self.count}" if self.count else "laplacian"
        return f"{self.operator} {self.ndim}D C={self.channels} {generators}" + ("" if self.last else " contiguous")

    @property
    def points(self) -> int:
        return math.prod(SPACES[self.ndim])

    @property
    def floor_bytes(self) -> int:
        """Read and written once: f and y, or f, g and the gradient of f."""
        return self.points * self.channels * ITEM * (3 if self.operator == "backward" else 2)

    @property
    def flops(self) -> int:
        products = 2 if self.operator == "backward" else 1
        return 2 * products * self.points * (self._generators().num_generators + 1) * self.channels**2

    def _generators(self) -> lc.Generators:
        n = self.ndim
        if not self.count:
            return bases.named("unit_laplacian", n)
        return lc.AffineGenerators(torch.empty(self.count, n, n), torch.empty(self.count, n))

    def launches(self, recorded: list[Launch]) -> list[Launch]:
        """What a call hands to the driver that appends to `recorded`; on tensors without data."""
        batch, *grid = SPACES[self.ndim]
        c = self.channels
        with torch.device("meta"):
            x = torch.empty(batch, *grid, c, dtype=torch.bfloat16).movedim(-1, 1)
            x = x if self.last else torch.empty(x.shape, dtype=x.dtype)
            generators = self._generators().to("meta").requires_grad_(False)
            w = torch.empty(generators.num_generators + 1, c, c, dtype=torch.bfloat16)
        wanted = {"forward": [], "transposed": [x], "gram": [w], "backward": [x, w]}[self.operator]
        for t in wanted:
            t.requires_grad_()
        with on_gpu():
            recorded.clear()
            y = lc.functional.lconv(x, w, generators)
            if wanted:
                recorded.clear()
                torch.autograd.grad(y, wanted, torch.empty_like(y))
        return list(recorded)


LAYERS = [
    *[Layer("forward", 2, c, n) for c in (32, 64, 128, 256) for n in (2, 3, 6) if (c, n) != (256, 6)],
    *[Layer("transposed", 2, c, 3) for c in (64, 128)],
    *[Layer("gram", 2, c, 3) for c in (64, 128)],
    *[Layer("backward", 2, c, n) for c, n in ((32, 2), (32, 3), (64, 3))],
    *[Layer("forward", 3, c, n) for c in (32, 64) for n in (3, 6)],
    *[
        Layer(operator, 2, c, 0, last)
        for c in (32, 64, 128)
        for operator in ("forward", "transposed", "gram")
        for last in (True, False)
    ],
    Layer("backward", 2, 32, 0),
    *[Layer(operator, 3, c, 0, last) for c in (32, 64) for operator in ("forward", "gram") for last in (True, False)],
    *[Layer(operator, 2, c, 3, False) for c in (32, 64) for operator in ("forward", "transposed", "gram")],
]
