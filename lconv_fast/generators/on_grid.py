"""Generators on grids of 1, 2 or 3 axes, by taps: L_i f(x) = sum_m v[i,m](x) (D_m f)(x), differences D_m that all
generators share and coefficients v. A kind says what its coefficients hold; the operators do the rest, fused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast import form, grid
from lconv_fast.generators import differences, spectral
from lconv_fast.generators.base import Generators
from lconv_fast.ops.geometry import CoefficientKind, Stencil

Orders = tuple[tuple[int, ...], ...]


def unit_orders(ndim: int) -> Orders:
    """The multi-indices of d_1 .. d_n."""
    return tuple(tuple(int(a == b) for b in range(ndim)) for a in range(ndim))


def spread(v: Tensor, spatial: Sequence[int]) -> Tensor:
    """Coefficients (n_L, m), the same at each point of a grid: (n_L, m, *spatial)."""
    return v.reshape(*v.shape, *[1] * len(spatial)).expand(*v.shape, *spatial)


class GridGenerators(Generators):
    """Generators given by taps on a grid of 1, 2 or 3 axes."""

    ndim: int
    padding_mode: str

    @abstractmethod
    def sample(self, spatial: Sequence[int], coefficients: Tensor | None = None) -> Tensor:
        """`v[i,m](x)` at each point of a grid: (n_L, m, *spatial). By default of these generators' own coefficients."""

    def grid_shape(self) -> tuple[int, ...] | None:
        """The only grid these generators fit, None when any does."""
        return None

    def check_shape(self, spatial: Sequence[int]) -> None:
        """Raises ValueError for another number of axes, another grid than sampled generators have, or a grid that
        mirrored taps reach beyond."""
        spatial = tuple(spatial)
        if len(spatial) != self.ndim:
            raise ValueError(f"input: expected {self.ndim} spatial axes, got spatial shape {spatial}")
        fixed = self.grid_shape()
        if fixed is not None and spatial != fixed:
            raise ValueError(f"input: expected the spatial shape {fixed} of the generators, got {spatial}")
        stencil = self.stencil()
        if stencil is not None:
            grid.check_reach(stencil.taps, spatial, stencil.padding_mode)

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        # One channel in, n_L channels out: row i of the weight picks L_i.
        count, spatial = self.num_generators, f.shape[2:]
        weight = torch.zeros(count + 1, count, 1, dtype=f.dtype, device=f.device)
        weight[1:, :, 0] = torch.eye(count, dtype=f.dtype, device=f.device)
        one_channel = f.reshape(f.shape[0] * f.shape[1], 1, *spatial)
        result = self.mix(coefficients, one_channel, weight, None, [1] * self.ndim, 1)
        return result.reshape(f.shape[0], f.shape[1], count, *spatial).transpose(1, 2)

    def mix(
        self,
        coefficients: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        groups: int,
    ) -> Tensor:
        stencil = self.stencil()
        if stencil is None:
            return super().mix(coefficients, input, weight, bias, stride, groups)
        return form.lconv(coefficients, input, weight, bias, stencil, stride, groups)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", ndim={self.ndim}, padding_mode={self.padding_mode!r}"


class DerivativeGenerators(GridGenerators):
    """`L_i = sum_m v[i,m](x) d^alpha_m`, with multi-indices alpha_m of at most second order in each axis.

    d^alpha is a product over the axes of central differences of order `accuracy`, or band-limited ("spectral").
    """

    accuracy: int | str
    orders: Orders  # alpha_m
    _taps: differences.Taps  # of the differences D_m, or each tap a component of its own
    _weights_of_taps: tuple[tuple[float, ...], ...] | None = None  # (m, K) in the latter case

    def _set_derivatives(self, orders: Orders, accuracy: int | str, padding_mode: str) -> None:
        self.orders, self.padding_mode = orders, grid.padding_mode(padding_mode).name.lower()
        self.accuracy = accuracy
        if isinstance(accuracy, str) and accuracy == spectral.NAME:
            spectral.check_periodic(padding_mode)
        else:
            self._taps = differences.stencil(orders, accuracy)

    def _merge_taps(self) -> None:
        """Gives constant coefficients to the taps themselves, where that takes fewer products in L_i f and L_i^T f."""
        if self.accuracy == spectral.NAME:
            return
        taps, weights = differences.table(self._taps)
        count, m, all_taps = self.num_generators, len(self.orders), len(self._taps[0])
        if 2 * count * len(taps) <= all_taps + count * m + count * all_taps:
            self._weights_of_taps = weights
            self._taps = taps, (1.0,) * len(taps), tuple(range(len(taps)))

    def _on_taps(self, v: Tensor) -> Tensor:
        """Coefficients of the derivatives as those of the components: (n_L, m) -> (n_L, K), or as they are."""
        if self._weights_of_taps is None:
            return v
        # Not a matrix product, which autocast would round.
        return (v.unsqueeze(2) * v.new_tensor(self._weights_of_taps)).sum(1)

    def sample(self, spatial: Sequence[int], coefficients: Tensor | None = None) -> Tensor:
        v = self.coefficients() if coefficients is None else coefficients
        return spread(v, spatial) if self.grid_shape() is None else v

    def stencil(self) -> Stencil | None:
        return self._stencil(CoefficientKind.CONSTANT if self.grid_shape() is None else CoefficientKind.SAMPLED)

    def _stencil(self, kind: CoefficientKind, coordinate_scale: float | None = None) -> Stencil | None:
        if self.accuracy == spectral.NAME:
            return None
        return Stencil(kind, *self._taps, grid.padding_mode(self.padding_mode), coordinate_scale, self.transposed)

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        if self.accuracy == spectral.NAME:
            return spectral.act(self.sample(f.shape[2:], coefficients), self.orders, f, self.transposed)
        return super().act(coefficients, f)

    def mean_square(self) -> Tensor:
        """r_i = mean over x of sum_mk v[i,m] v[i,k] <D_m f D_k f>, the mean for white noise f."""
        with torch.no_grad():
            v = self.coefficients().double()
            v = v.reshape(*v.shape[:2], -1)  # one point, or all
            return torch.einsum("imx,ikx,mk->ix", v, v, self._noise().to(v.device)).mean(1)

    def _noise(self) -> Tensor:
        """<D_m f D_k f> for white noise f of variance 1: (m, m)."""
        if self.accuracy == spectral.NAME:
            return spectral.noise(self.orders)
        return differences.noise(self._taps)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", accuracy={self.accuracy!r}"
