"""Symmetries from conservation: the second way to discover generators of Dehmamy et al. 2021 (after eq. 22)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconv_fast.checks import choice, real, unsigned_int
from lconv_fast.generators import AffineGenerators
from lconv_fast.generators.algebras import ALGEBRAS
from lconv_fast.physics.currents import canonical, momenta
from lconv_fast.physics.density import Density, Scheme, check_lagrangian, scheme_of
from lconv_fast.physics.derivatives import (
    Accuracy,
    check_field,
    check_scheme,
    coordinate_scale,
    divergence,
    gradient,
    vector_fields,
)
from lconv_fast.physics.lagrangian import QuadraticLagrangian
from lconv_fast.physics.variation import euler_lagrange

# About twice |div J| of a symmetry over |E|, relative to their terms, for waves that d_a resolves: currents have
# twice the wave numbers of phi, at which differences of order p err by up to 2^p times as much.
PER_RESIDUAL: dict[Accuracy, float] = {2: 4.0, 4: 10.0, 6: 30.0, 8: 130.0, "spectral": 1000.0}
LEAST, MOST = 1e-6, 0.05


class NoetherGenerators(AffineGenerators):
    """What `discover_by_noether` found: an orthonormal basis (of the numbers matrix, shift), the best first.

    Attributes:
        singular_values: of every direction of the family, rising: |div J| relative to its terms d_0 J^0, d_1 J^1, ...
        residual: |E| relative to its two terms, how well phi solves the Euler-Lagrange equation.
        undetermined: number of directions whose currents vanish term by term on the given phi.

    num_generators may be 0: nothing was found.
    """

    singular_values: Tensor
    residual: float
    undetermined: int

    def forward(self, f: Tensor) -> Tensor:
        return super().forward(f) if self.num_generators else f.new_empty(f.shape[0], 0, *f.shape[1:])


def discover_by_noether(
    lagrangian: QuadraticLagrangian | Density,
    phi: Tensor,
    kind: str = "affine",
    *,
    tolerance: float | None = None,
    margin: int | None = None,
    accuracy: Accuracy | None = None,
    padding_mode: str | None = None,
) -> NoetherGenerators:
    """The generators v = sum_k c_k v_k whose Noether currents have the least divergence on solutions phi.

    J is linear in c: with the stress-energy tensor T of eq. (22), J^a = v^b T^a_b, so that

        minimise  |sum_k c_k div J_k|^2 / sum_a |sum_k c_k d_a J_k^a|^2

    over c is a generalised singular value problem, solved at once for all directions. The denominator, the terms of the
    divergence, keeps the trivial c = 0 and currents that vanish from counting. Fields are scalars: what turns
    components along with points is not looked for.

    Args:
        lagrangian: a QuadraticLagrangian or any density (see `euler_lagrange`).
        phi: solutions of its Euler-Lagrange equation, (N, m, *spatial); several waves, or all currents are conserved.
        kind: the family, a named algebra: affine, gl, se, lorentz, ...
        tolerance: singular values up to it are symmetries. None: a multiple, PER_RESIDUAL, of the residual |E| of phi,
            at least LEAST and at most MOST.
        margin: points at the border that take no part; None: twice the reach of d_a, 0 where it is periodic.
        accuracy, padding_mode: of d_a. None: those of the Lagrangian, else 2 and 'zeros'.

    Raises:
        TypeError, ValueError: an unknown family, a grid without points inside the margin, a phi that gives no current.
    """
    check_field("phi", phi)
    spatial, ndim = tuple(phi.shape[2:]), phi.dim() - 2
    phi = phi.detach()
    if phi.is_meta or not bool(phi.isfinite().all()):
        raise ValueError("phi: expected finite numbers, got NaN, infinity, or a tensor on the meta device")
    check_lagrangian(lagrangian)
    scheme = scheme_of(accuracy, padding_mode, lagrangian)
    check_scheme(*scheme, ndim)
    choice("kind", kind, ALGEBRAS)
    try:
        family = AffineGenerators.named(kind, ndim).to(phi.device, phi.real.dtype)
    except ValueError as error:
        raise ValueError(f"phi: {error}") from None
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, 0, 1)
    if margin is None:
        margin = 0 if scheme.padding_mode == "circular" else int(scheme.accuracy)
    margin = unsigned_int("margin", margin)
    if any(size <= 2 * margin for size in spatial):
        raise ValueError(f"margin: expected points inside a margin of {margin}, got a grid of {spatial}")
    inside: Any = (..., *(slice(margin, size - margin) for size in spatial))

    with torch.no_grad():
        found = momenta(lagrangian, phi, scheme)
        tensor = canonical(found)  # T^a_b: (N, b, a, *spatial)
        field = vector_fields(family, found.x)
        slope = family.matrix / coordinate_scale(family, spatial)  # d_a v^b: [k, b, a]
        # Field and current by the product rule: the field of a rotation is not periodic, T may be.
        terms = torch.stack(
            [
                torch.einsum("kb...,Nb...->kN...", field, gradient(tensor[:, :, a], *scheme)[:, :, a])
                + torch.einsum("kb,Nb...->kN...", slope[:, :, a], tensor[:, :, a])
                for a in range(ndim)
            ],
            1,
        )[inside]  # d_a J_k^a: (K, n, N, *inside)
        terms = terms.flatten(2).double()
        directions, singular, undetermined = _least(terms.sum(1), terms.flatten(1))
        residual = _residual(lagrangian, phi, scheme, inside)
    if tolerance is None:
        tolerance = min(MOST, max(LEAST, PER_RESIDUAL[scheme.accuracy] * residual))
    return _generators(family, directions[singular <= tolerance], singular, undetermined, residual)


def _least(divergence: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, int]:
    """Directions c (K', K) and |c divergence| / |c terms|, rising; and how many directions have no terms."""
    size, axes = torch.linalg.eigh(terms @ terms.T)
    kept = size > 1e-12 * size.max().clamp_min(1e-300)
    if not kept.any():
        raise ValueError("phi: its currents vanish everywhere; expected solutions that vary in space")
    white = (axes[:, kept] / size[kept].sqrt()).T
    rows = torch.linalg.qr((white @ divergence).T, mode="r").R  # the singular values without squaring them
    _, singular, found = torch.linalg.svd(rows)
    return found.flip(0) @ white, singular.flip(0), int((~kept).sum())


def _residual(lagrangian: QuadraticLagrangian | Density, phi: Tensor, scheme: Scheme, inside: Any) -> float:
    """|dL/dphi - d_a p^a| / (|dL/dphi|^2 + |d_a p^a|^2)^(1/2)."""
    residual = euler_lagrange(lagrangian, phi, accuracy=scheme.accuracy, padding_mode=scheme.padding_mode)
    slopes = momenta(lagrangian, phi, scheme).momenta
    parts = divergence(slopes, *scheme)
    size = (residual + parts)[inside].norm().square() + parts[inside].norm().square()
    return float(residual[inside].norm() / size.sqrt().clamp_min(1e-300))


def _generators(
    family: AffineGenerators, directions: Tensor, singular: Tensor, undetermined: int, residual: float
) -> NoetherGenerators:
    numbers = torch.cat([family.matrix.flatten(1), family.shift], 1).double()
    rows = directions @ numbers
    # Orthonormal from the best on.
    basis = torch.linalg.qr(rows.T).Q.T.to(family.matrix.dtype) if len(rows) else rows.to(family.matrix.dtype)
    ndim = family.ndim
    matrix, shift = basis[:, : ndim * ndim].reshape(-1, ndim, ndim), basis[:, ndim * ndim :]
    result = NoetherGenerators(*(t if len(t) else t.new_zeros(1, *t.shape[1:]) for t in (matrix, shift)))
    if not len(basis):
        result.matrix, result.shift, result.num_generators = matrix, shift, 0
    result.singular_values, result.undetermined, result.residual = singular, undetermined, residual
    return result
