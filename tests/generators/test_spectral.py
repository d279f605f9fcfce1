"""Band-limited derivatives: exact shifts, exact waves, the Nyquist mode, dtypes."""

import math

import pytest
import torch
from problems import TOLERANCE, relative_rms

import lconv_fast as lc

SPECTRAL = {"accuracy": "spectral", "padding_mode": "circular"}


@pytest.mark.parametrize("size", [5, 9, 33])
def test_exponential_is_the_exact_shift_on_odd_axes(size):
    """exp(m d/dx) f(x) = f(x + m): section 4 of Dehmamy et al. 2021."""
    derivative = lc.AffineGenerators.named("translation", 1, **SPECTRAL).double().to_dense((size,))[0]
    for steps in (1, 2, -3):
        shift = torch.eye(size, dtype=torch.float64).roll(steps, 1)
        assert (torch.matrix_exp(steps * derivative) - shift).abs().max() < 1e-12


def test_exponential_on_even_axes_shifts_all_but_the_nyquist_mode():
    size = 8
    derivative = lc.AffineGenerators.named("translation", 1, **SPECTRAL).double().to_dense((size,))[0]
    signs = torch.tensor([1.0, -1.0] * (size // 2), dtype=torch.float64)
    assert (derivative @ signs).abs().max() < 1e-14
    f = torch.randn(size, dtype=torch.float64)
    f = f - signs * (signs @ f) / size
    assert (torch.matrix_exp(derivative) @ f - f.roll(-1)).abs().max() < 1e-12
    second = lc.DifferentialGenerators(torch.ones(1, 1), [[2]], **SPECTRAL).double().to_dense((size,))[0]
    assert (second @ signs + math.pi**2 * signs).abs().max() < 1e-12
    assert (derivative + derivative.T).abs().max() < 1e-14 and (second - second.T).abs().max() < 1e-13


@pytest.mark.parametrize("shape", [(12, 15), (9, 8)])
def test_waves_have_their_exact_derivatives(shape):
    """To rounding, where central differences of order 8 are off by more than a thousandth."""
    y, x = (torch.arange(size, dtype=torch.float64) * (2 * math.pi / size) for size in shape)
    f = (2 * y[:, None] + 3 * x).sin()
    rates = 2 * 2 * math.pi / shape[0], 3 * 2 * math.pi / shape[1]
    expected = torch.stack([rate * (2 * y[:, None] + 3 * x).cos() for rate in rates])
    found = lc.generators.named("translation", 2, **SPECTRAL).double()(f[None, None])[0, :, 0]
    assert relative_rms(found, expected) < 1e-13
    coarse = lc.generators.named("translation", 2, accuracy=8, padding_mode="circular").double()(f[None, None])[0, :, 0]
    assert relative_rms(coarse, expected) > 1e-3
    second = lc.generators.named("second", 2, **SPECTRAL).double()(f[None, None])[0, 2:, 0]
    factors = torch.tensor([rates[0] ** 2, rates[0] * rates[1], rates[1] ** 2], dtype=torch.float64)
    assert relative_rms(second, -factors[:, None, None] * f) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_layers_in_every_dtype(dtype):
    for layer in (
        lc.LConv2d(3, 4, "similitude", dtype=dtype, learnable=True, **SPECTRAL),
        lc.LConv2d(4, 6, "laplacian", dtype=dtype, groups=2, stride=2, **SPECTRAL),
        lc.LConv1d(3, 4, "affine", dtype=dtype, factorized=True, **SPECTRAL),
    ):
        x = torch.randn(2, layer.in_channels, *(9, 10)[: layer.ndim], dtype=torch.float64).to(dtype)
        twin = type(layer)(
            layer.in_channels, layer.out_channels, layer.generators, groups=layer.groups, stride=layer.stride
        )
        y = layer(x)
        y.sum().backward()
        assert y.dtype == dtype and all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())
        with torch.no_grad():
            twin = twin.double()
            twin.weight.copy_(layer.weight)
            twin.bias.copy_(layer.bias)
            assert relative_rms(y, twin(x.double())) < TOLERANCE[dtype]


def test_autocast_keeps_sums_in_float32():
    layer = lc.LConv2d(8, 8, "se", **SPECTRAL)
    x = torch.randn(2, 8, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = layer(x)
    expected = lc.functional.lconv(
        x.bfloat16().double(),
        layer.weight.bfloat16().double(),
        layer.generators.double(),
        layer.bias.bfloat16().double(),
    )
    assert y.dtype == torch.bfloat16 and relative_rms(y, expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
def test_needs_periodic_axes(mode):
    with pytest.raises(ValueError, match=f"expected 'circular' with accuracy='spectral'.*, got '{mode}'"):
        lc.LConv2d(3, 4, accuracy="spectral", padding_mode=mode)


def test_explain_says_that_no_fused_kernel_computes_it():
    with pytest.raises(TypeError, match="expected generators that a fused kernel computes, got AffineGenerators"):
        lc.explain(lc.LConv2d(3, 4, "affine", **SPECTRAL), (1, 3, 8, 8))


def test_mean_square_is_the_variance_of_white_noise():
    for generators in (
        lc.generators.named("affine", 2, **SPECTRAL),
        lc.generators.named("second", 2, **SPECTRAL),
        lc.FieldGenerators(torch.randn(2, 2, 64, 63), **SPECTRAL),
    ):
        measured = generators(torch.randn(16, 1, 64, 63)).square().mean((0, 2, 3, 4))
        assert ((measured / generators.mean_square()) - 1).abs().max() < 0.12  # sampling noise, a finite grid
