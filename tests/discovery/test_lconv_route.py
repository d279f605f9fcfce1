"""The L-conv route, its recursion, and the exact regression of dense generators."""

import numpy as np
import pytest
import torch
from discovery_data import bilinear_rotation, photographs
from scipy import ndimage

import lconv_fast as lc
from lconv_fast.discovery import alignment, discover, recursive_lconv


@pytest.mark.parametrize(("side", "depth"), [(64, 32), pytest.param(96, 48, marks=pytest.mark.full)])
def test_lconv_route_beyond_dense(side, depth):
    """Motions of many pixels and 5 % noise, on grids where the paper's L would have 10^7 numbers and more."""
    degrees = (9.0, -13.0)
    x = np.stack(list(photographs(2, side, np.random.default_rng(0))))
    volumes = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((2, *[depth] * 3)), (0, 2, 2, 2))
    y, turned = (
        np.stack([ndimage.rotate(f, a, (1, 0) if f.ndim == 2 else (0, 1), False, order=3) for f, a in turn])
        for turn in (list(zip(x, degrees, strict=True)), list(zip(volumes, degrees, strict=True)))
    )
    labels = np.radians(degrees)
    about_last = torch.zeros(1, 3, 3)
    about_last[0, 0, 1], about_last[0, 1, 0] = -1.0, 1.0
    flat, solid = lc.AffineGenerators.named("rotation"), lc.AffineGenerators(about_last, torch.zeros(1, 3))
    for before, after, true in ((x, y, flat), (volumes, turned, solid)):
        noise = np.random.default_rng(2).standard_normal((2, *before.shape))
        pairs = [torch.from_numpy(v + 0.05 * v.std() * n)[:, None] for v, n in zip((before, after), noise, strict=True)]
        found = discover(*pairs, parameters=torch.from_numpy(labels), route="lconv", progress=False)
        assert found.algebra.name in ("so(2)", "so(2) in 3D")
        assert alignment(found.generators, true, before.shape[1:]).angles.max() < 0.5


def test_recursion_tends_to_the_flow():
    """(I + t/p L)^p -> exp(t L), at first order in 1/p; with the series up to the fourth power, at fourth order."""
    generators = lc.AffineGenerators.named("rotation", 2).double()
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    t = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    matrix = generators.to_dense((9, 9))[0]
    exact = torch.stack([torch.linalg.matrix_exp(s * matrix) @ f.flatten() for s, f in zip(t[:, 0], x, strict=True)])
    errors = [
        (recursive_lconv(x, t, generators, p, order).flatten(1) - exact).norm().item()
        for p, order in ((32, 1), (64, 1), (8, 4), (16, 4))
    ]
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 14 < errors[2] / errors[3] < 18


def test_recursions_too_few_for_the_motion():
    x = torch.from_numpy(np.stack(list(photographs(2, 32, np.random.default_rng(0)))))[:, None]
    y = torch.roll(x, 6, -1)
    with pytest.raises(ValueError, match="recursions: 2 factors move points by up to"):
        discover(x, y, parameters=torch.ones(2), route="lconv", recursions=2, progress=False)


def test_dense_regression():
    """The paper's own linear regression: exact once there are more images than points."""
    x = torch.rand(200, 1, 7, 7, dtype=torch.float64) - 0.5
    found = discover(x, bilinear_rotation(x, 0.05), kind="dense", parameters=torch.full((200,), 0.05), progress=False)
    matrix = torch.linalg.matrix_exp(0.05 * found.generators.matrix[0].double())
    y = bilinear_rotation(x, 0.05)
    assert ((x.flatten(1) @ matrix.T - y.flatten(1)).norm() / y.norm()) < 1e-3
