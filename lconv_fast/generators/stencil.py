"""Free weightings of neighbours, sampled or constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast import grid
from lconv_fast.checks import check_generators
from lconv_fast.generators.on_grid import GridGenerators, spread
from lconv_fast.ops.geometry import MOST_STEPS, CoefficientKind, Stencil


class StencilGenerators(GridGenerators):
    """`(L_i f)[x] = sum_k s[i,k](x) f[x + taps[k]]`: a free weighting of neighbours, section 4 of Dehmamy et al. 2021.

    Args:
        coefficients: (n_L, K), the same at each point (an ordinary convolution), or (n_L, K, *spatial), which fixes
            the grid.
        taps: (K, n) integer offsets in tensor order, n = 1, 2 or 3; a tensor or nested sequences.
        padding_mode, learnable: as for AffineGenerators.
    """

    weights: Tensor

    def __init__(
        self,
        coefficients: Tensor,
        taps: Tensor | list[list[int]],
        *,
        padding_mode: str = "zeros",
        learnable: bool = False,
    ) -> None:
        super().__init__()
        try:
            offsets = torch.as_tensor(taps, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"taps: expected integer offsets (K, n), got {taps!r}") from error
        if offsets.dtype.is_floating_point or offsets.dtype.is_complex or offsets.dtype == torch.bool:
            raise TypeError(f"taps: expected integer offsets (K, n), got {offsets.dtype}")
        if offsets.dim() != 2 or not 1 <= offsets.shape[1] <= 3 or offsets.shape[0] == 0:
            raise ValueError(f"taps: expected shape (K, n) with n = 1, 2 or 3, got {tuple(offsets.shape)}")
        if bool((offsets.abs() > MOST_STEPS).any()):
            raise ValueError(f"taps: expected offsets up to {MOST_STEPS}, got {offsets.tolist()}")
        count, ndim = offsets.shape
        check_generators(
            "coefficients", coefficients, (2, ndim + 2), f"(n_L, K) or (n_L, K, *spatial) with {ndim} axes"
        )
        if coefficients.shape[1] != count or 0 in coefficients.shape:
            raise ValueError(
                f"coefficients: expected {count} taps in dimension 1, as many as taps has, "
                f"got shape {tuple(coefficients.shape)}"
            )
        self.num_generators, self.ndim = coefficients.shape[0], ndim
        self.padding_mode = grid.padding_mode(padding_mode).name.lower()
        self.taps = tuple(tuple(int(o) for o in row) for row in offsets.tolist())
        self._keep("weights", coefficients, learnable)

    @property
    def values(self) -> Tensor:
        """`weights` by its former name, under which PyTorch's parametrizations could not find it."""
        return self.weights

    def coefficients(self) -> Tensor:
        return self.weights

    def grid_shape(self) -> tuple[int, ...] | None:
        return tuple(self.weights.shape[2:]) or None

    def sample(self, spatial: Sequence[int], coefficients: Tensor | None = None) -> Tensor:
        v = self.weights if coefficients is None else coefficients
        return v if v.dim() > 2 else spread(v, spatial)

    def stencil(self) -> Stencil:
        count = len(self.taps)
        kind = CoefficientKind.SAMPLED if self.weights.dim() > 2 else CoefficientKind.CONSTANT
        mode = grid.padding_mode(self.padding_mode)
        return Stencil(kind, self.taps, (1.0,) * count, tuple(range(count)), mode, transposed=self.transposed)

    def mean_square(self) -> Tensor:
        """r_i = mean over x of `sum_k s[i,k](x)^2` (for taps that differ)."""
        with torch.no_grad():
            return self.weights.double().square().sum(1).reshape(self.num_generators, -1).mean(1)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", taps={len(self.taps)}"
