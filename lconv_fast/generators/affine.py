"""Affine vector fields: n (n + 1) numbers a generator, whatever the size of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lconv_fast.checks import check_float, check_generators
from lconv_fast.generators import algebras
from lconv_fast.generators.on_grid import DerivativeGenerators, spread, unit_orders
from lconv_fast.ops.geometry import CoefficientKind, Stencil

# Pixels per unit of x: within, the coordinates of every grid are finite in float32.
SCALES = 1e-20, 1e20


def _scale(value: object) -> float:
    low, high = SCALES
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"coordinate_scale: expected a positive number or None, got {value!r} ({low:g} to {high:g})")
    return float(value)


class AffineGenerators(DerivativeGenerators):
    """L_i = v_i^a(x) d_a with an affine field v_i(x) = matrix_i x + shift_i, in pixels per unit time.

    Eq. (9) of Dehmamy et al. 2021. Coordinates are centred, in tensor order, with one scale for all axes:
    x_a = (index_a - (size_a - 1) / 2) / coordinate_scale. n (n + 1) numbers per generator, whatever the image size.

    Args:
        matrix: (n_L, n, n), n = 1, 2 or 3 axes; a real floating-point tensor.
        shift: (n_L, n), of the same dtype and device.
        accuracy: order of the central differences d_a: 2, 4, 6 or 8; or "spectral", band-limited derivatives by
            FFT on periodic axes, with padding_mode 'circular' alone (lconv_fast.generators.spectral).
        padding_mode: what lies outside the grid: 'zeros', 'circular', 'replicate' or 'reflect', as in nn.Conv2d.
        coordinate_scale: pixels per unit of x. None: half the largest extent, (max(size) - 1) / 2, so that weights are
            O(1) at every image size. 1.0: pixels, so that exp(t L) of a rotation turns by the angle t.
        learnable: makes matrix and shift parameters.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    matrix: Tensor
    shift: Tensor

    def __init__(
        self,
        matrix: Tensor,
        shift: Tensor,
        *,
        accuracy: int | str = 2,
        padding_mode: str = "zeros",
        coordinate_scale: float | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        check_generators("matrix", matrix, (3,), "(n_L, n, n)")
        check_float("shift", shift, (2,), "(n_L, n)")
        count, ndim = matrix.shape[:2]
        if not 1 <= ndim <= 3 or matrix.shape[2] != ndim:
            raise ValueError(f"matrix: expected shape (n_L, n, n) with n = 1, 2 or 3, got {tuple(matrix.shape)}")
        if shift.shape != (count, ndim):
            raise ValueError(f"shift: expected shape {(count, ndim)} beside that matrix, got {tuple(shift.shape)}")
        if (shift.dtype, shift.device) != (matrix.dtype, matrix.device):
            raise TypeError(
                f"shift: expected {matrix.dtype} on {matrix.device} as matrix, got {shift.dtype} on {shift.device}"
            )
        self.num_generators, self.ndim = count, ndim
        self._set_derivatives(unit_orders(ndim), accuracy, padding_mode)
        self.coordinate_scale = None if coordinate_scale is None else _scale(coordinate_scale)
        self._keep("matrix", matrix, learnable)
        self._keep("shift", shift, learnable)

    @classmethod
    def named(cls, name: str, ndim: int = 2, **keywords: Any) -> AffineGenerators:
        """The basis `name` of `algebras.ALGEBRAS` on `ndim` axes; keywords as for the class.

        n_L for n axes: translation n, rotation n(n-1)/2, scaling 1, se n + n(n-1)/2, similitude se + 1, sl n^2 - 1,
        gl n^2, affine n^2 + n, lorentz n(n-1)/2 (axis 0 is time). Raises ValueError for another name.
        """
        result = cls(*algebras.named(name, ndim), **keywords)
        result._remake = partial(algebras.named, name, ndim)
        return result

    def coefficients(self) -> Tensor:
        return torch.cat([self.matrix, self.shift.unsqueeze(-1)], dim=-1)

    def sample(self, spatial: Sequence[int], coefficients: Tensor | None = None) -> Tensor:
        """The field v_i^a(x) at each point of a grid: (n_L, n, *spatial)."""
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
        """r_i = sum_a (shift_ia^2 + sum_b matrix_iab^2 / 3) * |d_a|^2: x uniform on [-1, 1]^n has mean x_b^2 = 1/3,
        and |d_a|^2 is the variance of d_a f for white noise f.


        That is the grid's mean on large square images with the default coordinate scale; with a scale given, it is the
        mean on grids that reach from -coordinate_scale to coordinate_scale pixels.
        """
        with torch.no_grad():
            matrix, shift = self.matrix.double(), self.shift.double()
            return (shift.square().sum(1) + matrix.square().sum((1, 2)) / 3) * self._noise()[0, 0].to(shift.device)

    def extra_repr(self) -> str:
        scale = "" if self.coordinate_scale is None else f", coordinate_scale={self.coordinate_scale}"
        return super().extra_repr() + scale
