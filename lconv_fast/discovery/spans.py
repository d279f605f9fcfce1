"""Spans of vector fields: angles between two, the affine fields that commute with one, and closed algebras near one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from lconv_fast.checks import extents, is_integer, real
from lconv_fast.discovery.algebra import bracket, null_space, orthonormal
from lconv_fast.discovery.fields import Affine, Array, affine_numbers, fields_of, generators_of
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators


@dataclass
class Alignment:
    angles: Array  # degrees, principal angles between the spans of the fields, smallest first
    correlations: Array  # of L rebuilt from the fields: the cosines of the principal angles between their spans


def alignment(learned: Generators, true: Generators, spatial_shape: tuple[int, ...] | None = None) -> Alignment:
    """Principal angles between what two sets of generators span, as fields and as operators.

    The correlation is <L, L*> / (|L| |L*|) of the dense matrices, generalised to spans: of both sets rebuilt from their
    fields with the same central differences, without storing them.

    Args:
        learned, true: AffineGenerators or FieldGenerators on the same number of axes.
        spatial_shape: the grid; by default that of a FieldGenerators among them, or 20 points a side.

    Raises:
        TypeError: generators that are no vector fields.
        ValueError: fields on different grids.
    """
    for name, generators in (("learned", learned), ("true", true)):
        if not isinstance(generators, AffineGenerators | FieldGenerators):
            raise TypeError(f"{name}: expected AffineGenerators or FieldGenerators, got {type(generators).__name__}")
    assert isinstance(learned, AffineGenerators | FieldGenerators)
    shapes = [tuple(g.field.shape[2:]) for g in (learned, true) if isinstance(g, FieldGenerators)]
    if spatial_shape is None:
        spatial = shapes[0] if shapes else (20,) * learned.ndim
    else:
        spatial = extents("spatial_shape", spatial_shape, learned.ndim)
    a, b = fields_of(learned, spatial), fields_of(true, spatial)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"alignment: expected fields on one grid, got {a.shape[1]} and {b.shape[1]} numbers each")
    q, r = np.linalg.qr(a.T)[0], np.linalg.qr(b.T)[0]
    cosines, sines = np.linalg.svd(q.T @ r, compute_uv=False), np.linalg.svd(r - q @ (q.T @ r), compute_uv=False)
    count = min(len(a), len(b))
    cosines = np.clip(cosines[:count], 0, 1)
    # arccos loses small angles, arcsin large ones.
    small = np.sort(np.arcsin(np.clip(np.sort(sines)[:count], 0, 1)))
    angles = np.where(cosines > 0.7, small, np.sort(np.arccos(cosines)))
    return Alignment(np.degrees(angles), _operator_correlation(a, b, spatial))


def _operator_correlation(a: Array, b: Array, spatial: tuple[int, ...]) -> Array:
    """Cosines between the spans in <v_a d_a, w_b d_b> over points and taps of the central differences: the dense
    matrices' inner product."""
    # Each point's row of L holds v^a(x) / 2 at x + e_a and its negative at x - e_a: rows with both taps on the grid
    # count twice, at the border once.
    n = len(spatial)
    weights = []
    for axis, size in enumerate(spatial):
        taps = np.full(size, 2.0)
        taps[0] -= 1
        taps[-1] -= 1
        weights.append(np.broadcast_to(taps.reshape([-1 if k == axis else 1 for k in range(n)]), spatial).ravel())
    weight = np.sqrt(np.concatenate(weights))
    q, r = np.linalg.qr((a * weight).T)[0], np.linalg.qr((b * weight).T)[0]
    return np.clip(np.linalg.svd(q.T @ r, compute_uv=False), 0, 1)


def centralizer(generators: Generators, spatial_shape: tuple[int, ...], tolerance: float = 1e-2) -> AffineGenerators:
    """The affine fields w with [L_i, w] = 0 for all i, in pixels: L-convs of these are equivariant under exp(sum t L).

    They hold the generators themselves where these commute. An orthonormal basis in centred coordinates of unit half
    extent, of the directions whose brackets are below `tolerance` of the largest.

    Args:
        generators: AffineGenerators, or FieldGenerators that are affine within 5 percent.
        spatial_shape: the grid that the fields of a FieldGenerators or of pixel coordinates refer to.

    Raises:
        ValueError: fields that are not affine, and generators that no affine field commutes with.
    """
    tolerance = real("tolerance", tolerance, 0, 1)
    family, numbers, spatial = _affine_on(generators, spatial_shape)
    units = family.homogeneous(np.eye(family.size))
    rows = [np.stack([bracket(v, w).ravel() for w in units], 1) for v in family.homogeneous(numbers)]
    commuting = null_space(np.concatenate(rows), tolerance)
    if not len(commuting):
        raise ValueError("generators: no affine field commutes with all of them")
    return _in_pixels(family, commuting, spatial)


def closed(generators: Generators, spatial_shape: tuple[int, ...], dimension: int | None = None) -> AffineGenerators:
    """A closed algebra of affine fields near the span of generators that does not close, in pixels.

    Without `dimension`, brackets are added until they lead no further: the smallest algebra that holds the span, within
    a tenth. With it, the span itself is moved: minimise |w - v|^2 over spans of that many fields subject to
    [w_i, w_j] = c_ij^k w_k, by Gauss-Newton on the closure's residual.

    Args:
        generators: AffineGenerators, or FieldGenerators that are affine within 5 percent.
        spatial_shape: the grid.
        dimension: of the algebra; at most that of the span.

    Raises:
        ValueError: fields that are not affine, a dimension that is too large, and spans near which no algebra is found.
    """
    family, numbers, spatial = _affine_on(generators, spatial_shape)
    span = np.linalg.svd(numbers, full_matrices=False)[2]
    if dimension is None:
        span = _generated(family, span)
    elif not is_integer(dimension):
        raise TypeError(f"dimension: expected an integer or None, got {dimension!r}")
    elif not 1 <= dimension <= len(span):
        raise ValueError(f"dimension: expected 1 to {len(span)}, that of the span, got {dimension!r}")
    else:
        span = _nearest_closed(family, span[:dimension])
    return _in_pixels(family, span, spatial)


def _affine_on(generators: Generators, spatial_shape: tuple[int, ...]) -> tuple[Affine, Array, tuple[int, ...]]:
    """The family, the generators' numbers (n_L, size) in it, and the grid."""
    if not isinstance(generators, AffineGenerators | FieldGenerators):
        raise TypeError(f"generators: expected AffineGenerators or FieldGenerators, got {type(generators).__name__}")
    spatial = extents("spatial_shape", spatial_shape, generators.ndim)
    numbers = affine_numbers(fields_of(generators, spatial), spatial)
    if numbers is None:
        raise ValueError("generators: expected fields that are affine, within 5 percent")
    return Affine(len(spatial)), numbers.reshape(len(numbers), -1), spatial


def _in_pixels(family: Affine, numbers: Array, spatial: tuple[int, ...]) -> AffineGenerators:
    found = generators_of(family, numbers, spatial)
    assert isinstance(found, AffineGenerators)
    return found


def _brackets(family: Affine, span: Array) -> Array:
    """[w_i, w_j] for i < j, as numbers of the family."""
    matrices = family.homogeneous(span)
    pairs = [(i, j) for i in range(len(span)) for j in range(i + 1, len(span))]
    brackets = [bracket(matrices[i], matrices[j])[: family.ndim].ravel() for i, j in pairs]
    return np.stack(brackets) if brackets else np.zeros((0, family.size))


def _generated(family: Affine, span: Array) -> Array:
    while True:
        brackets = _brackets(family, span)
        rest = brackets - brackets @ span.T @ span
        new = orthonormal(rest[np.linalg.norm(rest, axis=1) > 0.1]) if len(rest) else rest
        if not len(new):
            return span
        span = np.linalg.qr(np.concatenate([span, new]).T)[0].T


def _nearest_closed(family: Affine, start: Array) -> Array:
    def rest(numbers: Array, pull: float) -> Array:
        span = np.linalg.qr(numbers.reshape(start.shape).T)[0].T
        brackets = _brackets(family, span)
        away = start - start @ span.T @ span
        return np.concatenate([(brackets - brackets @ span.T @ span).ravel(), pull * away.ravel()])

    numbers = start.ravel()
    # The pull towards the start goes to zero: then only closure counts, from a point that is near.
    for pull in (0.3, 0.03, 0.003, 0.0):
        numbers = least_squares(rest, numbers, args=(pull,), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    span = np.linalg.qr(numbers.reshape(start.shape).T)[0].T
    away = np.linalg.norm(start - start @ span.T @ span, axis=1).max()
    if np.abs(rest(numbers, 0.0)).max(initial=0.0) > 1e-6 or away > 0.3:
        raise ValueError(f"generators: no closed algebra of dimension {len(start)} is near their span")
    return span
