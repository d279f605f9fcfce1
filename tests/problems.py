"""The one list of problems that the property tests cross: kinds x grids x boundaries x accuracies.

Each problem makes its generators, and their dense matrices by an explicit loop over points and taps that shares no code
with the library.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

import lconv_fast as lc
from lconv_fast.ops.boundary import PADDING_MODES

GRIDS = {1: (7,), 2: (5, 6), 3: (4, 5, 3)}
MODES = tuple(PADDING_MODES)
# Weights of f[x + k] - f[x - k], and of f[x], f[x + k] + f[x - k], written again from the textbook.
CENTRAL = {
    2: [0.5],
    4: [8 / 12, -1 / 12],
    6: [45 / 60, -9 / 60, 1 / 60],
    8: [672 / 840, -168 / 840, 32 / 840, -3 / 840],
}
SECOND = {
    2: [-2.0, 1.0],
    4: [-30 / 12, 16 / 12, -1 / 12],
    6: [-490 / 180, 270 / 180, -27 / 180, 2 / 180],
    8: [-14350 / 5040, 8064 / 5040, -1008 / 5040, 128 / 5040, -9 / 5040],
}
TAPS = {1: [[0], [2], [-1]], 2: [[0, 0], [1, -2], [-1, 1], [0, 2]], 3: [[0, 0, 0], [1, -1, 2], [-2, 0, 1]]}
ORDERS = {1: [[1], [2], [0]], 2: [[1, 0], [0, 2], [1, 1]], 3: [[0, 0, 1], [0, 1, 1], [2, 0, 0]]}
EDGES, RANK = 23, 2


@dataclass(frozen=True)
class Problem:
    kind: str
    ndim: int
    mode: str
    accuracy: int | str = 2
    count: int = 2  # generators

    @property
    def grid(self) -> tuple[int, ...]:
        bounded = self.mode in MODES and PADDING_MODES[self.mode].boundary.bounded
        far = bounded and self.accuracy != "spectral" and self.accuracy > 4
        return tuple(size + (self.accuracy // 2 if far else 0) for size in GRIDS[self.ndim])

    @property
    def points(self) -> int:
        return math.prod(self.grid)

    def numbers(self, dtype=torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(seed)
        n, count, grid = self.ndim, self.count, self.grid
        affine = [(count, n, n), (count, n)]
        shapes = {
            "affine": affine,
            "product": affine,
            "affine differential": [(count, len(ORDERS[n]), n), (count, len(ORDERS[n]))],
            "field": [(count, n, *grid)],
            "stencil": [(count, len(TAPS[n]), *grid)],
            "constant": [(count, len(TAPS[n]))],
            "differential": [(count, len(ORDERS[n]))],
            "differential sampled": [(count, len(ORDERS[n]), *grid)],
            "dense": [(count, self.points, self.points)],
            "low_rank": [(count, self.points, RANK), (count, RANK, self.points)],
            "graph": [(count, EDGES)],
            "incidence": [(count, EDGES)],
        }[self.kind]
        return tuple(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes)

    @property
    def pairs(self) -> list[tuple[int, ...]]:
        return [(0, 1), (1, 1), (0,)][: self.count]

    @property
    def edges(self) -> Tensor:
        """With some twice, and loops."""
        return torch.randint(self.points, (2, EDGES), generator=torch.Generator().manual_seed(1))

    def make(self, numbers: tuple[Tensor, ...], learnable: bool = False) -> lc.Generators:
        free = {"learnable": learnable}
        taps = {"padding_mode": self.mode, **free}
        accurate = {"accuracy": self.accuracy, **taps}
        makers = {
            "affine": lambda: lc.AffineGenerators(*numbers, **accurate),
            "affine differential": lambda: lc.AffineDifferentialGenerators(*numbers, ORDERS[self.ndim], **accurate),
            "product": lambda: lc.ProductGenerators(
                lc.AffineGenerators(*numbers, **accurate), self.pairs, spatial=self.grid
            ),
            "field": lambda: lc.FieldGenerators(*numbers, **accurate),
            "stencil": lambda: lc.StencilGenerators(*numbers, TAPS[self.ndim], **taps),
            "constant": lambda: lc.StencilGenerators(*numbers, TAPS[self.ndim], **taps),
            "differential": lambda: lc.DifferentialGenerators(*numbers, ORDERS[self.ndim], **accurate),
            "differential sampled": lambda: lc.DifferentialGenerators(*numbers, ORDERS[self.ndim], **accurate),
            "dense": lambda: lc.DenseGenerators(*numbers, **free),
            "low_rank": lambda: lc.LowRankGenerators(*numbers, **free),
            "graph": lambda: lc.GraphGenerators(self.edges, *numbers, self.points, **free),
            "incidence": lambda: lc.GraphGenerators(self.edges, *numbers, self.points, incidence=True, **free),
        }
        return makers[self.kind]()

    def layer(self, f, weight, generators, bias=None, stride: int = 1, groups: int = 1) -> Tensor:
        """The layer on (N, C, *grid), for graphs too, whose features are (N, nodes, C)."""
        if self.kind not in ("graph", "incidence"):
            return lc.functional.lconv(f, weight, generators, bias, stride=stride, groups=groups)
        y = generators.mix(generators.coefficients(), f.transpose(1, 2), weight, bias, groups=groups)
        return y.transpose(1, 2)[..., ::stride]

    def act(self, generators: lc.Generators, f: Tensor) -> Tensor:
        """L_i f: (N, C, *grid) -> (N, n_L, C, *grid)."""
        if self.kind not in ("graph", "incidence"):
            return generators(f)
        return generators(f.transpose(1, 2)).transpose(2, 3)

    def derivatives_at(self, numbers: tuple[Tensor, ...], point: tuple[int, ...]):
        """(multi-index, coefficients of all generators) at a grid point."""
        n = self.ndim
        unit = torch.eye(n, dtype=torch.long)
        if self.kind in ("differential", "differential sampled"):
            for m, alpha in enumerate(ORDERS[n]):
                yield tuple(alpha), numbers[0][(slice(None), m, *point)[: numbers[0].dim()]]
            return
        if self.kind == "field":
            for a in range(n):
                yield tuple(unit[a].tolist()), numbers[0][(slice(None), a, *point)]
            return
        matrix, shift = (t.double() for t in numbers)
        scale = (max(self.grid) - 1) / 2
        x = [(i - (size - 1) / 2) / scale for i, size in zip(point, self.grid, strict=True)]
        v = matrix @ torch.tensor(x, dtype=torch.float64) + shift
        if self.kind == "affine differential":
            for m, alpha in enumerate(ORDERS[n]):
                yield tuple(alpha), v[:, m]
            return
        if self.kind == "affine":
            for a in range(n):
                yield tuple(unit[a].tolist()), v[:, a]
            return
        for a in range(n):
            along = [
                v[w[0], a]
                if len(w) == 1
                else sum(v[i, b] * matrix[j, a, b] for i, j in (w, w[::-1]) for b in range(n)) / (2 * scale)
                for w in self.pairs
            ]
            yield tuple(unit[a].tolist()), torch.stack(along)
            for b in range(n):
                second = [v[w[0], a] * v[w[1], b] if len(w) == 2 else torch.zeros(()).double() for w in self.pairs]
                yield tuple((unit[a] + unit[b]).tolist()), torch.stack(second)

    def weights_at(self, numbers: tuple[Tensor, ...], point: tuple[int, ...]):
        """(tap, weights of all generators) at a grid point."""
        if self.kind in ("stencil", "constant"):
            for k, tap in enumerate(TAPS[self.ndim]):
                yield tuple(tap), numbers[0][(slice(None), k, *point)] if self.kind == "stencil" else numbers[0][:, k]
            return
        first, second = CENTRAL[self.accuracy], SECOND[self.accuracy]
        lines = [
            {0: 1.0},
            {sign * k: sign * c for k, c in enumerate(first, start=1) for sign in (-1, 1)},
            {sign * k: c for k, c in enumerate(second) for sign in (-1, 1)},
        ]
        for alpha, v in self.derivatives_at(numbers, point):
            for tap in itertools.product(*(lines[order] for order in alpha)):
                yield tap, math.prod(lines[o][t] for o, t in zip(alpha, tap, strict=True)) * v

    def dense(self, numbers: tuple[Tensor, ...]) -> Tensor:
        """(n_L, d, d), point by point."""
        if self.kind == "dense":
            return numbers[0].double()
        if self.kind == "low_rank":
            return numbers[0].double() @ numbers[1].double()
        if self.kind in ("graph", "incidence"):
            return self.dense_graph(numbers[0].double())
        points = list(itertools.product(*map(range, self.grid)))
        if self.accuracy == "spectral":
            return self.dense_spectral(numbers, points)
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

    def dense_graph(self, weights: Tensor) -> Tensor:
        result = torch.zeros(self.count, self.points, self.points, dtype=torch.float64)
        for e, (source, target) in enumerate(self.edges.t().tolist()):
            result[:, target, source] += weights[:, e]
            if self.kind == "incidence":
                result[:, target, target] -= weights[:, e]
        return result

    def dense_spectral(self, numbers: tuple[Tensor, ...], points: list[tuple[int, ...]]) -> Tensor:
        """L[r, n] = sum over k of (2 pi k / d)^p and the p-th derivative of cos(2 pi k (r - n) / d) / d."""

        def line(order: int, size: int) -> Tensor:
            if order == 0:
                return torch.eye(size, dtype=torch.float64)
            away = torch.arange(size).double().reshape(-1, 1) - torch.arange(size)
            total = torch.zeros(size, size, dtype=torch.float64)
            for k in range(-((size - 1) // 2), size // 2 + 1):
                angle = 2 * math.pi * k / size
                wave = -(angle * away).sin() if order == 1 else -(angle * away).cos()
                total += angle**order * wave / size  # at k = size / 2 the sine is 0
            return total

        result = torch.zeros(self.count, len(points), len(points), dtype=torch.float64)
        for r, point in enumerate(points):
            for alpha, v in self.derivatives_at(numbers, point):
                whole = torch.ones(1, 1, dtype=torch.float64)
                for order, size in zip(alpha, self.grid, strict=True):
                    whole = torch.kron(whole, line(order, size))
                result[:, r] += v.double().reshape(-1, 1) * whole[r]
        return result

    def __str__(self) -> str:
        return f"{self.kind}-{self.ndim}d-{self.mode}-{self.accuracy}"


def problems() -> list[Problem]:
    """Of generators with taps on a grid, which the fused kernels compute."""
    result = [
        Problem(kind, n, mode)
        for kind in ("affine", "affine differential", "field", "stencil", "constant", "differential")
        for n in GRIDS
        for mode in MODES
    ]
    result += [
        Problem(kind, 2, mode, accuracy, count=3)
        for kind in ("affine", "field")
        for mode in MODES
        for accuracy in (4, 6, 8)
    ]
    result += [Problem(kind, 2, mode) for kind in ("product", "differential sampled") for mode in MODES]
    result += [Problem("product", 1, "zeros"), Problem("product", 3, "circular"), Problem("product", 2, "reflect", 4)]
    result += [
        Problem("affine differential", 2, "reflect", 4, count=3),
        Problem("differential", 2, "zeros", 4, count=3),
    ]
    result += [Problem("differential", 1, "reflect", 8, count=3)]
    return result


def other_problems() -> list[Problem]:
    """Of generators that are computed otherwise: matrices, their factors, FFT, edges."""
    result = [Problem(kind, n, "none") for kind in ("dense", "low_rank") for n in GRIDS]
    result += [Problem(kind, n, "circular", "spectral") for kind in ("affine", "field", "differential") for n in GRIDS]
    result += [Problem(kind, 2, "circular", "spectral") for kind in ("product", "affine differential")]
    return result + [Problem("graph", 1, "none"), Problem("incidence", 1, "none")]


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
