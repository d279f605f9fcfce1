"""The variational step: Verlet, exact frequencies, charges and energies, Newton and GMRES."""

import math

import pytest
import torch
from fields import relative

import lconv_fast as lc

P = lc.physics


def wave(speed, mass, ndim=2, **keywords):
    h = torch.diag(torch.tensor([1.0] + [-(speed**2)] * (ndim - 1), dtype=torch.float64)) / 2
    return P.QuadraticLagrangian(-(mass**2) / 2, h, **keywords)


@pytest.mark.parametrize("accuracy, mode", ((2, "circular"), (4, "zeros"), (2, "reflect")))
def test_is_leapfrog(accuracy, mode):
    """phi_k+1 = 2 phi_k - phi_k-1 - V'(phi_k), V' the exact adjoint's c^2 D^T D phi + M^2 phi."""
    step = P.variational_step(wave(0.4, 0.3, 3, accuracy=accuracy, padding_mode=mode))
    previous, current = torch.randn(2, 2, 1, 9, 8, dtype=torch.float64)
    matrices = lc.AffineGenerators.named("translation", accuracy=accuracy, padding_mode=mode).double().to_dense((9, 8))
    stiff = 0.16 * torch.einsum("axy,axz->yz", matrices, matrices) + 0.09 * torch.eye(72, dtype=torch.float64)
    force = torch.einsum("xy,Ncy->Ncx", stiff, current.flatten(2)).unflatten(2, (9, 8))
    truth = 2 * current - previous - force
    assert relative(step(previous, current) - truth, truth) < 1e-13

    def density(f, d, x):
        return (d[:, :, 0] ** 2 - 0.16 * d[:, :, 1:].square().sum(2) - 0.09 * f**2).sum(1) / 2

    by_newton = P.variational_step(density, accuracy=accuracy, padding_mode=mode)(previous, current)
    assert relative(by_newton - truth, truth) < 1e-12
    # Time may be another axis.
    moved = P.variational_step(
        lambda f, d, x: density(f, d[:, :, [2, 0, 1]], x), axis=2, accuracy=accuracy, padding_mode=mode
    )
    assert relative(moved(previous, current) - truth, truth) < 1e-12


def test_wave_has_its_discrete_frequency():
    """sin^2(w / 2) = (c^2 sin^2 k + M^2) / 4: the dispersion of leapfrog with central differences, for 200 steps."""
    size, speed, mass = 32, 0.5, 0.2
    k = 2 * math.pi * 3 / size
    frequency = 2 * math.asin(math.sqrt(speed**2 * math.sin(k) ** 2 + mass**2) / 2)
    x = torch.arange(size, dtype=torch.float64)

    def exact(t):
        return torch.cos(k * x - frequency * t)[None, None]

    step = P.variational_step(wave(speed, mass, padding_mode="circular"))
    _, last = step.run(exact(0), exact(1), 200)
    assert relative(last - exact(201), exact(201)) < 1e-10


def complex_problem(nonlinear):
    def density(f, d, x):
        kinetic = d[:, :, 0].abs().square() - 0.25 * d[:, :, 1].abs().square() - 0.04 * f.abs().square()
        return (kinetic - nonlinear * f.abs().pow(4)).sum(1)

    turn = 2 * math.pi / 16 * torch.arange(16, dtype=torch.float64)
    start = torch.polar(1 + 0.3 * torch.cos(turn), turn)[None, None]
    return density, start, start * torch.exp(torch.tensor(-0.25j, dtype=start.dtype))


def drifts(step, previous, current, charge, steps, every):
    charges, energies = [step.charge(previous, current, charge)], [step.energy(previous, current)]
    for _ in range(0, steps, every):
        previous, current = step.run(previous, current, every)
        charges.append(step.charge(previous, current, charge))
        energies.append(step.energy(previous, current))
    charges, energies = torch.stack(charges), torch.stack(energies)
    return (charges / charges[0] - 1).abs(), (energies / energies[0] - 1).abs()


@pytest.mark.parametrize("nonlinear, steps", ((0.0, 200), (0.02, 120)))
def test_charge_and_energy(nonlinear, steps):
    density, previous, current = complex_problem(nonlinear)
    step = P.variational_step(density, padding_mode="circular")
    turn = torch.tensor([[1j]], dtype=torch.complex128)
    charge, energy = drifts(step, previous, current, turn, steps, 20)
    assert charge.max() < 1e-11
    # The trapezoid's energy oscillates by h^2 and does not drift.
    assert energy.max() < 0.02 and energy[-energy.shape[0] // 2 :].max() < 1.5 * energy[: energy.shape[0] // 2].max()
    # Control: what is no symmetry has no charge.
    wrong, _ = drifts(step, previous, current, 1j * turn, 40, 20)
    assert wrong.max() > 1e-3


def test_energy_and_charge_by_hand():
    """1/2 (q - p)^2 + 1/2 p K q, polarised; p^t phi_t - L on the trapezoid; (q - p - K q / 2) . turn q."""
    p, q = torch.randn(2, 3, 2, 12, dtype=torch.float64)
    gradient = P.derivatives(torch.cat([p, q]), 2, "circular")[:, :, 0]
    stiff = 0.25 * (gradient[:3] * gradient[3:]).sum((1, 2)) + 0.04 * (p * q).sum((1, 2))
    speeds = (q - p).square().sum((1, 2)) / 2
    step = P.variational_step(wave(0.5, 0.2, components=2, padding_mode="circular"))
    assert relative(step.energy(p, q) - speeds - stiff / 2, speeds) < 1e-13

    def density(f, d, x):
        return (d[:, :, 0].square() - 0.25 * d[:, :, 1].square() - 0.04 * f.square()).sum(1) / 2

    potential = 0.25 * gradient.square().sum((1, 2)) / 2 + 0.04 * torch.cat([p, q]).square().sum((1, 2)) / 2
    general = P.variational_step(density, padding_mode="circular")
    assert relative(general.energy(p, q) - speeds - (potential[:3] + potential[3:]) / 2, speeds) < 1e-13
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    moved = torch.einsum("cd,Ndx->Ncx", turn, q)  # K is symmetric and commutes with it: no part in the charge
    charge = ((q - p) * moved).sum((1, 2))
    assert relative(step.charge(p, q, turn) - charge, charge) < 1e-12
    assert relative(general.charge(p, q, turn) - charge, charge) < 1e-12


def test_complex_slices_are_pairs():
    p, q = torch.randn(2, 1, 1, 12, dtype=torch.complex128)
    one = P.variational_step(wave(0.5, 0.2, components=1, padding_mode="circular"))
    two = P.variational_step(wave(0.5, 0.2, components=2, padding_mode="circular"))
    pair = two(*(torch.cat([f.real, f.imag], 1) for f in (p, q)))
    assert relative(torch.cat([one(p, q).real, one(p, q).imag], 1) - pair, pair) < 1e-14


@pytest.mark.full
def test_hundred_thousand_steps():
    """Pairs of real components, so that the matrix of Newton's method is kept."""
    h = torch.diag(torch.tensor([1.0, -0.25], dtype=torch.float64)) / 2
    lagrangian = P.QuadraticLagrangian(-0.02, h, components=2, padding_mode="circular")
    step = P.variational_step(lagrangian)
    previous = torch.randn(1, 2, 16, dtype=torch.float64)
    current = previous + 0.1 * torch.randn(1, 2, 16, dtype=torch.float64)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    charge, energy = drifts(step, previous, current, turn, 100_000, 1000)
    print("charge drift", charge.max().item(), "energy drift", energy.max().item())
    assert charge.max() < 1e-10 and energy.max() < 1e-10


def test_mixed_derivatives_need_gmres():
    """L = phi_t^2 / 2 + b phi_t phi_x / 2 - c^2 phi_x^2 / 2: the next slice is coupled between points."""
    h = torch.tensor([[0.5, 0.1], [0.1, -0.1]], dtype=torch.float64)
    lagrangian = P.QuadraticLagrangian(-0.02, h, padding_mode="circular")
    step = P.variational_step(lagrangian)
    previous = torch.randn(1, 1, 24, dtype=torch.float64)
    current = previous + 0.1 * torch.randn(1, 1, 24, dtype=torch.float64)
    following = step(previous, current)
    _, local, _ = step._blocks(current, following, 0.0)
    assert not local
    residual, scale = step._residual(previous, current, following, 0.0)
    assert residual.norm() < 1e-11 * scale
    # Backwards in time, the same equation.
    back = P.variational_step(
        P.QuadraticLagrangian(-0.02, h * torch.tensor([[1, -1], [-1, 1]]), padding_mode="circular")
    )
    assert relative(back(following, current) - previous, previous) < 1e-11


def test_trajectory_solves_the_equation_and_time_reaches_the_density():
    def driven(f, d, x):
        return (d[:, :, 0] ** 2 / 2 - f**2 / 8).sum(1) + f.sum(1) * torch.cos(x[0] / 3)

    step = P.variational_step(driven)
    slices = step.trajectory(torch.zeros(1, 1, 1).double(), torch.zeros(1, 1, 1).double(), 20, time=1.0)
    assert slices.shape == (1, 1, 22, 1)
    f = slices[0, 0, :, 0]
    force = torch.cos(torch.arange(22, dtype=torch.float64) / 3) - f / 4
    assert (f[2:] - 2 * f[1:-1] + f[:-2] - force[1:-1]).abs().max() < 1e-12


def test_bad_input():
    ok = torch.randn(1, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="axis: expected"):
        P.variational_step(wave(1, 1), axis=-1)
    with pytest.raises(ValueError, match="less than the 2 axes"):
        P.variational_step(wave(1, 1), axis=2)
    with pytest.raises(ValueError, match="as previous"):
        P.variational_step(wave(1, 1))(ok, ok[..., :4])
    with pytest.raises(ValueError, match="without the axis 0"):
        P.variational_step(wave(1, 1))(torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="no kinetic term"):
        P.variational_step(lambda f, d, x: f.square().sum(1))(ok, ok + 1)
    with pytest.raises(RuntimeError, match="Newton's method"):
        # Momenta below 1 cannot follow a force of 1000.
        P.variational_step(lambda f, d, x: (1 + d[:, :, 0] ** 2).sqrt().sum(1) - 1e3 * f.sum(1))(ok, ok + 0.1)
