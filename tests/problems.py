"""The one list of problems that the property tests cross: kinds x grids x boundaries x accuracies.

Each problem makes its generators, and their dense matrices by an explicit loop over points and taps that shares no code
with the library.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

import lconv_fast as lc

GRIDS = {1: (7,), 2: (5, 6), 3: (4, 5, 3)}
MODES = ("zeros", "circular", "replicate", "reflect")
# Weights of f[x + k] - f[x - k], written again from the textbook.
CENTRAL = {
    2: [0.5],
    4: [8 / 12, -1 / 12],
    6: [45 / 60, -9 / 60, 1 / 60],
    8: [672 / 840, -168 / 840, 32 / 840, -3 / 840],
}
TAPS = {1: [[0], [2], [-1]], 2: [[0, 0], [1, -2], [-1, 1], [0, 2]], 3: [[0, 0, 0], [1, -1, 2], [-2, 0, 1]]}


@dataclass(frozen=True)
class Problem:
    kind: str
    ndim: int
    mode: str
    accuracy: int = 2
    count: int = 2  # generators

    @property
    def grid(self) -> tuple[int, ...]:
        extra = self.accuracy // 2 if self.mode == "reflect" and self.accuracy > 4 else 0
        return tuple(size + extra for size in GRIDS[self.ndim])

    def numbers(self, dtype=torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(seed)
        shapes = {
            "affine": [(self.count, self.ndim, self.ndim), (self.count, self.ndim)],
            "field": [(self.count, self.ndim, *self.grid)],
            "stencil": [(self.count, len(TAPS[self.ndim]), *self.grid)],
            "constant": [(self.count, len(TAPS[self.ndim]))],
        }[self.kind]
        return tuple(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes)

    def make(self, numbers: tuple[Tensor, ...], learnable: bool = False) -> lc.Generators:
        keywords = {"padding_mode": self.mode, "learnable": learnable}
        if self.kind == "affine":
            return lc.AffineGenerators(*numbers, accuracy=self.accuracy, **keywords)
        if self.kind == "field":
            return lc.FieldGenerators(*numbers, accuracy=self.accuracy, **keywords)
        return lc.StencilGenerators(*numbers, TAPS[self.ndim], **keywords)

    def weights_at(self, numbers: tuple[Tensor, ...], point: tuple[int, ...]):
        """(tap, weights of all generators) at a grid point."""
        if self.kind in ("stencil", "constant"):
            for k, tap in enumerate(TAPS[self.ndim]):
                yield tuple(tap), numbers[0][(slice(None), k, *point)] if self.kind == "stencil" else numbers[0][:, k]
            return
        if self.kind == "affine":
            scale = (max(self.grid) - 1) / 2
            x = torch.tensor(
                [(i - (n - 1) / 2) / scale for i, n in zip(point, self.grid, strict=True)], dtype=torch.float64
            )
            v = numbers[0].double() @ x + numbers[1].double()
        else:
            v = numbers[0][(slice(None), slice(None), *point)]
        for axis, (k, c) in itertools.product(range(self.ndim), enumerate(CENTRAL[self.accuracy], start=1)):
            for sign in (-1, 1):
                tap = tuple(sign * k if a == axis else 0 for a in range(self.ndim))
                yield tap, sign * c * v[:, axis]

    def dense(self, numbers: tuple[Tensor, ...]) -> Tensor:
        """(n_L, d, d), point by point."""
        points = list(itertools.product(*map(range, self.grid)))
        row = {point: r for r, point in enumerate(points)}
        result = torch.zeros(self.count, len(points), len(points), dtype=torch.float64)
        for point in points:
            for tap, weights in self.weights_at(numbers, point):
                seen = []
                for index, offset, size in zip(point, tap, self.grid, strict=True):
                    at = index + offset
                    if not 0 <= at < size:
                        at = {
                            "zeros": None,
                            "circular": at % size,
                            "replicate": min(max(at, 0), size - 1),
                            "reflect": -at if at < 0 else 2 * (size - 1) - at,
                        }[self.mode]
                    seen.append(at)
                if None not in seen:
                    result[:, row[point], row[tuple(seen)]] += weights.double()
        return result

    def __str__(self) -> str:
        return f"{self.kind}-{self.ndim}d-{self.mode}-{self.accuracy}"


def problems() -> list[Problem]:
    result = [
        Problem(kind, n, mode) for kind in ("affine", "field", "stencil", "constant") for n in GRIDS for mode in MODES
    ]
    result += [
        Problem(kind, 2, mode, accuracy, count=3)
        for kind in ("affine", "field")
        for mode in MODES
        for accuracy in (4, 6, 8)
    ]
    return result


def dense_layer(f: Tensor, weight: Tensor, matrices: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Eq. (17) in float64, one product after the other."""
    f, weight, matrices = f.double(), weight.double(), matrices.double()
    batch, channels, *grid = f.shape
    terms = [f.flatten(2)] + [torch.einsum("xy,ncy->ncx", m, f.flatten(2)) for m in matrices]
    outs, ins = weight.shape[1] // groups, channels // groups
    y = torch.zeros(batch, weight.shape[1], f[0, 0].numel(), dtype=torch.float64)
    for g in range(groups):
        for w, term in zip(weight, terms, strict=True):
            y[:, g * outs : (g + 1) * outs] += torch.einsum(
                "oc,ncx->nox", w[g * outs : (g + 1) * outs], term[:, g * ins : (g + 1) * ins]
            )
    y = y.reshape(batch, -1, *grid)[(..., *[slice(None, None, stride)] * len(grid))]
    return y if bias is None else y + bias.double().reshape(-1, *[1] * len(grid))


def results(found):
    """What an operator returns, as a tuple."""
    return found if isinstance(found, tuple) else (found,)


def relative_rms(value: Tensor, truth: Tensor) -> float:
    assert value.shape == truth.shape, f"{tuple(value.shape)} is not {tuple(truth.shape)}"
    return ((value.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300)).item()


TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
