"""Constant stencils of first and second order: the bases "laplacian" and "second"."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import torch

from lconv_fast.generators import AffineGenerators, Generators, StencilGenerators

Stencil = dict[tuple[int, ...], float]


def _along(ndim: int, axis: int, weights: dict[int, float]) -> Stencil:
    return {tuple(step if a == axis else 0 for a in range(ndim)): w for step, w in weights.items()}


def first(ndim: int, axis: int) -> Stencil:
    """d_a f = (f[x + e_a] - f[x - e_a]) / 2."""
    return _along(ndim, axis, {1: 0.5, -1: -0.5})


def second(ndim: int, axis: int) -> Stencil:
    """d_a d_a f = f[x + e_a] - 2 f[x] + f[x - e_a]."""
    return _along(ndim, axis, {1: 1.0, 0: -2.0, -1: 1.0})


def compose(left: Stencil, right: Stencil) -> Stencil:
    total: Stencil = {}
    for s, u in left.items():
        for t, v in right.items():
            tap = tuple(a + b for a, b in zip(s, t, strict=True))
            total[tap] = total.get(tap, 0.0) + u * v
    return total


def laplacian(ndim: int) -> Stencil:
    """sum_a d_a d_a."""
    total: Stencil = {}
    for axis in range(ndim):
        for tap, weight in second(ndim, axis).items():
            total[tap] = total.get(tap, 0.0) + weight
    return total


def constant_stencils(rows: list[Stencil], **keywords: Any) -> StencilGenerators:
    """One generator for each row."""
    taps = sorted({tap for row in rows for tap in row})
    values = torch.tensor([[row.get(tap, 0.0) for tap in taps] for row in rows])
    return StencilGenerators(values, [list(tap) for tap in taps], **keywords)


def named(name: str, ndim: int, **keywords: Any) -> Generators:
    """ "laplacian": d_a and the Laplacian; "second": d_a and d_a d_b with a <= b; or AffineGenerators.named."""
    gradient = [first(ndim, a) for a in range(ndim)]
    if name == "laplacian":
        return constant_stencils([*gradient, laplacian(ndim)], **keywords)
    if name == "second":
        pairs = combinations_with_replacement(range(ndim), 2)
        products = [second(ndim, a) if a == b else compose(gradient[a], gradient[b]) for a, b in pairs]
        return constant_stencils([*gradient, *products], **keywords)
    return AffineGenerators.named(name, ndim, **keywords)
