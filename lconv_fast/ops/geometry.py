"""What a call of the operators is about, apart from its tensors: the one description that Python, C++ and Triton share.

The fields of `Geometry` are the arguments that follow the tensors in every schema of ``torch.ops.lconv_fast``, in
that order (``csrc/geometry.h`` holds the same list, and a test compares the two). Nothing in it is computed from the
size of the grid: sizes stay symbolic when a call is traced, and centre and scale of the coordinates are made below the
schema.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from lconv_fast.ops.boundary import PaddingMode

MOST_AXES = 3
# Offsets, strides and halos beyond this serve nobody; below it, no sum or product of two of them leaves 64 bits.
MOST_STEPS = 2**31 - 1
MOST_POINTS = 2**48  # of a grid, its halo included: times 8 bytes and as many channels as fit, within 64 bits


class CoefficientKind(IntEnum):
    """What the coefficients v[i, a] hold. Codes that cross the schema: the order is that of csrc/geometry.h."""

    CONSTANT = 0  # (n_L, m): the same at each point
    SAMPLED = 1  # (n_L, m, *spatial)
    AFFINE = 2  # (n_L, m, n + 1): v(x) = the first n numbers times x, plus the last


class Stencil(NamedTuple):
    """What generators are apart from their numbers, on a grid of any size: L_i f(x) = sum_a v[i,a](x) (D_a f)(x), with
    the difference (D_a f)(x) = sum over the taps j of component a of tap_weights[j] f(x + taps[j])."""

    kind: CoefficientKind
    taps: tuple[tuple[int, ...], ...]
    tap_weights: tuple[float, ...]
    components: tuple[int, ...]  # the component of each tap, counting up from 0
    padding_mode: PaddingMode
    coordinate_scale: float | None = None  # affine: pixels per unit of x; None: half the largest extent
    transposed: bool = False  # L_i^T, the exact transpose of the padded operator, in the place of L_i


class Window(NamedTuple):
    """Where a grid lies in a larger one: its first point there, and the extents of the larger one."""

    origin: Sequence[int]
    full: Sequence[int]


class Geometry(NamedTuple):
    """The arguments that all operators share, in the order of their schemas; n axes, T taps."""

    kind: int  # a CoefficientKind
    taps: Sequence[int]  # T * n offsets
    tap_weights: Sequence[float]  # T
    components: Sequence[int]  # T, counting up from 0
    spatial: Sequence[int]  # n extents of the grid
    padding_mode: int  # a PaddingMode
    halo: Sequence[int]  # low and high for each axis: points that the array of f has around the grid; with zeros only
    origin: Sequence[int]  # n: the grid's first point in the full grid, which the coordinates of affine kinds refer to
    full: Sequence[int]  # n extents of that full grid
    coordinate_scale: float | None  # affine: pixels per unit of x; None: half the largest extent of the full grid
    stride: Sequence[int]  # n: results stand at every stride-th point
    groups: int

    @staticmethod
    def of(
        stencil: Stencil, spatial: Sequence[int], stride: Sequence[int], groups: int, window: Window | None = None
    ) -> Geometry:
        n = len(spatial)
        return Geometry(
            kind=int(stencil.kind),
            taps=[offset for tap in stencil.taps for offset in tap],
            tap_weights=list(stencil.tap_weights),
            components=list(stencil.components),
            spatial=spatial,
            padding_mode=int(stencil.padding_mode),
            halo=[0, 0] * n,
            origin=[0] * n if window is None else window.origin,
            full=spatial if window is None else window.full,
            coordinate_scale=stencil.coordinate_scale,
            stride=stride,
            groups=groups,
        )

    @property
    def ndim(self) -> int:
        return len(self.spatial)

    @property
    def component_count(self) -> int:
        return self.components[-1] + 1 if self.components else 0

    @property
    def array(self) -> list[int]:
        """Extents of the array of f: the grid with its halo."""
        return [size + self.halo[2 * a] + self.halo[2 * a + 1] for a, size in enumerate(self.spatial)]

    @property
    def out(self) -> list[int]:
        """Extents of y and g, ceil(spatial / stride): every stride-th point of the grid, from the first on."""
        return output_size(self.spatial, self.stride)

    @property
    def center(self) -> list[float]:
        """Of the full grid, in indices of this one: x_a = (index_a - center_a) / scale."""
        return [middle - first for middle, first in zip(center_of(self.full), self.origin, strict=True)]

    @property
    def scale(self) -> float:
        """Pixels per unit of x."""
        return half_extent(self.full) if self.coordinate_scale is None else self.coordinate_scale

    def coefficient_shape(self, generators: int) -> list[int]:
        """Of v, and of dQ/dv."""
        rest = {
            CoefficientKind.CONSTANT: [],
            CoefficientKind.SAMPLED: list(self.spatial),
            CoefficientKind.AFFINE: [self.ndim + 1],
        }
        return [generators, self.component_count, *rest[CoefficientKind(self.kind)]]

    def extended(self) -> Geometry:
        """The same taps on an array that already holds all the points they reach: no boundary is left."""
        halo = []
        for a in range(self.ndim):
            offsets = self.taps[a :: self.ndim]
            halo += [max([0, *(-t for t in offsets)]), max([0, *offsets])]
        return self._replace(padding_mode=int(PaddingMode.ZEROS), halo=halo)

    def check(self) -> None:
        """Raises RuntimeError unless memory is safe whatever the operators do with it; csrc/arguments.h does the same.
        Users have had clearer errors before (lconv_fast.checks)."""
        n, taps = self.ndim, len(self.tap_weights)
        require(1 <= n <= MOST_AXES, "expected 1 to 3 spatial axes")
        lengths = (len(self.taps), len(self.components), len(self.stride), len(self.halo), len(self.origin))
        require(
            (*lengths, len(self.full)) == (taps * n, taps, n, 2 * n, n, n),
            "taps, tap_weights, components, stride, halo, origin and full differ in length",
        )
        require(
            self.kind in set(CoefficientKind) and self.padding_mode in set(PaddingMode), "unknown kind or padding mode"
        )
        require(1 <= self.groups <= MOST_STEPS, "expected one group or more")
        require(all(abs(t) <= MOST_STEPS for t in [*self.taps, *self.halo, *self.stride]), "an offset is too large")
        require(
            min(self.spatial) >= 1 and min(self.stride) >= 1 and min(self.halo) >= 0,
            "expected spatial >= 1, stride >= 1 and halo >= 0",
        )
        points = 1
        for size in self.array:
            points *= size
        require(points <= MOST_POINTS, "the grid has too many points")
        require(
            all(1 <= size <= MOST_POINTS and abs(first) <= MOST_POINTS for size, first in zip(self.full, self.origin)),  # noqa: B905
            "expected full >= 1, and origin and full within 2^48",
        )
        scale = self.coordinate_scale
        require(
            scale is None or (0 < scale < math.inf and 1 / scale < math.inf), "expected a positive coordinate_scale"
        )
        require(self.padding_mode == PaddingMode.ZEROS or max(self.halo) == 0, "a halo goes with padding mode zeros")
        require(
            all(c in (before, before + 1) for before, c in zip([0, *self.components], self.components))  # noqa: B905
            and (not self.components or self.components[0] == 0),
            "components must count up from 0",
        )
        mode = PaddingMode(self.padding_mode)
        if mode.boundary.bounded:
            for axis, size in enumerate(self.spatial):
                reach = max([abs(t) for t in self.taps[axis::n]], default=0)
                require(reach < size, "taps reach beyond the far side of the grid")


def require(condition: bool, message: str) -> None:
    """The operators' own check, as in C++."""
    if not condition:
        raise RuntimeError(f"lconv_fast: {message}")


def center_of(full: Sequence[int]) -> list[float]:
    """The centre of a grid, in indices."""
    return [(size - 1) / 2 for size in full]


def half_extent(full: Sequence[int]) -> float:
    """Half the largest extent, the default coordinate scale: |x| <= 1 on every grid; 1 on a single point."""
    return (max(full) - 1) / 2 or 1.0


def output_size(spatial: Sequence[int], stride: Sequence[int]) -> list[int]:
    """ceil(spatial / stride) for each axis."""
    return [(size - 1) // step + 1 for size, step in zip(spatial, stride, strict=True)]


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """Half types are summed in float32, and so are coefficients and their gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(t: Tensor) -> bool:
    """Whether results shaped after `t` are laid out channels-last (in any number of axes); as in csrc/operators.cpp."""
    return t.size(1) > 1 and t.stride(1) == 1 and t.stride(-1) != 1


def empty_like_format(like: Tensor, channels: int, spatial: Sequence[int]) -> Tensor:
    """(N, channels, *spatial) of `like`'s type, laid out as it is; no view, which could not be changed in place."""
    size = (like.size(0), channels, *spatial)
    if not is_channels_last(like):
        return like.new_empty(size)
    strides: list[int] = []
    step = max(channels, 1)
    for points in reversed(spatial):
        strides.insert(0, step)
        step = step * points
    return like.new_empty_strided(size, (step, 1, *strides))
