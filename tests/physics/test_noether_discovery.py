"""Generators found by minimising |div J| on solutions."""

import math

import pytest
import torch
from fields import band_limited, plane_waves

import lconv_fast as lc

P = lc.physics


def cosines(found, name, ndim=2, spatial=(64, 64)):
    """Of the principal angles between the fields of two spans on the grid."""
    fields = []
    axes = [(torch.arange(s, dtype=torch.float64) - (s - 1) / 2) / ((max(spatial) - 1) / 2) for s in spatial]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    for g in (found, lc.AffineGenerators.named(name, ndim)):
        field = torch.einsum("iab,bk->iak", g.matrix.double(), x) + g.shift.double()[..., None]
        fields.append(torch.linalg.qr(field.flatten(1).T).Q)
    return torch.linalg.svdvals(fields[0].T @ fields[1])


def helmholtz(count=3, size=64, wave=0.5, seed=0):
    """Superpositions of plane waves of one |k| in all directions: not periodic."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    fields = torch.zeros(count, 1, size, size, dtype=torch.float64)
    for n in range(count):
        for _ in range(12):
            angle, phase, weight = (torch.rand(3, generator=random, dtype=torch.float64) * 2 * math.pi).tolist()
            fields[n, 0] += weight * torch.cos(wave * (math.cos(angle) * y + math.sin(angle) * x) + phase)
    return fields


def isotropic(f, d, x):
    return (d.square().sum(2) - 0.25 * f**2).sum(1)


@pytest.mark.parametrize("accuracy", (4, 8))
def test_rotation_and_translations(accuracy):
    found = P.discover_by_noether(isotropic, helmholtz(), accuracy=accuracy)
    assert found.num_generators == 3 and found.residual < 0.01
    assert cosines(found, "se").min() > 0.9999
    assert found.singular_values[2] < 0.01 < 0.1 < found.singular_values[3]


def test_stretched_rotation():
    """L = phi_y^2 + 4 phi_x^2 - k^2 phi^2: rotations of (y, x / 2), v = (x / 2, -2 y)."""
    y, x = torch.meshgrid(*[torch.arange(64, dtype=torch.float64) - 31.5] * 2, indexing="ij")
    random = torch.Generator().manual_seed(0)
    phi = torch.zeros(3, 1, 64, 64, dtype=torch.float64)
    for n in range(3):
        for _ in range(12):
            angle, phase, weight = (torch.rand(3, generator=random, dtype=torch.float64) * 6.2832).tolist()
            phi[n, 0] += weight * torch.cos(0.4 * (math.cos(angle) * y + math.sin(angle) * x / 2) + phase)

    def density(f, d, at):
        return d[:, 0, 0] ** 2 + 4 * d[:, 0, 1] ** 2 - 0.16 * f[:, 0] ** 2

    found = P.discover_by_noether(density, phi, kind="gl", accuracy=8)
    assert found.num_generators == 1
    true = torch.tensor([[0.0, 0.5], [-2.0, 0.0]], dtype=torch.float64)
    assert (found.matrix[0] * true).sum().abs() > 0.9999 * true.norm()


def test_boost_from_a_wave_equation():
    """Klein-Gordon waves w^2 = k^2 + M^2 with axis 0 as time."""
    mass, size = 0.25, 64
    random = torch.Generator().manual_seed(0)
    t, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    fields = torch.zeros(3, 1, size, size, dtype=torch.float64)
    for n in range(3):
        for _ in range(10):
            k, phase, weight = torch.rand(3, generator=random, dtype=torch.float64).tolist()
            k = k - 0.5
            fields[n, 0] += weight * torch.cos(math.hypot(k, mass) * t - k * x + 2 * math.pi * phase)
    h = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    wave = P.QuadraticLagrangian(-(mass**2), h, accuracy=8)
    found = P.discover_by_noether(wave, fields)
    assert found.num_generators == 3
    assert cosines(found, "translation").min() > 0.9999 and cosines(found, "lorentz").min() > 0.999
    assert P.discover_by_noether(wave, fields, kind="lorentz").num_generators == 1
    assert P.discover_by_noether(wave, fields, kind="rotation").num_generators == 0


def test_space():
    """so(3) and translations in three dimensions, from periodic solutions with spectral derivatives."""
    size = 20
    waves = [(1, 2, 2), (2, 1, -2), (3, 0, 0), (0, 3, 0), (2, -2, 1), (0, 0, 3), (-2, 1, 2)]
    random = torch.Generator().manual_seed(0)
    weights, phases = torch.randn(2, 7, generator=random, dtype=torch.float64).tolist()
    phi = plane_waves((size,) * 3, waves, weights, phases)[None, None]
    k2 = (2 * math.pi * 3 / size) ** 2
    lagrangian = P.QuadraticLagrangian(
        -k2, torch.eye(3, dtype=torch.float64), accuracy="spectral", padding_mode="circular"
    )
    found = P.discover_by_noether(lagrangian, phi)
    assert found.num_generators == 6 and cosines(found, "se", 3, (size,) * 3).min() > 0.999999
    assert found.singular_values[5] < 1e-8


def solve(density_numbers, size=64, seed=0):
    """A solution of the discrete equation A phi = 0 inside, with random smooth values around: scipy's sparse solver."""
    scipy = pytest.importorskip("scipy.sparse.linalg", reason="its reference solutions need scipy")
    import numpy as np
    from scipy import sparse

    stiff, mass = density_numbers
    # -d_a (s_a d_a phi) - m phi = 0 by differences of order 2 on half points.
    index = np.arange(size * size).reshape(size, size)
    rows, columns, values = [], [], []
    for axis in range(2):
        s = stiff[axis]
        low = index[:-1] if axis == 0 else index[:, :-1]
        high = index[1:] if axis == 0 else index[:, 1:]
        middle = ((s[:-1] + s[1:]) if axis == 0 else (s[:, :-1] + s[:, 1:])) / 2
        for a, b in ((low, high), (high, low)):
            rows += [a.ravel(), a.ravel()]
            columns += [a.ravel(), b.ravel()]
            values += [middle.ravel(), -middle.ravel()]
    matrix = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    matrix = matrix - sparse.diags(mass.ravel())
    border = np.ones((size, size), bool)
    border[1:-1, 1:-1] = False
    given = band_limited(1, 1, (size, size), 5, seed=seed)[0, 0].numpy().ravel()
    inner = ~border.ravel()
    solution = given.copy()
    solution[inner] = scipy.spsolve(matrix[inner][:, inner].tocsc(), -matrix[inner][:, ~inner] @ given[~inner])
    return torch.as_tensor(solution.reshape(1, 1, size, size))


def test_none_without_symmetry():
    """Anisotropic and inhomogeneous: stiffness and mass depend on x; solved, so that the residual is small."""
    size = 64
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    stiff = torch.stack([1 + 0.5 * torch.sin(2 * y + x), 2 + 0.7 * torch.cos(1.5 * x - y)])
    mass = 0.08 * (1 + 0.6 * torch.sin(3 * x) * torch.cos(2 * y))

    def density(f, d, at):
        return (stiff * d[:, 0].square()).sum(1) - mass * f[:, 0] ** 2

    phi = torch.cat([solve((stiff.numpy(), mass.numpy()), size, seed) for seed in range(3)])
    found = P.discover_by_noether(density, phi, accuracy=4, margin=6)
    assert found.residual < 0.05
    assert found.num_generators == 0 and found.singular_values.min() > 0.03
    assert found(torch.randn(1, 1, 8, 8)).shape == (1, 0, 1, 8, 8)
    # The same solver with constants finds them again.
    flat = torch.ones(2, size, size, dtype=torch.float64), torch.full((size, size), 0.08, dtype=torch.float64)
    phi = torch.cat([solve((flat[0].numpy(), flat[1].numpy()), size, seed) for seed in range(3)])
    found = P.discover_by_noether(
        lambda f, d, at: d[:, 0].square().sum(1) - 0.08 * f[:, 0] ** 2, phi, accuracy=4, margin=6
    )
    assert found.num_generators == 3 and cosines(found, "se").min() > 0.999


def test_weak_breaking_is_seen_on_good_data():
    """phi_yy + phi_xx + (k^2 - a x) phi = 0, by Airy functions: k^2 of .25 changes by .25; d_y is left."""
    special = pytest.importorskip("scipy.special", reason="its reference solutions need scipy")
    size, k2, slope = 64, 0.25, 4e-3
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    random = torch.Generator().manual_seed(0)
    phi = torch.zeros(3, 1, size, size, dtype=torch.float64)
    for n in range(3):
        for _ in range(10):
            wave, phase, weight, mix = torch.rand(4, generator=random, dtype=torch.float64).tolist()
            wave = 0.95 * math.sqrt(k2) * math.sin(math.pi * (wave - 0.5))
            first, _, second, _ = special.airy(slope ** (1 / 3) * (axis.numpy() - (k2 - wave**2) / slope))
            part = torch.from_numpy(math.cos(2 * math.pi * mix) * first + math.sin(2 * math.pi * mix) * second)
            phi[n, 0] += (0.2 + weight) * torch.cos(wave * axis + 2 * math.pi * phase)[:, None] * part

    def density(f, d, x):
        return d[:, 0].square().sum(1) - (k2 - slope * x[1]) * f[:, 0] ** 2

    found = P.discover_by_noether(density, phi, accuracy=8)
    assert found.residual < 1e-4 and found.num_generators == 1
    field = torch.cat([found.matrix.flatten(), found.shift.flatten()]).abs()
    assert field[4] > 0.999 * field.norm()  # d_y


def test_gradients_reach_learnable_generators():
    """|div J|^2 as a loss: descent turns a generator into a symmetry."""
    phi = helmholtz(2)
    generators = lc.AffineGenerators(
        torch.tensor([[[0.3, 1.0], [-0.6, 0.2]]], dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64), accuracy=8, learnable=True,
    )  # fmt: skip
    optimizer = torch.optim.Adam(generators.parameters(), 0.05)
    for _ in range(60):
        current = P.noether_current(isotropic, phi, generators)[..., 8:-8, 8:-8]
        loss = P.divergence(current, 8)[..., 8:-8, 8:-8].square().mean() / current.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    matrix = generators.matrix.detach()[0]
    assert (matrix + matrix.T).norm() < 0.05 * matrix.norm()


def test_off_solutions_nothing_is_found():
    assert P.discover_by_noether(isotropic, band_limited(2, 1, (48, 48), 5), accuracy=8).num_generators == 0


def test_bad_input():
    with pytest.raises(ValueError, match=r"kind: .*expected one of"):
        P.discover_by_noether(isotropic, helmholtz(1), kind="conformal")
    with pytest.raises(ValueError, match="currents vanish"):
        P.discover_by_noether(isotropic, torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="margin"):
        P.discover_by_noether(isotropic, torch.randn(1, 1, 8, 8), margin=4)
