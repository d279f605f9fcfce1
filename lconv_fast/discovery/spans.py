"""Affine fields made from others: those that commute with them, and closed algebras near their span."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import least_squares

from lconv_fast.discovery.algebra import TOLERANCE, bracket, fields_of, null_space, orthonormal
from lconv_fast.discovery.flows import Affine, Array, grid_points
from lconv_fast.generators import AffineGenerators, Generators


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
    family, numbers, half = _affine_on(generators, spatial_shape)
    ndim = family.ndim
    units = family.homogeneous(np.eye(family.size))
    rows = [np.stack([bracket(v, w, ndim).ravel() for w in units], 1) for v in family.homogeneous(numbers)]
    commuting = null_space(np.concatenate(rows), tolerance)
    if not len(commuting):
        raise ValueError("generators: no affine field commutes with all of them")
    return _in_pixels(family, commuting, half)


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
    family, flat, half = _affine_on(generators, spatial_shape)
    span = np.linalg.svd(flat, full_matrices=False)[2]
    if dimension is None:
        span = _generated(family, span)
    elif not 1 <= dimension <= len(span):
        raise ValueError(f"dimension: expected 1 to {len(span)}, that of the span, got {dimension!r}")
    else:
        span = _nearest_closed(family, span[:dimension])
    return _in_pixels(family, span, half)


def _affine_on(generators: Generators, spatial: tuple[int, ...]) -> tuple[Affine, Array, float]:
    """The family, numbers (n_L, size) in centred coordinates of unit half extent, and pixels per unit of them."""
    _, points, half = grid_points(spatial)
    family = Affine(len(spatial))
    fields = fields_of(generators, spatial).reshape(-1, family.ndim, points.shape[1]) / half
    numbers = fields @ np.linalg.pinv(family.basis(points))
    if np.linalg.norm(fields - numbers @ family.basis(points)) > TOLERANCE * np.linalg.norm(fields):
        raise ValueError("generators: expected fields that are affine, within 5 percent")
    return family, numbers.reshape(len(numbers), -1), half


def _in_pixels(family: Affine, numbers: Array, half: float) -> AffineGenerators:
    rows = torch.from_numpy(numbers.reshape(len(numbers), family.ndim, family.ndim + 1).copy()).float()
    return AffineGenerators(rows[..., :-1], rows[..., -1] * half, coordinate_scale=1.0)


def _brackets(family: Affine, span: Array) -> Array:
    """[w_i, w_j] for i < j, as numbers of the family."""
    matrices = family.homogeneous(span)
    pairs = [(i, j) for i in range(len(span)) for j in range(i + 1, len(span))]
    brackets = [bracket(matrices[i], matrices[j], family.ndim)[: family.ndim].ravel() for i, j in pairs]
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
