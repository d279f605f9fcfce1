"""Noether currents and the stress-energy tensor, eq. (22) of Dehmamy et al. 2021."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lconv_fast.checks import boolean, check_strided
from lconv_fast.generators import AffineGenerators, FieldGenerators
from lconv_fast.physics.density import Density, Scheme, check_lagrangian, differentiate, evaluate, leaf, scheme_of
from lconv_fast.physics.derivatives import (
    Accuracy,
    check_derivations,
    check_field,
    check_scheme,
    coordinates,
    divergence,
    gradient,
    vector_fields,
)
from lconv_fast.physics.lagrangian import QuadraticLagrangian


class Momenta(NamedTuple):
    density: Tensor  # L, (N, *spatial)
    momenta: Tensor  # p^a = dL/d(d_a phi), (N, m, n, *spatial)
    dphi: Tensor  # d_a phi, (N, m, n, *spatial)
    x: Tensor  # coordinates, (n, *spatial)


def momenta(lagrangian: QuadraticLagrangian | Density, phi: Tensor, scheme: Scheme) -> Momenta:
    check_lagrangian(lagrangian)
    check_field("phi", phi)
    check_scheme(*scheme, phi.dim() - 2)
    x = coordinates(tuple(phi.shape[2:]), phi)
    recorded = phi.requires_grad
    dphi = gradient(phi, *scheme)
    slope, field = leaf(dphi), leaf(phi)
    with torch.enable_grad():
        value = evaluate(lagrangian, field, slope, x)
        action = value.sum()
    # With phi beside dphi, a density without derivatives of phi has momenta 0 and is no error.
    _, found = differentiate(action, (field, slope), recorded)
    return Momenta(value if found.requires_grad else value.detach(), found, dphi, x)


def noether_current(
    lagrangian: QuadraticLagrangian | Density,
    phi: Tensor,
    generators: AffineGenerators | FieldGenerators | None,
    internal: Tensor | None = None,
    *,
    accuracy: Accuracy | None = None,
    padding_mode: str | None = None,
) -> Tensor:
    """J_i^a = dL/d(d_a phi) . delta_i phi - v_i^a L,  delta_i phi = L_i phi + internal_i phi: eq. (22).

    For a symmetry of the action, d_a J^a + E . delta phi = 0 for every phi (E of `euler_lagrange`), so that
    d_a J^a = 0 on solutions. On a grid that holds as far as d_a obeys the product rule: to rounding for band-limited
    fields and spectral derivatives, to the order of the differences otherwise.

    Args:
        lagrangian: a QuadraticLagrangian or any density (see `euler_lagrange`), pointwise in phi and dphi.
        phi: (N, m, *spatial), real or complex; J is real.
        generators: vector fields L_i = v_i^a d_a, n_L of them; None for an internal symmetry alone.
        internal: matrices on the components, (n_L, m, m), or (m, m), the same beside every generator: U(1) is i, or
            [[0, -1], [1, 0]] on pairs of real components; a scaling dimension is a multiple of the identity.
        accuracy, padding_mode: of d_a. None: those of the generators, else of the Lagrangian, else 2 and 'zeros'.

    Returns:
        (N, n_L, n, *spatial), in pixels per unit time; differentiable where phi or the Lagrangian's parameters are.

    Raises:
        TypeError, ValueError: generators of another dimension or that are no vector fields, matrices that do not fit.
    """
    check_field("phi", phi)
    ndim = phi.dim() - 2
    if generators is None and internal is None:
        raise ValueError("generators: expected generators, internal matrices, or both; got neither")
    if generators is not None:
        check_derivations(generators, ndim)
    matrices = _check_internal(internal, phi, None if generators is None else generators.num_generators)
    found = momenta(lagrangian, phi, scheme_of(accuracy, padding_mode, generators, lagrangian))
    parts: list[Tensor] = []
    if matrices is not None:
        moved = torch.einsum("icd,Nd...->Nic...", matrices, phi)
        parts.append(torch.einsum("Nca...,Nic...->Nia...", found.momenta.conj(), moved).real)
    if generators is not None:
        field = vector_fields(generators, found.x)
        # p^a . d_b phi is the canonical tensor: contracted with v^b, for any number of generators.
        parts.append(torch.einsum("Nba...,ib...->Nia...", canonical(found), field))
    return sum(parts[1:], parts[0])


def _check_internal(internal: Tensor | None, phi: Tensor, count: int | None, name: str = "internal") -> Tensor | None:
    if internal is None:
        return None
    components = phi.shape[1]
    if not isinstance(internal, Tensor) or not (internal.is_floating_point() or internal.is_complex()):
        raise TypeError(f"{name}: expected a floating-point tensor (n_L, m, m) or (m, m), got {internal!r}")
    check_strided(name, internal)
    if internal.is_meta and not phi.is_meta:
        raise TypeError(f"{name}: expected a tensor with numbers, got one on the meta device")
    if internal.dim() not in (2, 3) or tuple(internal.shape[-2:]) != (components, components):
        raise ValueError(
            f"{name}: expected shape (n_L, {components}, {components}) or ({components}, {components}), "
            f"got {tuple(internal.shape)}"
        )
    if internal.is_complex() and not phi.is_complex():
        raise TypeError(f"{name}: expected a real matrix for a real phi, got {internal.dtype}")
    matrices = internal.to(phi).reshape(-1, components, components)
    if count is not None and internal.dim() == 3 and len(matrices) != count:
        raise ValueError(f"internal: expected {count} matrices, one for each generator, got {tuple(internal.shape)}")
    return matrices if count is None else matrices.expand(count, -1, -1)


def canonical(found: Momenta) -> Tensor:
    """T^a_b = p^a . d_b phi - delta^a_b L, (N, b, a, *spatial)."""
    tensor = torch.einsum("Nca...,Ncb...->Nba...", found.momenta.conj(), found.dphi).real
    ndim = tensor.shape[1]
    one = torch.eye(ndim, dtype=tensor.dtype, device=tensor.device).reshape(ndim, ndim, *[1] * ndim)
    return tensor - one * found.density[:, None, None]


def stress_energy(
    lagrangian: QuadraticLagrangian | Density,
    phi: Tensor,
    symmetric: bool = False,
    *,
    spin: Tensor | None = None,
    signature: Sequence[int] | None = None,
    accuracy: Accuracy | None = None,
    padding_mode: str | None = None,
) -> Tensor:
    """T^a_b = dL/d(d_a phi) . d_b phi - delta^a_b L: the currents of the translations, (N, b, a, *spatial).

    `divergence(T)` is (N, b, *spatial), zero on solutions where L does not depend on x; `flux(T)` is what leaves
    through the boundary, (N, b), equal to the sum of the divergence.

    symmetric=True gives Belinfante's tensor with both indices up,

        Theta^ab = T^ab + d_c B^cab,  B^cab = 1/2 (S^c,ab - S^a,cb - S^b,ca),  S^c,ab = p^c . Sigma^ab phi,

    whose divergence is that of T. It is symmetric on solutions of an L that is invariant under rotations (`signature`:
    Lorentz transformations) which move points by x^a d^b - x^b d^a and components by Sigma^ab. For scalars (spin None)
    B is zero, and T^ab is symmetric as it is; without that symmetry of L no symmetric tensor exists.

    Args:
        lagrangian, phi, accuracy, padding_mode: as for `noether_current`.
        spin: Sigma^ab for a < b, (n (n - 1) / 2, m, m), in the order of the named rotations; only with symmetric=True.
        signature: g^aa, n numbers 1 or -1, that raise the index b; None: all 1.

    Raises:
        TypeError, ValueError: as `noether_current`; a spin or signature of another size.
    """
    check_field("phi", phi)
    ndim, symmetric = phi.dim() - 2, boolean("symmetric", symmetric)
    if signature is not None and (
        not isinstance(signature, (tuple, list)) or len(signature) != ndim or any(s not in (1, -1) for s in signature)
    ):
        raise ValueError(f"signature: expected {ndim} numbers 1 or -1, got {signature!r}")
    if spin is not None and not symmetric:
        raise ValueError("spin: it takes part with symmetric=True alone")
    pairs = list(combinations(range(ndim), 2))
    matrices = _check_internal(spin, phi, None, "spin")
    if matrices is not None and len(matrices) != len(pairs):
        raise ValueError(f"spin: expected {len(pairs)} matrices, one for each pair of axes, got {len(matrices)}")
    scheme = scheme_of(accuracy, padding_mode, lagrangian)
    found = momenta(lagrangian, phi, scheme)
    tensor = canonical(found)
    if not symmetric:
        return tensor
    sign = torch.tensor(signature or [1] * ndim, dtype=tensor.dtype, device=tensor.device)
    tensor = tensor * sign.reshape(ndim, *[1] * (ndim + 1))
    if matrices is None:
        return tensor
    full = matrices.new_zeros(ndim, ndim, *matrices.shape[1:])
    for (a, b), matrix in zip(pairs, matrices, strict=True):
        full[a, b], full[b, a] = matrix, -matrix
    s = torch.einsum("Nkc...,abkl,Nl...->Ncab...", found.momenta.conj(), full, phi).real  # S^c,ab
    potential = (s - s.transpose(1, 2) - torch.einsum("Nbca...->Ncab...", s)) / 2  # B^cab, antisymmetric in c, a
    moved = [divergence(potential[:, :, :, b].transpose(1, 2), *scheme) for b in range(ndim)]  # d_c B^cab: (N, a)
    return tensor + torch.stack(moved, 1)
