"""Affine vector fields: n (n + 1) numbers a generator, whatever the size of the grid."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from lconv_fast.checks import check_generators
from lconv_fast.generators import algebras
from lconv_fast.generators.affine_differential import AffineDifferentialGenerators
from lconv_fast.generators.on_grid import unit_orders


class AffineGenerators(AffineDifferentialGenerators):
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
        check_generators("matrix", matrix, (3,), "(n_L, n, n)")
        ndim = matrix.shape[1]
        if not 1 <= ndim <= 3 or matrix.shape[2] != ndim:
            raise ValueError(f"matrix: expected shape (n_L, n, n) with n = 1, 2 or 3, got {tuple(matrix.shape)}")
        super().__init__(
            matrix,
            shift,
            unit_orders(ndim),
            accuracy=accuracy,
            padding_mode=padding_mode,
            coordinate_scale=coordinate_scale,
            learnable=learnable,
        )

    @classmethod
    def named(cls, name: str, ndim: int = 2, **keywords: Any) -> AffineGenerators:
        """The basis `name` of `algebras.ALGEBRAS` on `ndim` axes; keywords as for the class.

        n_L for n axes: translation n, rotation n(n-1)/2, scaling 1, se n + n(n-1)/2, similitude se + 1, sl n^2 - 1,
        gl n^2, affine n^2 + n, lorentz n(n-1)/2 (axis 0 is time). Raises ValueError for another name.
        """
        result = cls(*algebras.named(name, ndim), **keywords)
        result._remake = partial(algebras.named, name, ndim)
        return result
