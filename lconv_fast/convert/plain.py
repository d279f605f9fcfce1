"""Generators on a grid in plain PyTorch: slices of a padded array, times coefficients.

No number depends on the size of the grid, so that sizes can stay symbolic when a call is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lconv_fast import grid
from lconv_fast.convert.taps import halo, mode_of
from lconv_fast.generators import Generators
from lconv_fast.grid import every
from lconv_fast.ops.geometry import CoefficientKind, Stencil, accumulate_type


class PlainGenerators(Generators):
    """Generators with taps, in plain PyTorch; `forward` takes and gives what theirs does."""

    ndim: int

    def __init__(self, generators: Generators, stencil: Stencil) -> None:
        super().__init__()
        self.plan, self.transposed, self.padding_mode = stencil, stencil.transposed, mode_of(stencil)
        self.num_generators, self.ndim = generators.num_generators, len(stencil.taps[0])
        numbers = generators.coefficients()
        self._keep("numbers", numbers, numbers.requires_grad)
        self._rates = generators.mean_square()

    def coefficients(self) -> Tensor:
        return self.numbers  # type: ignore[return-value]

    def mean_square(self) -> Tensor:
        return self._rates

    def check_shape(self, spatial: Sequence[int]) -> None:
        """Any: a tap beyond what a boundary shows is an error of the slices."""

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        return self.at(f, (1,) * self.ndim)

    def at(self, f: Tensor, stride: tuple[int, ...]) -> Tensor:
        """L_i f at every stride-th point. Half types are computed and returned in float32."""
        f = f.to(accumulate_type(f.dtype))
        v = self._values(f)
        if self.transposed:
            return every(self._transposed(f, v), stride)
        v = v if self.plan.kind == CoefficientKind.CONSTANT else every(v, stride)
        windows = _Windows(f, self.plan.taps, self.padding_mode, stride)
        terms = []
        for a in range(v.shape[1]):
            taps = [j for j, component in enumerate(self.plan.components) if component == a]
            difference = windows.sum(taps, self.plan.tap_weights)
            terms.append(difference.unsqueeze(1) * v[:, a].unsqueeze(1))  # (N, n_L, C, *out)
        return sum(terms[1:], terms[0])

    def _values(self, f: Tensor) -> Tensor:
        """v[i,a](x): (n_L, m, *spatial), or with extents 1 where it is the same at all points."""
        v, n = self.coefficients().to(f.dtype), self.ndim
        if self.plan.kind == CoefficientKind.SAMPLED:
            return v
        if self.plan.kind == CoefficientKind.CONSTANT:
            return v.reshape(*v.shape, *[1] * n)
        axes = []
        for size in f.shape[2:]:
            index = torch.arange(size, dtype=f.dtype, device=f.device)
            axes.append(index - index[-1] / 2)
        if self.plan.coordinate_scale is not None:
            scale = torch.full((), self.plan.coordinate_scale, dtype=f.dtype, device=f.device)
        else:
            scale = functools.reduce(torch.maximum, [axis[-1] for axis in axes])
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # one point
        result = v[..., n].reshape(*v.shape[:2], *[1] * n)
        for b, axis in enumerate(axes):
            x = (axis / scale).reshape([-1 if a == b else 1 for a in range(n)])
            result = result + v[..., b].reshape(*v.shape[:2], *[1] * n) * x
        return result

    def _transposed(self, g: Tensor, v: Tensor) -> Tensor:
        """(L_i^T g)(y) = sum over taps j and points x that see y through them, of tap_weights[j] v[i,a](x) g(x)."""
        taps, weights, components = self.plan.taps, self.plan.tap_weights, self.plan.components
        products = [g.unsqueeze(1) * v[:, a].unsqueeze(1) for a in range(v.shape[1])]  # (N, n_L, C, *spatial)
        rows = products[0].shape[1:3]
        merged = [product.flatten(1, 2) for product in products]
        if self.plan.padding_mode.inverts:
            turned = [tuple(-o for o in tap) for tap in taps]
            windows = [_Windows(product, turned, self.padding_mode, (1,) * self.ndim) for product in merged]
            terms = [windows[a].sum([j], weights) for j, a in enumerate(components)]
            return sum(terms[1:], terms[0]).unflatten(1, rows)
        around = halo(taps)
        terms = []
        for tap, weight, a in zip(taps, weights, components, strict=True):
            widths = [(low + o, high - o) for o, (low, high) in zip(tap, around, strict=True)]
            terms.append(F.pad(merged[a] * weight, [w for pair in reversed(widths) for w in pair]))
        extended = sum(terms[1:], terms[0])
        for axis, (low, high) in enumerate(around):
            extended = _folded(extended, axis + 2, low, high, self.padding_mode)
        return extended.unflatten(1, rows)


def plain_generators(generators: Generators) -> Generators:
    """Kinds without taps are plain PyTorch as they are."""
    stencil = generators.stencil()
    return generators if stencil is None else PlainGenerators(generators, stencil)


def rows_at(generators: Generators, f: Tensor, stride: tuple[int, ...]) -> Tensor:
    """L_i f at every stride-th point: (N, n_L, C, *out)."""
    return generators.at(f, stride) if isinstance(generators, PlainGenerators) else every(generators(f), stride)


class _Windows:
    """f(x + tap) at every stride-th point x, from one padded array."""

    def __init__(self, f: Tensor, taps: Sequence[tuple[int, ...]], mode: str, stride: tuple[int, ...]) -> None:
        self.spatial, self.taps, self.stride, self.halo = f.shape[2:], taps, stride, halo(taps)
        self.array = padded(f, self.halo, mode)

    def sum(self, chosen: Iterable[int], weights: Sequence[float]) -> Tensor:
        """The sum over the chosen taps j, of weights[j] f(x + taps[j])."""
        terms = []
        for j in chosen:
            term = self.array
            for axis, (size, step) in enumerate(zip(self.spatial, self.stride, strict=True)):
                first = self.halo[axis][0] + self.taps[j][axis]
                term = term[(slice(None),) * (axis + 2) + (slice(first, first + size, step),)]
            terms.append(term * weights[j])
        return sum(terms[1:], terms[0])


def padded(f: Tensor, around: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """`f` with what its boundary shows, (low, high) points of each axis."""
    for axis, (low, high) in enumerate(around):
        f = _padded(f, axis + 2, low, high, mode)
    return f


def _padded(f: Tensor, dim: int, low: int, high: int, mode: str) -> Tensor:
    """`f` with what its boundary shows, on one axis. By an index, since F.pad takes no size below the padding."""
    if low == high == 0:
        return f
    size, shown = f.shape[dim], grid.padding_mode(mode).boundary.shown
    if shown is None:
        return F.pad(f, [0, 0] * (f.dim() - 1 - dim) + [low, high])
    # Tensors in the place of numbers: exporters have no rules for index arithmetic with symbolic sizes.
    last = torch.arange(size, device=f.device)[-1]
    index = torch.arange(low + high + size, device=f.device) - low
    return f.index_select(dim, shown(index, last + 1))


def _folded(array: Tensor, dim: int, low: int, high: int, mode: str) -> Tensor:
    """The transpose of `_padded` for a mode that does not invert: each point of the border added to what it showed."""
    size = array.shape[dim] - low - high
    result = array.narrow(dim, low, size)

    def placed(part: Tensor, before: Any, after: Any) -> Tensor:
        return F.pad(part, [0, 0] * (array.dim() - 1 - dim) + [before, after])

    for width, first, step in ((low, low - 1, -1), (high, low + size, 1)):
        for k in range(width):
            near = grid.padding_mode(mode).inward(k + 1)
            far = size - 1 - near
            before, after = (near, far) if step < 0 else (far, near)
            result = result + placed(array.narrow(dim, first + k * step, 1), before, after)
    return result
