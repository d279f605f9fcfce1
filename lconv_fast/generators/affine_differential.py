"""Differential operators whose coefficients are affine in x, on grids of any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lconv_fast.checks import check_float, check_generators
from lconv_fast.generators import algebras
from lconv_fast.generators.differential import check_orders, first_and_own_second
from lconv_fast.generators.on_grid import DerivativeGenerators, spread
from lconv_fast.ops.geometry import CoefficientKind, Stencil

# Pixels per unit of x: within, the coordinates of every grid are finite in float32.
SCALES = 1e-20, 1e20


def _scale(value: object) -> float:
    low, high = SCALES
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"coordinate_scale: expected a positive number or None, got {value!r} ({low:g} to {high:g})")
    return float(value)


class AffineDifferentialGenerators(DerivativeGenerators):
    """`L_i = sum_m (matrix_i x + shift_i)_m d^alpha_m`: affine fields and constant operators of second order in one
    kernel, on grids of any size.

    Coordinates as for AffineGenerators, which are the case alpha_m = d_m; derivatives as for DifferentialGenerators,
    which are the case matrix = 0. By name: "affine+laplacian", "similitude+laplacian", "rotation+laplacian", ...

    Args:
        matrix: (n_L, m, n), m derivatives on n = 1, 2 or 3 axes; a real floating-point tensor.
        shift: (n_L, m), of the same dtype and device.
        orders: (m, n) integers 0, 1 or 2, the multi-indices alpha_m.
        accuracy, padding_mode, coordinate_scale, learnable: as for AffineGenerators.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    matrix: Tensor
    shift: Tensor

    def __init__(
        self,
        matrix: Tensor,
        shift: Tensor,
        orders: Sequence[Sequence[int]],
        *,
        accuracy: int | str = 2,
        padding_mode: str = "zeros",
        coordinate_scale: float | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        alphas = check_orders(orders)
        check_generators("matrix", matrix, (3,), "(n_L, m, n)")
        check_float("shift", shift, (2,), "(n_L, m)")
        count, derivatives, ndim = matrix.shape
        if (derivatives, ndim) != (len(alphas), len(alphas[0])):
            raise ValueError(
                f"matrix: expected shape (n_L, {len(alphas)}, {len(alphas[0])}), since orders has {len(alphas)} "
                f"derivatives on {len(alphas[0])} axes, got {tuple(matrix.shape)}"
            )
        if shift.shape != (count, derivatives):
            raise ValueError(
                f"shift: expected shape {(count, derivatives)} beside that matrix, got {tuple(shift.shape)}"
            )
        if (shift.dtype, shift.device) != (matrix.dtype, matrix.device):
            raise TypeError(
                f"shift: expected {matrix.dtype} on {matrix.device} as matrix, got {shift.dtype} on {shift.device}"
            )
        self.num_generators, self.ndim = count, ndim
        self._set_derivatives(alphas, accuracy, padding_mode)
        self.coordinate_scale = None if coordinate_scale is None else _scale(coordinate_scale)
        self._keep("matrix", matrix, learnable)
        self._keep("shift", shift, learnable)

    def coefficients(self) -> Tensor:
        return torch.cat([self.matrix, self.shift.unsqueeze(-1)], dim=-1)

    def sample(self, spatial: Sequence[int], coefficients: Tensor | None = None) -> Tensor:
        """The coefficients v_i^m(x) at each point of a grid: (n_L, m, *spatial)."""
        v = self.coefficients() if coefficients is None else coefficients
        scale = self.scale(spatial)
        axes = [(torch.arange(size, dtype=v.dtype, device=v.device) - (size - 1) / 2) / scale for size in spatial]
        result = spread(v[..., -1], spatial)
        for b, x in enumerate(torch.meshgrid(*axes, indexing="ij")):
            result = result + spread(v[..., b], spatial) * x
        return result

    def stencil(self) -> Stencil | None:
        return self._stencil(CoefficientKind.AFFINE, self.coordinate_scale)

    def scale(self, spatial: Sequence[int]) -> float:
        """Pixels per unit of x on such a grid."""
        if self.coordinate_scale is not None:
            return self.coordinate_scale
        longest = 2  # of one point, x is 0 in any units
        for size in spatial:
            longest = torch.sym_max(longest, size)
        return (longest - 1) / 2

    def mean_square(self) -> Tensor:
        """r_i = sum_mk (shift_im shift_ik + sum_b matrix_imb matrix_ikb / 3) <D_m f D_k f> for white noise f: x uniform
        on [-1, 1]^n has mean 0 and mean x_b^2 = 1/3.

        That is the grid's mean on large square images with the default coordinate scale; with a scale given, it is the
        mean on grids that reach from -coordinate_scale to coordinate_scale pixels.
        """
        with torch.no_grad():
            v = self.coefficients().double()
            v = torch.cat([v[..., :-1] / 3**0.5, v[..., -1:]], -1)
            return torch.einsum("imb,ikb,mk->i", v, v, self._noise().to(v.device))

    def extra_repr(self) -> str:
        scale = "" if self.coordinate_scale is None else f", coordinate_scale={self.coordinate_scale}"
        return super().extra_repr() + scale


def fields_and_laplacian(name: str, ndim: int, **keywords: Any) -> AffineDifferentialGenerators:
    """The affine fields of `algebras.ALGEBRAS[name]`, then the Laplacian sum_a d_a d_a."""
    numbers = partial(_append_laplacian_of, name, ndim)
    result = AffineDifferentialGenerators(*numbers(), first_and_own_second(ndim), **keywords)
    result._remake = numbers
    return result


def _append_laplacian_of(name: str, ndim: int) -> tuple[Tensor, Tensor]:
    return append_laplacian(*algebras.named(name, ndim))


def append_laplacian(matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of affine fields (k, n, n) and (k, n), as those of the derivatives of `first_and_own_second`, and one
    generator more: (k + 1, 2 n, n) and (k + 1, 2 n)."""
    count, n = shift.shape
    matrices, shifts = matrix.new_zeros(count + 1, 2 * n, n), shift.new_zeros(count + 1, 2 * n)
    matrices[:count, :n], shifts[:count, :n] = matrix, shift
    shifts[count, n:] = 1.0
    return matrices, shifts
