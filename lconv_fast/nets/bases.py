"""Bases of generators that commute with a group: layers of them are equivariant under it (proofs in docs/networks.md).

A layer sum_i W^i L_i commutes with exp(t X) exactly when every L_i commutes with X: [L_i, X] = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast import grid
from lconv_fast.checks import positive_int
from lconv_fast.generators import AffineGenerators, Generators, StencilGenerators
from lconv_fast.initialization import normalise
from lconv_fast.second_order import Stencil, compose, constant_stencils, laplacian, named


def check_ndim(ndim: int) -> None:
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim not in (1, 2, 3):
        raise ValueError(f"ndim: expected 1, 2 or 3 axes, got {ndim!r}")


def isotropic(ndim: int, powers: int = 2, **keywords: Any) -> StencilGenerators:
    """Laplacian, ..., Laplacian^powers, normalised: what commutes with SE(n) is a series in the Laplacian."""
    check_ndim(ndim)
    rows: list[Stencil] = [laplacian(ndim)]
    while len(rows) < positive_int("powers", powers):
        rows.append(compose(rows[-1], rows[0]))
    result = constant_stencils(rows, **keywords)
    normalise(result)
    return result


def _about_centre(ndim: int, **keywords: Any) -> AffineGenerators:
    """x . grad, and in 2D the rotation itself."""
    names = ("scaling", "rotation") if ndim == 2 else ("scaling",)
    parts = [AffineGenerators.named(name, ndim) for name in names]
    return AffineGenerators(torch.cat([p.matrix for p in parts]), torch.cat([p.shift for p in parts]), **keywords)


# group: (axes, keywords) -> generators that commute with it.
COMMUTANTS: dict[str, Callable[..., Generators]] = {
    "translation": lambda ndim, **keywords: named("second", ndim, **keywords),
    "rotation": _about_centre,
    "scaling": lambda ndim, **keywords: AffineGenerators.named("gl", ndim, **keywords),
    "se": isotropic,
}


def equivariant(group: str, ndim: int = 2, **keywords: Any) -> Generators:
    """Generators that commute with a group: the layer is equivariant under it.

    | group | generators | commute |
    | --- | --- | --- |
    | translation | d_a, d_a d_b | with all constant coefficients |
    | rotation, about the centre | x . grad, and in 2D x_0 d_1 - x_1 d_0 | the affine fields that do |
    | scaling, about the centre | x_b d_a | the affine fields that do |
    | se: translations and rotations | Laplacian, Laplacian^2 | the elements of order 4 that do |

    keywords: padding_mode, ... With zeros outside the grid the border is a part of the image: what turns with it is
    turned.

    Raises ValueError for another group. (Of similitudes, W^0 alone is left: take `lc.DifferentialInvariants`.)
    """
    if group not in COMMUTANTS:
        raise ValueError(f"group: expected one of {', '.join(COMMUTANTS)}, got {group!r}")
    check_ndim(ndim)
    if group == "rotation" and ndim == 1:
        raise ValueError("group: 'rotation' has no motions on 1 axis")
    return COMMUTANTS[group](ndim, **keywords)


def field(generators: AffineGenerators, spatial: Sequence[int]) -> Tensor:
    """v_i^a(x) at the points of a grid: (n_L, n, *spatial)."""
    scale = generators.coordinate_scale or grid.half_extent(spatial)
    axes = [(torch.arange(size) - c) / scale for size, c in zip(spatial, grid.center(spatial), strict=True)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(generators.matrix)  # (n, *spatial)
    v = torch.einsum("iab,b...->ia...", generators.matrix, x)
    return v + generators.shift.reshape(*generators.shift.shape, *[1] * generators.ndim)


def with_laplacian(generators: AffineGenerators, spatial: Sequence[int]) -> StencilGenerators:
    """Affine generators and the Laplacian together, on a grid of shape `spatial` (coefficients at each point).

    The Laplacian commutes with all rotations; with `equivariant("rotation")` it is the smoothing that fields lack.
    Each is normalised (`initialization.normalise`).
    """
    n, v = generators.ndim, field(generators, spatial)
    taps = [[0] * n] + [[step if a == b else 0 for b in range(n)] for step in (1, -1) for a in range(n)]
    first = torch.cat([torch.zeros_like(v[:, :1]), v / 2, -v / 2], 1)  # central differences
    second = torch.ones(1, 2 * n + 1, *spatial).to(v)
    second[:, 0] = -2.0 * n
    result = StencilGenerators(torch.cat([first, second]), taps, padding_mode=generators.padding_mode)
    normalise(result)
    return result
