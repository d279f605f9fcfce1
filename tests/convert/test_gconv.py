"""Theorem 1: group convolutions by composed L-convs, against the directly integrated convolution."""

import pytest
import torch
from problems import relative_rms

import lconv_fast as lc

HALF = 5.5
AXIS = torch.arange(12, dtype=torch.float64) - HALF
Y, X = torch.meshgrid(AXIS, AXIS, indexing="ij")
BLOB = torch.exp(-(((X - 1) / 2.5) ** 2) - (Y / 2) ** 2)[None, None]


def bell(*widths):
    return lambda t: torch.exp(-(t / torch.tensor(widths, dtype=t.dtype)).square().sum(-1) / 2)


def rotation_and_scaling():
    matrix = torch.tensor([[[0.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    return lc.AffineGenerators(matrix, torch.zeros(2, 2, dtype=torch.float64), coordinate_scale=1.0)


def named(name, ndim):
    return lc.AffineGenerators.named(name, ndim, padding_mode="circular", coordinate_scale=1.0).double()


# generators, features, support, kernel, eta, quadrature points
CASES = {
    "T1": (named("translation", 1), BLOB[:, :, 5], [(-3.0, 3.0)], bell(1.2), 0.5, 24),
    "T2": (named("translation", 2), BLOB, [(-2.0, 2.0)] * 2, bell(0.9, 0.9), 0.8, 10),
    "SO(2)": (named("rotation", 2), BLOB, [(-1.0, 1.0)], bell(0.4), 0.1, 20),
    "SO(2) x R+": (rotation_and_scaling(), BLOB, [(-0.6, 0.6), (-0.3, 0.3)], bell(0.25, 0.12), 0.12, 10),
}


def truth(generators, f, support, kernel, points):
    dense = generators.to_dense(f.shape[2:])

    def act(f, t):
        moved = torch.matrix_exp(torch.einsum("i,ixy->xy", t, dense))
        return torch.einsum("xy,ncy->ncx", moved, f.flatten(2)).reshape(f.shape)

    return lc.gconv.integrate(kernel, f, act, support, points)


@pytest.mark.parametrize("name", CASES)
def test_converges(name):
    generators, f, support, kernel, eta, points = CASES[name]
    wanted = truth(generators, f, support, kernel, points)

    def approximated(eta, **keywords):
        layer = lc.gconv.approximate(kernel, generators, support, eta, **keywords)
        assert layer.kernel_error < layer.bound and layer.eta <= eta
        return layer, relative_rms(layer(f), wanted)

    # Lemma 1: with the moving all but exact, halving eta quarters the bound and the error.
    (coarse, error), (fine, finer) = (approximated(h, order=8, steps=2) for h in (eta, eta / 2))
    halved = coarse.eta / fine.eta
    assert abs(coarse.bound / fine.bound / halved**2 - 1) < 0.05
    assert abs(coarse.kernel_error / fine.kernel_error / halved**2 - 1) < 0.15
    assert 0.8 * halved**2 < error / finer < 1.25 * halved**2
    # Lemma 2: eq. (13) moves with an error that falls like the step of I + h L.
    layer, _ = approximated(eta / 2, order=8, steps=2)
    exact = layer(f)
    errors = []
    for steps in (4, 8):
        layer.steps, layer.order = steps, 1
        errors.append(relative_rms(layer(f), exact))
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_moving_to_one_element(degree):
    """p L-convs move to u at distance eta with error O(eta^(p + 1))."""
    generators = named("rotation", 2)
    dense = generators.to_dense((12, 12))[0]
    errors = []
    for eta in (0.02, 0.01):
        exact = (torch.matrix_exp(eta * dense) @ BLOB.flatten()).reshape(BLOB.shape)
        errors.append(relative_rms(lc.flow(BLOB, generators, eta, 1, order=degree), exact))
    assert abs(errors[0] / errors[1] / 2 ** (degree + 1) - 1) < 0.05


def test_matrix_kernels_and_constant_kernels():
    generators, f, support, kernel, eta, points = CASES["T1"]
    f = torch.cat([f, f.roll(2, 2)], 1)
    mixing = torch.randn(3, 2, dtype=torch.float64)

    def matrices(t):
        return kernel(t)[:, None, None] * mixing

    layer = lc.gconv.approximate(matrices, generators, support, 0.1, order=6)
    assert relative_rms(layer(f), truth(generators, f, support, matrices, points)) < 3e-3
    box = lc.gconv.approximate(lambda t: torch.ones(len(t), dtype=t.dtype), generators, support, eta)
    assert box.kernel_error == box.slope == 0.0 and abs(box.coefficients.sum().item() - 6) < 1e-12


def test_nonlinearities_keep_equivariance():
    """Corollary 1: sigma(Q[u f]) = u sigma(Q[f]) for whole shifts and quarter turns, to rounding."""
    cases = [("T2", lambda f: f.roll((2, -1), (2, 3))), ("SO(2)", lambda f: f.rot90(1, (2, 3)))]
    for name, moved in cases:
        generators, f, support, kernel, eta, _ = CASES[name]
        f = f * 2 - 0.3 * torch.randn(f.shape, dtype=f.dtype)
        layer = lc.gconv.approximate(kernel, generators, support, eta)
        for sigma in (torch.relu, torch.tanh):
            deep = torch.nn.Sequential(layer, Pointwise(sigma), layer, Pointwise(sigma))
            assert relative_rms(deep(moved(f)), moved(deep(f))) < 1e-12


class Pointwise(torch.nn.Module):
    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, f):
        return self.sigma(f)


@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"generators": "rotation"}, TypeError, "generators"),
        ({"support": [(1.0, -1.0)]}, ValueError, "support"),
        ({"support": [(-1.0, 1.0)] * 2}, ValueError, "support"),
        ({"eta": 0.0}, ValueError, "eta"),
        ({"steps": 0}, ValueError, "steps"),
        ({"kernel": lambda t: t}, ValueError, "kernel"),
    ],
)
def test_errors(changed, error, words):
    keywords = {"kernel": bell(1.0), "generators": named("rotation", 2), "support": [(-1.0, 1.0)], "eta": 0.2}
    with pytest.raises(error, match=words):
        lc.gconv.approximate(**(keywords | changed))
