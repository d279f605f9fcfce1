"""Bases of generators that commute with a group: layers of them are equivariant under it (proofs in docs/networks.md).

A layer sum_i W^i L_i commutes with exp(t X) exactly when every L_i commutes with X: [L_i, X] = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lconv_fast.checks import choice, extents, positive_int
from lconv_fast.generators import (
    AffineDifferentialGenerators,
    AffineGenerators,
    Generators,
    StencilGenerators,
    named,
    normalise,
)
from lconv_fast.generators.affine_differential import append_laplacian
from lconv_fast.generators.differential import first_and_own_second
from lconv_fast.ops.geometry import half_extent

Stencil = dict[tuple[int, ...], float]


def check_ndim(ndim: int) -> None:
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim not in (1, 2, 3):
        raise ValueError(f"ndim: expected 1, 2 or 3 axes, got {ndim!r}")


def _axis(ndim: int, axis: int, step: int) -> tuple[int, ...]:
    return tuple(step if a == axis else 0 for a in range(ndim))


def _laplacian(ndim: int) -> Stencil:
    """sum_a f[x + e_a] - 2 f[x] + f[x - e_a]."""
    return {(0,) * ndim: -2.0 * ndim} | {_axis(ndim, a, step): 1.0 for a in range(ndim) for step in (1, -1)}


def _compose(left: Stencil, right: Stencil) -> Stencil:
    total: Stencil = {}
    for s, u in left.items():
        for t, v in right.items():
            tap = tuple(a + b for a, b in zip(s, t, strict=True))
            total[tap] = total.get(tap, 0.0) + u * v
    return total


def isotropic(ndim: int, powers: int = 2, **keywords: Any) -> StencilGenerators:
    """Laplacian, ..., Laplacian^powers, normalised: what commutes with SE(n) is a series in the Laplacian."""
    check_ndim(ndim)
    rows = [_laplacian(ndim)]
    while len(rows) < positive_int("powers", powers):
        rows.append(_compose(rows[-1], rows[0]))
    taps = sorted({tap for row in rows for tap in row})
    values = torch.tensor([[row.get(tap, 0.0) for tap in taps] for row in rows])
    result = StencilGenerators(values, [list(tap) for tap in taps], **keywords)
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
    choice("group", group, COMMUTANTS)
    check_ndim(ndim)
    if group == "rotation" and ndim == 1:
        raise ValueError("group: 'rotation' has no motions on 1 axis")
    return COMMUTANTS[group](ndim, **keywords)


def with_laplacian(generators: AffineGenerators, spatial: Sequence[int] | None = None) -> AffineDifferentialGenerators:
    """Affine generators and the Laplacian together, each normalised (`generators.normalise`), on grids of any size.

    The Laplacian commutes with all rotations; with `equivariant("rotation")` it is the smoothing that fields lack.

    Args:
        spatial: the grid, for fields with a coordinate scale of their own, such as those of `centralizer`, in pixels:
            the size that they are normalised to depends on how far it reaches. They stay the same fields; their
            numbers are for coordinates in half extents of that grid.

    Raises TypeError for other generators, ValueError for transposes, and where such a grid is missing.
    """
    if not isinstance(generators, AffineGenerators):
        raise TypeError(f"generators: expected AffineGenerators, got {type(generators).__name__}")
    if generators.transposed:
        raise ValueError("generators: expected vector fields, got transposes")
    matrix, scale = generators.matrix.detach(), generators.coordinate_scale
    if spatial is not None:
        reach = half_extent(extents("spatial", spatial, generators.ndim))
        if scale is not None:
            matrix, scale = matrix * (reach / scale), reach
    elif scale is not None:
        raise ValueError(
            f"spatial: expected the grid, since the generators have a coordinate scale of their own ({scale:g} pixels)"
        )
    return normalise(
        AffineDifferentialGenerators(
            *append_laplacian(matrix, generators.shift.detach()),
            first_and_own_second(generators.ndim),
            accuracy=generators.accuracy,
            padding_mode=generators.padding_mode,
            coordinate_scale=scale,
        )
    )
