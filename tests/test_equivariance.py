"""Equivariance (eq. 2 and 16) and finite transformations, with convergence orders."""

import math

import pytest
import torch
from problems import relative_rms

import lconv_fast as lc


def gaussians(size, angle=0.0, spacing=1.0):
    """A smooth picture, turned by an angle exactly: sums of Gaussians; support well inside the grid."""
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * spacing
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    y, x = c * y + s * x, c * x - s * y
    picture = torch.zeros_like(x)
    for weight, cy, cx, width in ((1.0, 2.0, -1.0, 2.2), (-0.7, -2.5, 1.5, 2.6), (0.5, 0.5, 2.5, 2.0)):
        picture += weight * torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return picture[None, None]


@pytest.mark.parametrize("accuracy", [2, 4, 6, 8])
def test_equivariance_error_falls_with_the_order(accuracy):
    """Turning a picture and applying the layer commute; the error falls as spacing^accuracy."""
    generators = lc.AffineGenerators.named("rotation", accuracy=accuracy, coordinate_scale=1.0).double()
    angle, errors = 0.4, []
    for spacing in (0.5, 0.25):
        size = int(40 / spacing) + 1
        before = generators(gaussians(size, 0.0, spacing))
        # The exact L f is d/dt of the picture turned by t: compare at the turned picture.
        after = generators(gaussians(size, angle, spacing))[0, 0, 0]
        h = 1e-3
        weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
        exact = sum(
            w * (gaussians(size, angle + k * h, spacing) - gaussians(size, angle - k * h, spacing)) / h
            for k, w in weights.items()
        )[0, 0]
        sign = torch.sign((after * exact).sum())
        errors.append(relative_rms(sign * after, exact))
        assert before.shape[-1] == size
    order = math.log2(errors[0] / errors[1])
    assert abs(order - accuracy) < 0.35, (order, errors)


@pytest.mark.parametrize("mode", ["circular"])
def test_layer_commutes_with_quarter_turns_and_shifts(mode):
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    turning = lc.LConv2d(3, 4, "rotation", padding_mode=mode, dtype=torch.float64)
    assert relative_rms(turning(x.rot90(1, (2, 3))), turning(x).rot90(1, (2, 3))) < 1e-14
    moving = lc.LConv2d(3, 4, "translation", padding_mode=mode, dtype=torch.float64)
    assert relative_rms(moving(x.roll((2, -3), (2, 3))), moving(x).roll((2, -3), (2, 3))) < 1e-14


def test_composed_layers_reach_the_group_element():
    """(I + (t / p) L)^p -> exp(t L) with error O(1 / p): theorem 1 of Dehmamy et al. 2021."""
    generators = lc.AffineGenerators.named("rotation", accuracy=8, coordinate_scale=1.0).double()
    matrix = generators.to_dense((25, 25))[0]
    f = gaussians(25)
    t = 0.3
    exact = (torch.linalg.matrix_exp(t * matrix) @ f.flatten()).reshape(1, 1, 25, 25)
    turned = [gaussians(25, sign * t) for sign in (1, -1)]
    assert min(relative_rms(exact, picture) for picture in turned) < 1e-3
    errors = []
    for p in (32, 64):
        weight = torch.tensor([1.0, t / p], dtype=torch.float64)[:, None, None]
        y = f
        for _ in range(p):
            y = lc.functional.lconv(y, weight, generators)
        errors.append(relative_rms(y, exact))
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_convolution_is_a_special_case():
    """Eq. (18): with the shifts as generators, the layer is nn.functional.conv2d."""
    taps = [[dy, dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    generators = lc.StencilGenerators(torch.eye(8, dtype=torch.float64), taps)
    weight = torch.randn(9, 5, 3, dtype=torch.float64)
    kernel = torch.zeros(5, 3, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = weight[0]
    for k, (dy, dx) in enumerate(taps, start=1):
        kernel[:, :, 1 + dy, 1 + dx] = weight[k]
    x, bias = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for stride in (1, 2):
        y = lc.functional.lconv(x, weight, generators, bias, stride=stride)
        assert relative_rms(y, torch.nn.functional.conv2d(x, kernel, bias, padding=1, stride=stride)) < 1e-14
    bands = lc.functional.lconv(x, torch.randn(9, 6, 1, dtype=torch.float64), generators, groups=3)
    assert bands.shape == (2, 6, 9, 8)
