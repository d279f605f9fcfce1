"""Generators: bases L_1 .. L_nL of operators on functions on a grid, in sparse structured forms.

All sparse kinds share one shape, L_i f(x) = sum_a v[i,a](x) (D_a f)(x): differences D_a that all generators share, and
coefficients v. A kind says what its coefficients hold and which taps its differences have; the operators do the rest.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lconv_fast import algebras, differences, form, grid
from lconv_fast.checks import check_float, check_generators, check_types
from lconv_fast.ops.geometry import CoefficientKind, Stencil

Self = TypeVar("Self", bound="Generators")


class Generators(nn.Module, ABC):
    """A basis of n_L linear operators on functions on a space S; an nn.Module, whose numbers may be learnable."""

    num_generators: int
    transposed: bool = False

    @abstractmethod
    def coefficients(self) -> Tensor:
        """The numbers that the generators are made of, as the kernels take them; differentiable in the parameters."""

    @abstractmethod
    def forward(self, f: Tensor) -> Tensor:
        """L_i f for every i: (N, C, *spatial) -> (N, n_L, C, *spatial)."""

    def transpose(self: Self) -> Self:
        """The exact matrix transposes L_i^T (boundaries included), with the same parameters."""
        result = copy.copy(self)
        # A shallow copy shares the tensors; dictionaries of its own make it a module in its own right.
        result.__dict__.update(_parameters=self._parameters.copy(), _buffers=self._buffers.copy())
        result.transposed = not self.transposed
        return result

    @abstractmethod
    def to_dense(self, spatial_shape: tuple[int, ...]) -> Tensor:
        """The matrices (n_L, d, d), d = prod(spatial_shape), points in row-major order. For tests and small grids."""

    @abstractmethod
    def mean_square(self) -> Tensor:
        """The variance that L_i gives to white noise of variance 1, averaged over the points of S: (n_L,)."""

    def _keep(self, name: str, value: Tensor, learnable: bool) -> None:
        value = value.detach().clone()
        if learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)


class GridGenerators(Generators):
    """Generators given by taps on a grid of 1, 2 or 3 axes."""

    ndim: int
    padding_mode: str

    @abstractmethod
    def stencil(self) -> Stencil:
        """The taps, which no size of the grid enters."""

    def _grid_shape(self) -> tuple[int, ...] | None:
        """The only grid these generators fit, None when any does."""
        return None

    def check_shape(self, spatial: tuple[int, ...]) -> None:
        """Raises ValueError unless the generators act on a grid of shape `spatial`."""
        if len(spatial) != self.ndim:
            raise ValueError(f"input: expected {self.ndim} spatial axes, got spatial shape {tuple(spatial)}")
        fixed = self._grid_shape()
        if fixed is not None and tuple(spatial) != fixed:
            raise ValueError(f"input: expected the spatial shape {fixed} of the generators, got {tuple(spatial)}")
        stencil = self.stencil()
        grid.check_reach(stencil.taps, spatial, stencil.padding_mode)

    def forward(self, f: Tensor) -> Tensor:
        """L_i f for every i: (N, C, *spatial) -> (N, n_L, C, *spatial), differentiable to every order."""
        check_float("f", f, (self.ndim + 2,), f"(N, C, *spatial) with {self.ndim} spatial axes")
        spatial = tuple(f.shape[2:])
        self.check_shape(spatial)
        stencil, coefficients = self.stencil(), self.coefficients()
        check_types(f, generators=coefficients)
        # One channel in, n_L channels out: row i of the weight picks L_i.
        count = self.num_generators
        weight = torch.zeros(count + 1, count, 1, dtype=f.dtype, device=f.device)
        weight[1:, :, 0] = torch.eye(count, dtype=f.dtype, device=f.device)
        one_channel = f.reshape(f.shape[0] * f.shape[1], 1, *spatial)
        result = form.lconv(coefficients, one_channel, weight, None, stencil, [1] * self.ndim, 1)
        return result.reshape(f.shape[0], f.shape[1], count, *spatial).transpose(1, 2)

    def to_dense(self, spatial_shape: tuple[int, ...]) -> Tensor:
        """The matrices (n_L, d, d), d = prod(spatial_shape), points in row-major order. For tests and small grids."""
        self.check_shape(tuple(spatial_shape))
        points = torch.Size(spatial_shape).numel()
        v = self.coefficients()
        units = torch.eye(points, dtype=v.dtype, device=v.device).reshape(points, 1, *spatial_shape)
        return self(units)[:, :, 0].flatten(2).permute(1, 2, 0)

    def extra_repr(self) -> str:
        return f"num_generators={self.num_generators}, ndim={self.ndim}, padding_mode={self.padding_mode!r}" + (
            ", transposed=True" if self.transposed else ""
        )


def _star(ndim: int, accuracy: int) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...], tuple[int, ...]]:
    """Taps, weights and components of the derivatives along each axis."""
    offsets, weights = differences.central(accuracy)
    taps = tuple(tuple(o if b == a else 0 for b in range(ndim)) for a in range(ndim) for o in offsets)
    return taps, weights * ndim, tuple(a for a in range(ndim) for _ in offsets)


class _Derivations(GridGenerators):
    """Generators v_i^a(x) d_a with central differences for d_a."""

    accuracy: int

    def _set_differences(self, accuracy: int, padding_mode: str) -> None:
        self._taps = _star(self.ndim, accuracy)
        self.accuracy, self.padding_mode = accuracy, grid.padding_mode(padding_mode).name.lower()

    def _derivative_noise(self) -> float:
        """Variance of d_a f for white noise f."""
        return sum(w * w for w in differences.central(self.accuracy)[1])

    def _star_stencil(self, kind: CoefficientKind, coordinate_scale: float | None = None) -> Stencil:
        return Stencil(kind, *self._taps, grid.PADDING_MODES[self.padding_mode], coordinate_scale, self.transposed)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", accuracy={self.accuracy}"


class AffineGenerators(_Derivations):
    """L_i = v_i^a(x) d_a with an affine field v_i(x) = matrix_i x + shift_i, in pixels per unit time.

    Eq. (9) of Dehmamy et al. 2021. Coordinates are centred, in tensor order, with one scale for all axes:
    x_a = (index_a - (size_a - 1) / 2) / coordinate_scale. n (n + 1) numbers per generator, whatever the image size.

    Args:
        matrix: (n_L, n, n), n = 1, 2 or 3 axes; a real floating-point tensor.
        shift: (n_L, n), of the same dtype and device.
        accuracy: order of the central differences d_a: 2, 4, 6 or 8.
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
        accuracy: int = 2,
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
        if coordinate_scale is not None and not (isinstance(coordinate_scale, Real) and coordinate_scale > 0):
            raise ValueError(f"coordinate_scale: expected a positive number or None, got {coordinate_scale!r}")
        self.num_generators, self.ndim = count, ndim
        self._set_differences(accuracy, padding_mode)
        self.coordinate_scale = coordinate_scale
        self._keep("matrix", matrix, learnable)
        self._keep("shift", shift, learnable)

    @classmethod
    def named(cls, name: str, ndim: int = 2, **keywords: Any) -> AffineGenerators:
        """The basis `name` of `algebras.ALGEBRAS` on `ndim` axes; keywords as for the class.

        n_L for n axes: translation n, rotation n(n-1)/2, scaling 1, se n + n(n-1)/2, similitude se + 1, sl n^2 - 1,
        gl n^2, affine n^2 + n, lorentz n(n-1)/2 (axis 0 is time). Raises ValueError for another name.
        """
        return cls(*algebras.named(name, ndim), **keywords)

    def coefficients(self) -> Tensor:
        return torch.cat([self.matrix, self.shift.unsqueeze(-1)], dim=-1)

    def stencil(self) -> Stencil:
        scale = self.coordinate_scale
        return self._star_stencil(CoefficientKind.AFFINE, None if scale is None else float(scale))

    def mean_square(self) -> Tensor:
        """r_i = sum_a (shift_ia^2 + sum_b matrix_iab^2 / 3) * sum_k w_k^2: x uniform on [-1, 1]^n has mean x_b^2 = 1/3.

        That is the grid's mean on large square images with the default coordinate scale; with a scale given, it is the
        mean on grids that reach from -coordinate_scale to coordinate_scale pixels.
        """
        with torch.no_grad():
            matrix, shift = self.matrix.double(), self.shift.double()
            return (shift.square().sum(1) + matrix.square().sum((1, 2)) / 3) * self._derivative_noise()

    def extra_repr(self) -> str:
        scale = "" if self.coordinate_scale is None else f", coordinate_scale={self.coordinate_scale}"
        return super().extra_repr() + scale


class FieldGenerators(_Derivations):
    """L_i = v_i^a(x) d_a with a vector field given at each point, in pixels per unit time (eq. 9 of Dehmamy et al.).

    Args:
        field: (n_L, n, *spatial), n = 1, 2 or 3 axes in tensor order; fixes the grid.
        accuracy, padding_mode, learnable: as for AffineGenerators.
    """

    field: Tensor

    def __init__(
        self, field: Tensor, *, accuracy: int = 2, padding_mode: str = "zeros", learnable: bool = False
    ) -> None:
        super().__init__()
        check_generators("field", field, (3, 4, 5), "(n_L, n, *spatial)")
        if field.shape[1] != field.dim() - 2 or 0 in field.shape:
            raise ValueError(
                f"field: expected shape (n_L, n, *spatial) with one component for each of the {field.dim() - 2} "
                f"axes, got {tuple(field.shape)}"
            )
        self.num_generators, self.ndim = field.shape[0], field.dim() - 2
        self._set_differences(accuracy, padding_mode)
        self._keep("field", field, learnable)

    def coefficients(self) -> Tensor:
        return self.field

    def _grid_shape(self) -> tuple[int, ...]:
        return tuple(self.field.shape[2:])

    def stencil(self) -> Stencil:
        return self._star_stencil(CoefficientKind.SAMPLED)

    def mean_square(self) -> Tensor:
        """r_i = mean over x of |v_i(x)|^2, times sum_k w_k^2."""
        with torch.no_grad():
            return self.field.double().square().flatten(2).mean(2).sum(1) * self._derivative_noise()


class StencilGenerators(GridGenerators):
    """(L_i f)[x] = sum_k s[i,k](x) f[x + taps[k]]: a free weighting of neighbours, section 4 of Dehmamy et al. 2021.

    Args:
        coefficients: (n_L, K), the same at each point (an ordinary convolution), or (n_L, K, *spatial), which fixes
            the grid.
        taps: (K, n) integer offsets in tensor order, n = 1, 2 or 3; a tensor or nested sequences.
        padding_mode, learnable: as for AffineGenerators.
    """

    values: Tensor

    def __init__(
        self,
        coefficients: Tensor,
        taps: Tensor | list[list[int]],
        *,
        padding_mode: str = "zeros",
        learnable: bool = False,
    ) -> None:
        super().__init__()
        offsets = torch.as_tensor(taps)
        if offsets.dtype.is_floating_point or offsets.dtype.is_complex or offsets.dtype == torch.bool:
            raise TypeError(f"taps: expected integer offsets (K, n), got {offsets.dtype}")
        if offsets.dim() != 2 or not 1 <= offsets.shape[1] <= 3 or offsets.shape[0] == 0:
            raise ValueError(f"taps: expected shape (K, n) with n = 1, 2 or 3, got {tuple(offsets.shape)}")
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
        self._keep("values", coefficients, learnable)

    def coefficients(self) -> Tensor:
        return self.values

    def _grid_shape(self) -> tuple[int, ...] | None:
        return tuple(self.values.shape[2:]) or None

    def stencil(self) -> Stencil:
        count = len(self.taps)
        kind = CoefficientKind.SAMPLED if self.values.dim() > 2 else CoefficientKind.CONSTANT
        mode = grid.PADDING_MODES[self.padding_mode]
        return Stencil(kind, self.taps, (1.0,) * count, tuple(range(count)), mode, transposed=self.transposed)

    def mean_square(self) -> Tensor:
        """r_i = mean over x of sum_k s[i,k](x)^2 (for taps that differ)."""
        with torch.no_grad():
            return self.values.double().square().sum(1).reshape(self.num_generators, -1).mean(1)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", taps={len(self.taps)}"


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

    def check_points(self, spatial: tuple[int, ...]) -> None:
        points = torch.Size(spatial).numel()
        if points != self.matrix.shape[1]:
            raise ValueError(
                f"input: expected {self.matrix.shape[1]} points as the generators have, "
                f"got spatial shape {tuple(spatial)} with {points}"
            )

    def forward(self, f: Tensor) -> Tensor:
        check_float("f", f, tuple(range(3, 16)), "(N, C, *spatial)")
        check_types(f, generators=self.matrix)
        spatial = tuple(f.shape[2:])
        self.check_points(spatial)
        result = torch.einsum("ixy,ncy->nicx", self.coefficients(), f.flatten(2))
        return result.reshape(f.shape[0], self.num_generators, f.shape[1], *spatial)

    def coefficients(self) -> Tensor:
        """L_i, or L_i^T where transposed: (n_L, d, d)."""
        return self.matrix.transpose(1, 2) if self.transposed else self.matrix

    def to_dense(self, spatial_shape: tuple[int, ...]) -> Tensor:
        self.check_points(tuple(spatial_shape))
        return self.coefficients()

    def mean_square(self) -> Tensor:
        """r_i = |L_i|^2 / d."""
        with torch.no_grad():
            return self.matrix.double().square().sum(2).mean(1)

    def extra_repr(self) -> str:
        return f"num_generators={self.num_generators}, points={self.matrix.shape[1]}" + (
            ", transposed=True" if self.transposed else ""
        )
