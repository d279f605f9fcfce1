"""Eq. (22): the off-shell identity, divergence on solutions, charges, the stress-energy tensor and fluxes."""

import itertools
import math

import pytest
import torch
from fields import band_limited, packets, plane_waves, relative

import lconv_fast as lc
from lconv_fast.physics.derivatives import coordinates, vector_fields

P = lc.physics
SPECTRAL = {"accuracy": "spectral", "padding_mode": "circular"}


def named(name, ndim=2, **keywords):
    return lc.AffineGenerators.named(name, ndim, coordinate_scale=1.0, **keywords).double()


def identity(lagrangian, phi, generators, internal=None, **scheme):
    """|div J + E . delta phi| relative to its terms."""
    current = P.noether_current(lagrangian, phi, generators, internal, **scheme)
    residual = P.euler_lagrange(lagrangian, phi, **scheme)
    moved = torch.zeros(phi.shape[0], current.shape[1], *phi.shape[1:], dtype=phi.dtype)
    if generators is not None:
        field = vector_fields(generators, coordinates(tuple(phi.shape[2:]), phi)).to(phi.dtype)
        moved = moved + torch.einsum("ia...,Nca...->Nic...", field, P.derivatives(phi, **scheme))
    if internal is not None:
        matrices = internal.to(phi).reshape(-1, phi.shape[1], phi.shape[1])
        moved = moved + torch.einsum("icd,Nd...->Nic...", matrices, phi)
    divergence = P.divergence(current, **scheme)
    work = (residual[:, None].conj() * moved).real.sum(2)
    return relative(divergence + work, divergence, work), divergence, work


def euclidean(f, d, _):
    """Isotropic, nonlinear."""
    return d.abs().square().sum((1, 2)) / 2 + f.abs().square().sum(1) * 0.3 + f.abs().pow(4).sum(1) * 0.1


def quartic(f, d, _):
    """A polynomial of degree four, for band limits, with no symmetry but translations."""
    return (
        d[:, :, 0].pow(2).sum(1)
        - 0.4 * (d[:, :, 0] * d[:, :, 1]).sum(1)
        + f.pow(3).sum(1)
        + (f * d[:, :, 1]).sum(1) ** 2
    )


def minkowski(f, d, _):
    return (d[:, :, 0].abs().square() - d[:, :, 1:].abs().square().sum(2)).sum(1) / 2 - 0.2 * f.abs().square().sum(1)


@pytest.mark.parametrize("components", (1, 3))
def test_identity_off_shell_translations(components):
    phi = band_limited(2, components, (32, 30), 3)
    error, divergence, work = identity(quartic, phi, named("translation"), **SPECTRAL)
    assert error < 1e-12 and divergence.norm() > 1 and work.norm() > 1


@pytest.mark.parametrize("name, density", (("rotation", euclidean), ("se", euclidean), ("lorentz", minkowski)))
@pytest.mark.parametrize("dtype", (torch.float64, torch.complex128))
def test_identity_off_shell_rotations_and_boosts(name, density, dtype):
    """Packets that vanish to rounding at the boundary, where x^a is not periodic."""
    phi = packets((112, 112), 2, width=6.0).to(dtype)
    if dtype.is_complex:
        phi = phi + 1j * packets((112, 112), 2, width=6.0, seed=1)
    error, divergence, _ = identity(density, phi, named(name), **SPECTRAL)
    assert error < 1e-12 and divergence.norm() > 1e-2
    broken = named("lorentz" if name != "lorentz" else "rotation")
    assert identity(density, phi, broken, **SPECTRAL)[0] > 1e-2


def test_identity_in_space():
    phi = packets((64, 64, 64), width=4.0, spread=2.0)
    free = P.QuadraticLagrangian(0.2, torch.eye(3, dtype=torch.float64), **SPECTRAL)
    assert identity(free, phi, named("se", 3), **SPECTRAL)[0] < 1e-12


def test_identity_internal():
    """U(1) of a complex field, the same on pairs of real ones, and SO(3) on three components."""

    def real(f, d, x):
        return d.square().sum((1, 2)) + f.square().sum(1).square()

    phi = band_limited(2, 1, (24, 24), 2, torch.complex128)
    turn = torch.tensor([[1j]], dtype=torch.complex128)

    def complex_(f, d, x):
        return d.abs().square().sum((1, 2)) + f.abs().square().sum(1).square()

    error, divergence, _ = identity(complex_, phi, None, turn[None], **SPECTRAL)
    assert error < 1e-12 and divergence.norm() >= 0
    current = P.noether_current(complex_, phi, None, turn, **SPECTRAL)
    by_hand = 2 * (1j * phi * P.derivatives(phi, **SPECTRAL)[:, 0].conj()).real  # 2 Re(conj(d phi) i phi)
    assert relative(current[:, 0] - by_hand, by_hand) < 1e-12
    pair = torch.cat([phi.real, phi.imag], 1)
    rotate = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert relative(P.noether_current(real, pair, None, rotate, **SPECTRAL) - current, current) < 1e-12
    three = band_limited(1, 3, (24, 24), 2)
    matrices = torch.stack([m for m in lc.AffineGenerators.named("rotation", 3).matrix.double()])
    error, _, _ = identity(real, three, None, matrices, **SPECTRAL)
    assert error < 1e-12
    assert identity(real, three, None, torch.randn(1, 3, 3).double(), **SPECTRAL)[0] > 1e-2


def test_scaling_with_its_dimension():
    """The massless field in n dimensions scales with weight (n - 2) / 2 on its components."""

    def massless(f, d, x):
        return d.square().sum((1, 2))

    for ndim, size, width in ((2, 96, 5.0), (3, 64, 4.0)):
        phi = packets((size,) * ndim, width=width, spread=2.0)
        weight = (ndim - 2) / 2 * torch.eye(1, dtype=torch.float64)
        assert identity(massless, phi, named("scaling", ndim), weight, **SPECTRAL)[0] < 1e-12
    assert identity(massless, phi, named("scaling", ndim), **SPECTRAL)[0] > 1e-2


def helmholtz_solution(size=64, seed=0, components=1):
    """Waves of |k|^2 = 25 on a periodic grid: band-limited solutions of lap phi + k^2 phi = 0."""
    waves = [(3, 4), (5, 0), (-4, 3), (0, 5), (4, 3), (3, -4)]
    random = torch.Generator().manual_seed(seed)
    fields = []
    for _ in range(components):
        weights, phases = torch.randn(2, 6, generator=random, dtype=torch.float64).tolist()
        fields.append(plane_waves((size, size), waves, weights, phases))
    return torch.stack(fields)[None], (2 * math.pi * 5 / size) ** 2


def test_divergence_on_band_limited_solutions():
    phi, k2 = helmholtz_solution(components=2)
    h = torch.eye(2, dtype=torch.float64)
    lagrangian = P.QuadraticLagrangian(-k2, h, components=2, **SPECTRAL)
    assert relative(P.euler_lagrange(lagrangian, phi), k2 * phi) < 1e-10
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    for current in (
        P.noether_current(lagrangian, phi, named("translation"), **SPECTRAL),
        P.noether_current(lagrangian, phi, None, turn, **SPECTRAL),
    ):
        terms = [P.derivatives(current[:, :, a], **SPECTRAL)[:, :, a] for a in range(2)]
        assert relative(P.divergence(current, **SPECTRAL), *terms) < 1e-10
    off = phi + band_limited(1, 2, (64, 64), 5)
    current = P.noether_current(lagrangian, off, named("translation"), **SPECTRAL)
    terms = [P.derivatives(current[:, :, a], **SPECTRAL)[:, :, a] for a in range(2)]
    assert relative(P.divergence(current, **SPECTRAL), *terms) > 0.1


@pytest.mark.parametrize("accuracy", (2, 4, 6, 8))
def test_divergence_falls_with_the_order(accuracy):
    """All of se(2) on an exact solution sampled with two steps; the border, where d_a is padded, left out."""
    errors = []
    for size in (64, 128):
        phi, k2 = helmholtz_solution(size)
        lagrangian = P.QuadraticLagrangian(-k2, torch.eye(2, dtype=torch.float64), accuracy=accuracy)
        current = P.noether_current(lagrangian, phi, named("se", accuracy=accuracy))
        terms = [P.derivatives(current[:, :, a], accuracy)[:, :, a] for a in range(2)]
        inside = (..., slice(10, -10), slice(10, -10))
        divergence = P.divergence(current, accuracy)[inside]
        errors.append([relative(divergence[:, i], *(t[:, i][inside] for t in terms)) for i in range(3)])
    for coarse, fine in zip(*errors, strict=True):
        assert abs(math.log2(coarse / fine) - accuracy) < 0.5, errors


def test_vector_field_needs_belinfante():
    """A vector field: rotations move points and components. Theta is symmetric and conserved on solutions."""
    size = 64
    potential, k2 = helmholtz_solution(size)
    slope = P.derivatives(potential, **SPECTRAL)[:, 0]
    phi = torch.stack([slope[:, 1], -slope[:, 0]], 1)  # transverse waves, |k|^2 = 25
    along = plane_waves((size, size), [(1, 2), (2, -1), (2, 1)], [1.0, -0.7, 0.4], [0.1, 1.0, 2.0])
    phi = phi + P.derivatives(along[None, None], **SPECTRAL)[:, 0]  # longitudinal waves, |k|^2 = 25 / (1 + 4) = 5

    def vector(f, d, x):  # isotropic, and not invariant under rotations of points alone
        return d.square().sum((1, 2)) / 2 + 2 * (d[:, 0, 0] + d[:, 1, 1]) ** 2 - k2 / 2 * f.square().sum(1)

    spin = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    packet = packets((96, 96), 2)
    right = [s for s in (1, -1) if identity(vector, packet, named("rotation"), s * spin, **SPECTRAL)[0] < 1e-12]
    assert len(right) == 1 and identity(vector, packet, named("rotation"), **SPECTRAL)[0] > 1e-2
    assert relative(P.euler_lagrange(vector, phi, **SPECTRAL), k2 * phi) < 1e-10
    canonical = P.stress_energy(vector, phi, **SPECTRAL)
    theta = P.stress_energy(vector, phi, symmetric=True, spin=right[0] * spin, **SPECTRAL)
    assert relative(canonical - canonical.transpose(1, 2), canonical) > 1e-2
    assert relative(theta - theta.transpose(1, 2), theta) < 1e-10
    assert relative(P.divergence(theta, **SPECTRAL), theta) < 1e-10
    wrong = P.stress_energy(vector, phi, symmetric=True, spin=-right[0] * spin, **SPECTRAL)
    assert relative(wrong - wrong.transpose(1, 2), wrong) > 1e-2
    # Off solutions, B still has no divergence.
    off = phi + band_limited(1, 2, (size, size), 5)
    one, two = P.stress_energy(vector, off, **SPECTRAL), P.stress_energy(vector, off, True, spin=spin, **SPECTRAL)
    assert relative(P.divergence(one - two, **SPECTRAL), P.divergence(one, **SPECTRAL)) < 1e-11


def test_scalar_stress_is_symmetric_and_boosts_need_the_signature():
    phi = packets((64, 64), 2)
    tensor = P.stress_energy(euclidean, phi, **SPECTRAL)
    assert relative(tensor - tensor.transpose(1, 2), tensor) < 1e-13
    translations = P.noether_current(euclidean, phi, named("translation"), **SPECTRAL)
    assert relative(tensor - translations, tensor) < 1e-13
    up = P.stress_energy(minkowski, phi, symmetric=True, signature=(1, -1), **SPECTRAL)
    assert relative(up - up.transpose(1, 2), up) < 1e-13
    mixed = P.stress_energy(minkowski, phi, **SPECTRAL)
    assert relative(mixed - mixed.transpose(1, 2), mixed) > 1e-2


def test_energy_and_momentum_by_hand():
    """T^0_0 = (phi_t^2 + phi_x^2) / 2 + m2 phi^2 / 2, the energy; T^1_0 = -phi_x phi_t, its flow."""
    phi = torch.randn(2, 1, 9, 11, dtype=torch.float64)
    tensor = P.stress_energy(lambda f, d, x: (d[:, :, 0] ** 2 - d[:, :, 1] ** 2 - 0.4 * f**2).sum(1) / 2, phi)
    t, x = P.derivatives(phi)[:, 0].unbind(1)
    assert relative(tensor[:, 0, 0] - (t**2 + x**2 + 0.4 * phi[:, 0] ** 2) / 2, tensor) < 1e-14
    assert relative(tensor[:, 0, 1] + x * t, tensor) < 1e-14


@pytest.mark.parametrize(
    "ndim, accuracy, mode", list(itertools.product((1, 2, 3), (2, 8), ("zeros", "replicate", "circular")))
)
def test_flux_is_the_sum_of_the_divergence(ndim, accuracy, mode):
    spatial = (12, 11, 10)[:ndim]
    current = torch.randn(2, 3, ndim, *spatial, dtype=torch.float64)
    through = P.flux(current, accuracy, mode)
    assert (through - P.divergence(current, accuracy, mode).flatten(2).sum(2)).abs().max() < 1e-11
    if mode == "circular":
        assert through.abs().max() < 1e-11
    inside = current.clone()
    for d in range(3, ndim + 3):
        inside.narrow(d, 0, 4).zero_()
        inside.narrow(d, spatial[d - 3] - 4, 4).zero_()
    assert P.flux(inside, accuracy, mode).abs().max() < 1e-12


def test_gradients_through_the_current():
    phi = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    generators = named("se")
    assert torch.autograd.gradcheck(lambda f: P.divergence(P.noether_current(quartic, f, generators)), (phi,))
    layer = lc.LConv2d(2, 2, "rotation", dtype=torch.float64)
    current = P.noether_current(P.QuadraticLagrangian.from_layer(layer), phi.detach(), layer.generators)
    P.divergence(current).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_without_recording():
    phi = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        current = P.noether_current(euclidean, phi, named("se"))
        residual = P.euler_lagrange(euclidean, phi)
        P.robustness(lc.LConv2d(1, 1, dtype=torch.float64), phi)
    assert not current.requires_grad and not residual.requires_grad
    assert relative(current - P.noether_current(euclidean, phi, named("se")), current) < 1e-15


def test_bad_input():
    phi = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    rotation = named("rotation")
    with pytest.raises(ValueError, match="expected 3 axes as phi has"):
        P.noether_current(euclidean, torch.randn(1, 2, 5, 5, 5), rotation)
    with pytest.raises(TypeError, match="vector fields"):
        P.noether_current(euclidean, phi, lc.DenseGenerators(torch.randn(1, 64, 64)))
    with pytest.raises(ValueError, match="transposes"):
        P.noether_current(euclidean, phi, rotation.transpose())
    with pytest.raises(ValueError, match="expected the spatial shape"):
        P.noether_current(euclidean, phi, lc.FieldGenerators(torch.randn(1, 2, 9, 8, dtype=torch.float64)))
    with pytest.raises(ValueError, match="got neither"):
        P.noether_current(euclidean, phi, None)
    with pytest.raises(ValueError, match="internal: expected shape"):
        P.noether_current(euclidean, phi, None, torch.eye(3))
    with pytest.raises(ValueError, match="internal: expected 1 matrices"):
        P.noether_current(euclidean, phi, rotation, torch.randn(2, 2, 2))
    with pytest.raises(TypeError, match="real matrix for a real phi"):
        P.noether_current(euclidean, phi, None, 1j * torch.eye(2))
    with pytest.raises(ValueError, match="current: expected shape"):
        P.divergence(torch.randn(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="spin"):
        P.stress_energy(euclidean, phi, spin=torch.eye(2)[None])
    with pytest.raises(ValueError, match="signature"):
        P.stress_energy(euclidean, phi, True, signature=(1, 2))
