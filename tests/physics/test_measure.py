"""Measures that a group keeps, and the invariant loss."""

import math

import pytest
import torch

import lconv_fast as lc
from lconv_fast.physics.measure import haar_measure

P = lc.physics


def named(name, ndim=2, **keywords):
    return lc.AffineGenerators.named(name, ndim, **keywords).double()


@pytest.mark.parametrize("name", ("translation", "rotation", "se", "sl", "lorentz"))
@pytest.mark.parametrize("ndim", (2, 3))
def test_flat(name, ndim):
    assert (haar_measure(named(name, ndim), (5, 6, 7)[:ndim]) == 1).all()


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_scaling(ndim):
    """1 / |x|^n in the generators' coordinates."""
    spatial = (8, 6, 10)[:ndim]
    mu = haar_measure(named("scaling", ndim, coordinate_scale=2.0), spatial)
    point = tuple(s - 2 for s in spatial)
    x = [(i - (s - 1) / 2) / 2 for i, s in zip(point, spatial, strict=True)]
    assert math.isclose(mu[point].item(), math.hypot(*x) ** -ndim, rel_tol=1e-12)


def test_commuting_fields():
    """Scaling of each axis on its own: 1 / |x y|; boosts with scaling: 1 / |t^2 - x^2|."""
    matrix = torch.zeros(2, 2, 2, dtype=torch.float64)
    matrix[0, 0, 0] = matrix[1, 1, 1] = 1
    mu = haar_measure(lc.AffineGenerators(matrix, torch.zeros(2, 2).double(), coordinate_scale=1.0), (6, 6))
    assert math.isclose(mu[0, 1].item(), 1 / (2.5 * 1.5), rel_tol=1e-12)
    boosts = torch.stack([torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)]).double()
    mu = haar_measure(lc.AffineGenerators(boosts, torch.zeros(2, 2).double(), coordinate_scale=1.0), (6, 9))
    assert math.isclose(mu[0, 1].item(), 1 / abs(2.5**2 - 3**2), rel_tol=1e-12)


def test_scaling_with_rotation_is_both_forms():
    """SO(2) x R+: 1 / r^2 = 1 / |det v|."""
    both = torch.cat([named("rotation").matrix, named("scaling").matrix])
    generators = lc.AffineGenerators(both, torch.zeros(2, 2).double(), coordinate_scale=1.0)
    mu = haar_measure(generators, (6, 6))
    field = torch.stack([both[0] @ torch.tensor([-2.5, 1.5]).double(), torch.tensor([-2.5, 1.5]).double()])
    assert math.isclose(mu[0, 4].item(), 1 / abs(torch.linalg.det(field).item()), rel_tol=1e-12)


def test_loss_is_invariant_under_scaling():
    """Q = 1 + eps r d_r of (log r, angle): scaling shifts log r, and the Haar integral stays."""
    size = 256

    def picture(factor):
        axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * factor
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        r = (x**2 + y**2).sqrt()
        return (torch.exp(-((r.log() - 3.4) ** 2) / 0.05) * (1 + x / r / 2))[None, None]

    layer = lc.LConv2d(1, 2, "scaling", dtype=torch.float64, accuracy=8, bias=False)
    haar = [P.invariant_loss(layer, picture(f), "haar").item() for f in (1.0, 0.8)]
    flat = [P.invariant_loss(layer, picture(f), "flat").item() for f in (1.0, 0.8)]
    assert abs(haar[1] / haar[0] - 1) < 1e-3
    assert abs(flat[1] / flat[0] - 1 / 0.8**2) < 1e-2  # the area


def test_pairs_and_tensors():
    layer = lc.LConv2d(5, 2, "rotation", dtype=torch.float64)
    f, y = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 3, 8, 8).double()
    truth = layer(torch.cat([f, y], 1)).square().sum()
    assert torch.isclose(P.invariant_loss(layer, (f, y)), truth)
    assert torch.isclose(P.invariant_loss(layer, (f, y), "haar"), truth)
    classes = torch.randn(3, 3).double()
    spread = classes[..., None, None].expand(3, 3, 8, 8)
    assert torch.isclose(P.invariant_loss(layer, (f, classes)), P.invariant_loss(layer, (f, spread)))
    weight = torch.rand(8, 8).double() + 0.1
    by_hand = (layer(torch.cat([f, y], 1)).square().sum(1) * weight).sum()
    loss = P.invariant_loss(layer, (f, y), weight)
    assert torch.isclose(loss, by_hand)
    loss.backward()
    assert layer.weight.grad.abs().sum() > 0


def test_bad_input():
    layer = lc.LConv2d(1, 1, "scaling")
    with pytest.raises(ValueError, match=r"got inf at the point \(4, 4\)"):
        P.invariant_loss(layer, torch.randn(1, 1, 9, 9), "haar")
    for name in ("similitude", "gl", "affine"):
        with pytest.raises(ValueError, match="keep no measure"):
            P.invariant_loss(lc.LConv2d(1, 1, name), torch.randn(1, 1, 8, 8), "haar")
    zero = torch.ones(8, 8)
    zero[2, 3] = 0
    with pytest.raises(ValueError, match=r"got 0.0 at the point \(2, 3\)"):
        P.invariant_loss(layer, torch.randn(1, 1, 8, 8), zero)
    with pytest.raises(ValueError, match="measure: expected the spatial shape"):
        P.invariant_loss(layer, torch.randn(1, 1, 8, 8), torch.ones(8, 9))
    with pytest.raises(ValueError, match="'flat', 'haar' or a tensor"):
        P.invariant_loss(layer, torch.randn(1, 1, 8, 8), "uniform")
    with pytest.raises(ValueError, match="needs them"):
        P.invariant_loss(torch.nn.Conv2d(1, 1, 3, padding=1), torch.randn(1, 1, 8, 8), "haar")
    with pytest.raises(ValueError, match="on the grid"):
        P.invariant_loss(torch.nn.Conv2d(1, 1, 3), torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"phi\[1\]"):
        P.invariant_loss(layer, (torch.randn(1, 1, 8, 8), torch.randn(2, 1)))
