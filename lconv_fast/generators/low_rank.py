"""Generators by their factors: matrices of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast.checks import check_float, check_generators, extents
from lconv_fast.generators.base import Generators
from lconv_fast.generators.dense import check_points
from lconv_fast.ops.geometry import accumulate_type


class LowRankGenerators(Generators):
    """L_i = left_i right_i, for data whose topology is not known: the paper's own for scrambled images, supplement D.

    Args:
        left: (n_L, d, r), d = prod(spatial) points in row-major order; a real floating-point tensor.
        right: (n_L, r, d), of the same dtype and device.
        learnable: makes left and right parameters.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    left: Tensor
    right: Tensor

    def __init__(self, left: Tensor, right: Tensor, *, learnable: bool = False) -> None:
        super().__init__()
        check_generators("left", left, (3,), "(n_L, d, r)")
        check_float("right", right, (3,), "(n_L, r, d)")
        count, points, rank = left.shape
        if 0 in left.shape:
            raise ValueError(f"left: expected shape (n_L, d, r) with d and r at least 1, got {tuple(left.shape)}")
        if right.shape != (count, rank, points):
            raise ValueError(
                f"right: expected shape {(count, rank, points)} beside that left, got {tuple(right.shape)}"
            )
        if (right.dtype, right.device) != (left.dtype, left.device):
            raise TypeError(
                f"right: expected {left.dtype} on {left.device} as left, got {right.dtype} on {right.device}"
            )
        self.num_generators = count
        self._keep("left", left, learnable)
        self._keep("right", right, learnable)

    def coefficients(self) -> Tensor:
        """left_i and right_i^T, or exchanged where transposed: (2, n_L, d, r)."""
        factors = [self.left, self.right.transpose(1, 2)]
        return torch.stack(factors[::-1] if self.transposed else factors)

    def check_shape(self, spatial: Sequence[int]) -> None:
        check_points(spatial, self.left.shape[1])

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        dtype = accumulate_type(f.dtype)
        left, right = coefficients.to(dtype)
        inner = torch.einsum("iyr,ncy->nicr", right, f.to(dtype).flatten(2))
        moved = torch.einsum("ixr,nicr->nicx", left, inner)
        return moved.reshape(*moved.shape[:3], *f.shape[2:])

    def to_dense(self, spatial_shape: Sequence[int]) -> Tensor:
        self.check_shape(extents("spatial_shape", spatial_shape))
        self.check_filled()
        left, right = self.coefficients()
        return left @ right.transpose(1, 2)

    def mean_square(self) -> Tensor:
        """r_i = |left_i right_i|^2 / d."""
        with torch.no_grad():
            left, right = self.left.double(), self.right.double()
            products = (left.transpose(1, 2) @ left) * (right @ right.transpose(1, 2))
            return products.sum((1, 2)) / left.shape[1]

    def extra_repr(self) -> str:
        return super().extra_repr() + f", points={self.left.shape[1]}, rank={self.left.shape[2]}"
