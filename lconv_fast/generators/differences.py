"""Central finite differences for first and second derivatives on a unit grid, and their products over the axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# accuracy p: weights c_1, c_2, ... with error O(h^p).
# Fornberg, "Generation of finite difference formulas on arbitrarily spaced grids", Math. Comp. 51 (1988), table 1.
# First derivative: the weights of f[x + k] - f[x - k].
CENTRAL: dict[int, tuple[float, ...]] = {
    2: (1 / 2,),
    4: (2 / 3, -1 / 12),
    6: (3 / 4, -3 / 20, 1 / 60),
    8: (4 / 5, -1 / 5, 4 / 105, -1 / 280),
}
# Second derivative: the weights of f[x + k] - 2 f[x] + f[x - k].
SECOND: dict[int, tuple[float, ...]] = {
    2: (1.0,),
    4: (4 / 3, -1 / 12),
    6: (3 / 2, -3 / 20, 1 / 90),
    8: (8 / 5, -1 / 5, 8 / 315, -1 / 560),
}

Line = tuple[tuple[int, ...], tuple[float, ...]]  # offsets and weights along one axis
Taps = tuple[tuple[tuple[int, ...], ...], tuple[float, ...], tuple[int, ...]]  # taps, weights, components


def derivative(order: int, accuracy: int | str) -> Line:
    """Offsets and weights of f^(order)(x) = sum_j weights[j] f(x + offsets[j]), order 0, 1 or 2.

    Raises ValueError for an accuracy that is not in the tables.
    """
    if isinstance(accuracy, bool) or not isinstance(accuracy, int) or accuracy not in CENTRAL:
        valid = ", ".join(map(str, CENTRAL))
        raise ValueError(f"accuracy: expected one of {valid}, or 'spectral', got {accuracy!r}")
    half = {0: (), 1: CENTRAL[accuracy], 2: SECOND[accuracy]}[order]
    reach = len(half)
    below, above = tuple(range(-reach, 0)), tuple(range(1, reach + 1))
    if order == 1:
        return (*below, *above), (*(-c for c in reversed(half)), *half)
    middle = 1.0 if order == 0 else -2 * math.fsum(half)
    return (*below, 0, *above), (*reversed(half), middle, *half)


def central(accuracy: int | str) -> Line:
    """Offsets and weights of the first derivative."""
    return derivative(1, accuracy)


def stencil(orders: Sequence[Sequence[int]], accuracy: int | str) -> Taps:
    """Taps, weights and components of the derivatives d^alpha, products over the axes, one component for each alpha."""
    taps: list[tuple[int, ...]] = []
    weights: list[float] = []
    components: list[int] = []
    for component, alpha in enumerate(orders):
        lines = [derivative(order, accuracy) for order in alpha]
        for places in itertools.product(*(zip(*line, strict=True) for line in lines)):
            taps.append(tuple(offset for offset, _ in places))
            weights.append(math.prod(weight for _, weight in places))
            components.append(component)
    return tuple(taps), tuple(weights), tuple(components)


def table(taps: Taps) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """The same differences on taps that each stand once: the K taps, and the weights (m, K)."""
    places = {tap: k for k, tap in enumerate(sorted(set(taps[0])))}
    weights = [[0.0] * len(places) for _ in range(taps[2][-1] + 1)]
    for tap, weight, component in zip(*taps, strict=True):
        weights[component][places[tap]] += weight
    return tuple(places), tuple(map(tuple, weights))


def noise(taps: Taps) -> Tensor:
    """The mean of D_m f D_k f for white noise f of variance 1: (m, m)."""
    weights = torch.tensor(table(taps)[1], dtype=torch.float64)
    return weights @ weights.T
