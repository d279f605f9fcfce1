"""The U-Net that commutes with SE(n): quarter turns to rounding, small angles better on finer grids."""

import math

import pytest
import torch

from lconv_fast import nets
from lconv_fast.nets.euclidean import smooth


def euclidean_unet(ndim, widths=(4, 6), **keywords):
    return nets.LUNet(
        1, 2, nets.isotropic(ndim), ndim=ndim, widths=widths, norm="instance", pool="mean", invariants=True, **keywords
    ).double()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("ndim, axes", [(2, (2, 3)), (3, (2, 3)), (3, (2, 4)), (3, (3, 4))])
def test_quarter_turns_to_rounding(ndim, axes):
    torch.manual_seed(0)
    model = euclidean_unet(ndim)
    f = torch.randn(1, 1, *[8] * ndim, dtype=torch.float64)
    assert relative(model(f.rot90(1, axes)), model(f).rot90(1, axes)) < 1e-6
    assert relative(model(f.flip(2)), model(f).flip(2)) < 1e-6
    ordinary = nets.LUNet(1, 2, ndim=ndim, widths=(4, 6), norm="instance").double()
    assert relative(ordinary(f.rot90(1, axes)), ordinary(f).rot90(1, axes)) > 0.05


def blobs(points):
    """Three Gaussians at places without symmetry, points (size, size, size, 3) in [-1, 1]^3."""
    centers = torch.tensor([[0.3, 0.1, 0.0], [-0.2, 0.25, 0.1], [0.0, -0.3, -0.25]], dtype=torch.float64)
    shapes = torch.tensor([[30.0, 14.0, 14.0], [16.0, 16.0, 34.0], [20.0, 20.0, 20.0]], dtype=torch.float64)
    return sum(torch.exp(-((points - c).square() * s).sum(-1)) for c, s in zip(centers, shapes, strict=True))[
        None, None
    ]


def error_of_small_turn(size, degrees=20.0):
    """The field turned analytically, read off where the turned grid meets the grid: at the centre's voxels."""
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size / 2)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    q = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    stage = torch.nn.Sequential(
        nets.LBlock(3, 1, 4, nets.isotropic(3), "instance", "gelu"),
        nets.EuclideanInvariants(4, 3),
    ).double()
    with torch.no_grad():
        upright, turned = stage(blobs(points)), stage(blobs(points @ q.T))
    # turned(x) = upright(Qx): read upright there by a cubic-free way, trilinear, on both sides alike.
    x = points @ q.T
    grid = (x * (size / (size - 1))).flip(-1)[None]
    there = torch.nn.functional.grid_sample(upright, grid, align_corners=True)
    inside = points.norm(dim=-1) < 0.7
    return relative(turned[..., inside], there[..., inside])


def test_small_angles_converge():
    coarse, fine = error_of_small_turn(16), error_of_small_turn(32)
    assert fine < 0.5 * coarse and fine < 0.1


def test_smoothing_is_binomial():
    f = torch.zeros(1, 1, 5, 5)
    f[0, 0, 2, 2] = 1
    row = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    torch.testing.assert_close(smooth(f)[0, 0], row[:, None] * row)


def test_gradients_and_options():
    model = euclidean_unet(3, checkpoint=True)
    f = torch.randn(1, 1, 6, 5, 7, dtype=torch.float64)
    model(f).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    flat = torch.zeros(1, 1, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(model(flat).sum(), flat)[0].isfinite().all()
    with pytest.raises(ValueError, match="pool: expected one of max, mean, got 'median'"):
        nets.LUNet(1, 1, pool="median")
    with pytest.raises(TypeError, match="invariants: expected True or False, got 'se'"):
        nets.LUNet(1, 1, invariants="se")
