"""Generators as matrices: the paper's own form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast.checks import check_generators, extents
from lconv_fast.generators.base import Generators
from lconv_fast.ops.geometry import accumulate_type


class DenseGenerators(Generators):
    """L_i as matrices (n_L, d, d), d = prod(spatial) points in row-major order: the paper's own form, eq. (17).

    The truth that the sparse kinds are tested against, for small grids of any shape. `learnable` as for the others.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, *, learnable: bool = False) -> None:
        super().__init__()
        check_generators("matrix", matrix, (3,), "(n_L, d, d)")
        if matrix.shape[1] != matrix.shape[2] or matrix.shape[1] == 0:
            raise ValueError(f"matrix: expected shape (n_L, d, d), got {tuple(matrix.shape)}")
        self.num_generators = matrix.shape[0]
        self._keep("matrix", matrix, learnable)

    def coefficients(self) -> Tensor:
        """L_i, or L_i^T where transposed: (n_L, d, d)."""
        return self.matrix.transpose(1, 2) if self.transposed else self.matrix

    def check_shape(self, spatial: Sequence[int]) -> None:
        check_points(spatial, self.matrix.shape[1])

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        dtype = accumulate_type(f.dtype)
        moved = torch.einsum("ixy,ncy->nicx", coefficients.to(dtype), f.to(dtype).flatten(2))
        return moved.reshape(*moved.shape[:3], *f.shape[2:])

    def to_dense(self, spatial_shape: Sequence[int]) -> Tensor:
        self.check_shape(extents("spatial_shape", spatial_shape))
        self.check_filled()
        return self.coefficients()

    def mean_square(self) -> Tensor:
        """r_i = |L_i|^2 / d."""
        with torch.no_grad():
            return self.matrix.double().square().sum(2).mean(1)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", points={self.matrix.shape[1]}"


def check_points(spatial: Sequence[int], expected: int) -> None:
    points = math.prod(spatial)
    if points != expected:
        raise ValueError(
            f"input: expected {expected} points as the generators have, "
            f"got spatial shape {tuple(spatial)} with {points}"
        )
