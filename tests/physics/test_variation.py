"""Eq. (21): the Euler-Lagrange residual against autograd, dense matrices, sympy and noise."""

import itertools
import math

import pytest
import torch
from fields import band_limited, relative

import lconv_fast as lc
from lconv_fast.ops.boundary import PADDING_MODES
from lconv_fast.physics.derivatives import coordinates

P = lc.physics
SPATIAL = {1: (19,), 2: (11, 12), 3: (9, 10, 11)}


def nonlinear(phi, dphi, x):
    """Several components, mixed derivatives, explicit x."""
    mixed = (dphi[:, :, 0] * dphi[:, :, -1]).sum(1)
    return phi.pow(4).sum(1) + (1 + x[0] ** 2 / 9) * dphi.square().sum((1, 2)) + mixed * phi[:, 0] + phi[:, 0].sin()


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("accuracy", (2, 8))
def test_residual_is_the_gradient_of_the_discrete_action(ndim, mode, accuracy):
    """dL/dphi + D_a^T dL/d(d_a phi) with D_a as a dense matrix and its transpose."""
    spatial = SPATIAL[ndim]
    phi = torch.randn(2, 2, *spatial, dtype=torch.float64)
    residual = P.euler_lagrange(nonlinear, phi, accuracy=accuracy, padding_mode=mode)
    dense = lc.AffineGenerators.named("translation", ndim, accuracy=accuracy, padding_mode=mode).double()
    matrices = dense.to_dense(spatial)
    field = phi.clone().requires_grad_()
    slope = torch.einsum("axy,Ncy->Ncax", matrices, phi.flatten(2)).unflatten(-1, spatial).requires_grad_()
    first, second = torch.autograd.grad(nonlinear(field, slope, coordinates(spatial, phi)).sum(), (field, slope))
    truth = first + torch.einsum("axy,Ncax->Ncy", matrices, second.flatten(3)).unflatten(-1, spatial)
    assert relative(residual - truth, truth) < 1e-12
    if mode == "circular":  # D^T = -D: the residual as it is printed.
        printed = first - P.divergence(second, accuracy, mode)
        assert relative(residual - printed, truth) < 1e-12


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("complex_field", (False, True))
def test_residual_of_a_layer(mode, complex_field):
    layer = lc.LConv2d(3, 4, "affine", padding_mode=mode, accuracy=4, dtype=torch.float64)
    layer.bias.data.normal_()
    lagrangian = P.QuadraticLagrangian.from_layer(layer)
    phi = torch.randn(2, 3, 11, 12, dtype=torch.complex128 if complex_field else torch.float64)
    fused = P.euler_lagrange(lagrangian, phi)
    by_density = P.euler_lagrange(lambda f, d, x: lagrangian(f, d, x), phi, accuracy=4, padding_mode=mode)
    assert fused.shape == phi.shape and fused.dtype == phi.dtype
    assert relative(fused - by_density, by_density) < 1e-12
    field = phi.clone().requires_grad_()
    (truth,) = torch.autograd.grad(lagrangian.density(field, "corrected").sum(), field)
    assert relative(fused - truth, truth) < 1e-12


def test_against_sympy():
    """The variational derivative of a nonlinear density, by sympy, on a band-limited field."""
    sympy = pytest.importorskip("sympy", reason="compared with sympy, where that is installed")
    from sympy.calculus.euler import euler_equations

    y, x = sympy.symbols("y x")
    phi = sympy.Function("phi")(y, x)
    size, turn = 32, 2 * sympy.pi / 32
    density = phi.diff(y) ** 2 / 2 - phi.diff(x) ** 2 / 3 + phi.diff(x) ** 2 * phi.diff(y) * phi + phi**3 / 3
    equation = euler_equations(density, [phi], [y, x])[0].lhs
    given = sympy.cos(turn * (y + 2 * x)) / 2 + sympy.sin(turn * (2 * y - x)) / 3 + sympy.Rational(1, 5)
    value = sympy.lambdify((y, x), equation.subs(phi, given).doit(), "numpy")
    index = torch.arange(size, dtype=torch.float64)
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    truth = torch.as_tensor(value(rows.numpy(), columns.numpy()))
    field = torch.as_tensor(sympy.lambdify((y, x), given, "numpy")(rows.numpy(), columns.numpy()))

    def ours(f, d, _):
        f, dy, dx = f[:, 0], d[:, 0, 0], d[:, 0, 1]
        return dy**2 / 2 - dx**2 / 3 + dx**2 * dy * f + f**3 / 3

    found = P.euler_lagrange(ours, field[None, None], accuracy="spectral", padding_mode="circular")[0, 0]
    assert relative(found - truth, truth) < 1e-12
    errors = [
        relative(P.euler_lagrange(ours, field[None, None], accuracy=a, padding_mode="circular")[0, 0] - truth, truth)
        for a in (2, 4, 6, 8)
    ]
    assert all(later < earlier / 3 for earlier, later in itertools.pairwise(errors)), errors


def test_gradients_through_the_residual():
    phi = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: P.euler_lagrange(nonlinear, f), (phi,))
    layer = lc.LConv2d(2, 2, "rotation", dtype=torch.float64)
    lagrangian = P.QuadraticLagrangian.from_layer(layer)
    P.euler_lagrange(lagrangian, phi.detach()).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    strength = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    P.euler_lagrange(lambda f, d, x: strength * f.square().sum(1), phi.detach()).sum().backward()
    assert torch.isclose(strength.grad, 2 * phi.sum())
    assert not P.euler_lagrange(nonlinear, phi.detach()).requires_grad


def test_spectral_derivative():
    """i k, the Nyquist mode zero; D^T = -D."""
    for size in (16, 15):
        index = torch.arange(size, dtype=torch.float64)
        for wave in range(1, (size + 1) // 2):
            k = 2 * math.pi * wave / size
            f = torch.sin(k * index + 0.3)[None, None]
            truth = k * torch.cos(k * index + 0.3)
            assert relative(P.gradient(f, "spectral", "circular")[0, 0, 0] - truth, truth) < 1e-12
    nyquist = (-1.0) ** torch.arange(16, dtype=torch.float64)[None, None]
    assert P.gradient(nyquist, "spectral", "circular").abs().max() < 1e-14
    f, g = torch.randn(2, 1, 1, 9, 10, dtype=torch.complex128)
    df, dg = P.gradient(f, "spectral", "circular"), P.gradient(g, "spectral", "circular")
    assert ((df * g[:, :, None]).sum((0, 1, 3, 4)) + (dg * f[:, :, None]).sum((0, 1, 3, 4))).abs().max() < 1e-12


@pytest.mark.parametrize("make", ("layer", "model", "lagrangian"))
def test_robustness_is_the_change_under_noise(make):
    layer = lc.LConv2d(2, 3, "rotation", padding_mode="circular", dtype=torch.float64)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), torch.nn.Conv2d(3, 1, 3, dtype=torch.float64))
    target = {"layer": layer, "model": model, "lagrangian": P.QuadraticLagrangian.from_layer(layer)}[make]
    call = model if make == "model" else layer
    phi = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    found = P.robustness(target, phi)
    assert found.map.shape == (2, 16, 16) and found.number.shape == (2,)
    sigma, count = 1e-5, 2000
    with torch.no_grad():
        loss = call(phi).square().sum((1, 2, 3))
        noise = torch.randn(count, 1, 2, 16, 16, dtype=torch.float64)
        changes = torch.stack([call(phi + sigma * n).square().sum((1, 2, 3)) - loss for n in noise])
    ratio = changes.std(0) / (sigma * found.number)
    assert (ratio - 1).abs().max() < 4 / math.sqrt(2 * count)
    one = call(phi + sigma * noise[0]).square().sum((1, 2, 3)) - loss
    assert torch.allclose(one, (found.residual * sigma * noise[0]).sum((1, 2, 3)), rtol=1e-2, atol=1e-7)


def test_bad_input():
    phi = torch.randn(2, 1, 8, 8)
    for error, text, density in (
        (ValueError, "not differentiable", lambda f, d, x: f.detach().sum(1)),
        (ValueError, "FloorBackward", lambda f, d, x: f.floor().sum(1)),
        (ValueError, "density of shape", lambda f, d, x: f.square()),
        (TypeError, "expected a tensor", lambda f, d, x: 1.0),
        (TypeError, "expected a QuadraticLagrangian or", 3),
        (TypeError, "from_layer", lc.LConv2d(1, 1)),
    ):
        with pytest.raises(error, match=text):
            P.euler_lagrange(density, phi)
    with pytest.raises(TypeError, match="real density"):
        P.euler_lagrange(lambda f, d, x: (f**2).sum(1), phi.to(torch.complex64))
    with pytest.raises(TypeError, match="floating-point"):
        P.euler_lagrange(nonlinear, torch.ones(1, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected shape"):
        P.euler_lagrange(nonlinear, torch.ones(8, 8))
    with pytest.raises(ValueError, match="accuracy: expected one of"):
        P.euler_lagrange(nonlinear, phi, accuracy=3)
    with pytest.raises(ValueError, match="spectral derivatives need 'circular'"):
        P.euler_lagrange(nonlinear, phi, accuracy="spectral")
    with pytest.raises(TypeError, match="model: expected a module"):
        P.robustness(3, phi)
    with pytest.raises(ValueError, match="one number for each sample"):
        P.robustness(torch.nn.Conv2d(1, 1, 3), phi, loss=lambda y: y.sum())
    with pytest.raises(ValueError, match="not differentiable"):
        P.robustness(lambda f: torch.ones(2, 3), phi)


@pytest.mark.full
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_cost(dtype):
    """Euler-Lagrange residual of 1024 x 1024 x 16 against the layer's forward pass, interleaved; memory by counting."""
    import time

    layer = lc.LConv2d(16, 16, "affine", dtype=dtype)
    lagrangian = P.QuadraticLagrangian.from_layer(layer).requires_grad_(False)
    phi = torch.randn(1, 16, 1024, 1024, dtype=dtype)
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            layer(phi)
        forward = time.perf_counter() - start
        start = time.perf_counter()
        P.euler_lagrange(lagrangian, phi)
        ratios.append((time.perf_counter() - start) / forward)
    print("residual / forward pass", sorted(ratios))
    assert sorted(ratios)[2] < 6

    def density(f, d, x):
        return f.square().sum(1) + d.square().sum((1, 2))

    ratios = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            density(phi, P.gradient(phi), None)
        forward = time.perf_counter() - start
        start = time.perf_counter()
        P.euler_lagrange(density, phi)
        ratios.append((time.perf_counter() - start) / forward)
    print("residual / density", sorted(ratios))
    assert sorted(ratios)[1] < 6


def test_band_limited_helper_is_band_limited():
    f = band_limited(1, 1, (16, 16), 3)
    assert torch.fft.fft2(f)[0, 0, 4:13].abs().max() < 1e-10
