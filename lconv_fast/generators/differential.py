"""Differential operators of first and second order: elements of the enveloping algebra of the translations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from lconv_fast.checks import check_generators, rows_of_integers
from lconv_fast.generators.on_grid import DerivativeGenerators, Orders, unit_orders

MOST_ORDER = 2  # along one axis, as the tables of differences have


def check_orders(orders: Sequence[Sequence[int]]) -> Orders:
    """Multi-indices of 1 to 3 axes, each from 0 to MOST_ORDER."""
    alphas = rows_of_integers("orders", orders, "(m, n)")
    ndim = len(alphas[0]) if alphas else 0
    valid = all(len(a) == ndim and all(0 <= p <= MOST_ORDER for p in a) for a in alphas)
    if not 1 <= ndim <= 3 or not valid:
        raise ValueError(f"orders: expected (m, n) integers from 0 to {MOST_ORDER}, n = 1, 2 or 3, got {orders!r}")
    return alphas


class DifferentialGenerators(DerivativeGenerators):
    """`L_i = sum_m c[i,m](x) d^alpha_m`, d^alpha = d_1^alpha_1 .. d_n^alpha_n with orders 0, 1 or 2 in each axis.

    d_a and d_a d_a are central differences of order `accuracy` (f[x+1] - 2 f[x] + f[x-1] at 2), and d_a d_b with a != b
    the product of the first differences of a and b. Derivatives are per pixel.

    Args:
        coefficients: (n_L, m), the same at each point (an ordinary convolution), or (n_L, m, *spatial), which fixes the
            grid.
        orders: (m, n) integers 0, 1 or 2, the multi-indices alpha_m, n = 1, 2 or 3 axes in tensor order.
        accuracy, padding_mode, learnable: as for AffineGenerators.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    weights: Tensor

    def __init__(
        self,
        coefficients: Tensor,
        orders: Sequence[Sequence[int]],
        *,
        accuracy: int | str = 2,
        padding_mode: str = "zeros",
        learnable: bool = False,
    ) -> None:
        super().__init__()
        alphas = check_orders(orders)
        ndim = len(alphas[0])
        check_generators(
            "coefficients", coefficients, (2, ndim + 2), f"(n_L, m) or (n_L, m, *spatial) with {ndim} axes"
        )
        if coefficients.shape[1] != len(alphas) or 0 in coefficients.shape:
            raise ValueError(
                f"coefficients: expected {len(alphas)} derivatives in dimension 1, as many as orders has, "
                f"got shape {tuple(coefficients.shape)}"
            )
        self.num_generators, self.ndim = coefficients.shape[0], ndim
        self._set_derivatives(alphas, accuracy, padding_mode)
        self._keep("weights", coefficients, learnable)
        if self.grid_shape() is None:
            self._merge_taps()

    def coefficients(self) -> Tensor:
        return self._on_taps(self.weights)

    def grid_shape(self) -> tuple[int, ...] | None:
        return tuple(self.weights.shape[2:]) or None


def translation_and_laplacian(ndim: int, **keywords: Any) -> DifferentialGenerators:
    """d_a for each axis, then the Laplacian sum_a d_a d_a: n + 1 generators."""
    return _named(partial(_gradient_and_sum, ndim), first_and_own_second(ndim), **keywords)


def second_order(ndim: int, **keywords: Any) -> DifferentialGenerators:
    """d_a for each axis, then d_a d_b for a <= b: n + n (n + 1) / 2 generators."""
    orders = first_and_second(ndim)
    return _named(partial(torch.eye, len(orders)), orders, **keywords)


def _gradient_and_sum(ndim: int) -> Tensor:
    coefficients = torch.zeros(ndim + 1, 2 * ndim)
    coefficients[:ndim, :ndim] = torch.eye(ndim)
    coefficients[ndim, ndim:] = 1.0
    return coefficients


def _named(coefficients: Callable[[], Tensor], orders: Orders, **keywords: Any) -> DifferentialGenerators:
    result = DifferentialGenerators(coefficients(), orders, **keywords)
    result._remake = partial(_alone, coefficients)
    return result


def _alone(make: Callable[[], Tensor]) -> tuple[Tensor]:
    return (make(),)


def first_and_second(ndim: int) -> Orders:
    """The multi-indices of d_a, then of d_a d_b for a <= b in the order of the pairs (a, b)."""
    first = unit_orders(ndim)
    second = [tuple(p + q for p, q in zip(a, b, strict=True)) for a, b in combinations_with_replacement(first, 2)]
    return (*first, *second)


def first_and_own_second(ndim: int) -> Orders:
    """The multi-indices of d_a, then of d_a d_a."""
    first = unit_orders(ndim)
    return (*first, *(tuple(2 * order for order in alpha) for alpha in first))
