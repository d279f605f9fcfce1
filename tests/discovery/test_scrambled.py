"""Pixels in an unknown order."""

import numpy as np
import pytest
import torch
from discovery_data import basis, grid_edges, natural_patches, photographs, spline_warp, true_generators
from scipy import ndimage
from skimage.transform import resize

import lconv_fast as lc
from lconv_fast.discovery import alignment, discover, field_on, unscramble
from lconv_fast.discovery.fields import fields_of


@pytest.mark.parametrize("shape", [(20, 20), (12, 18)])
def test_scrambled_pixels(shape):
    """The grid from the data's statistics, and a generator learned on it, shown where the pixels belong."""
    random = np.random.default_rng(11)
    height, width = shape
    patches = natural_patches(3000, max(shape), random)[:, :height, :width].reshape(-1, height * width)
    hidden = random.permutation(height * width)
    found = unscramble(torch.from_numpy(patches[:, hidden]), shape)
    edges = {tuple(sorted(pair)) for pair in hidden[found.edges].tolist()}
    true = grid_edges(height, width)
    assert len(edges & true) >= 0.99 * len(true) and len(edges) == len(true)
    # Pairs in the hidden order, on the recovered grid.
    x = torch.from_numpy(np.stack([resize(p, shape) for p in photographs(6, 64, random)])[:, None])
    y = torch.stack([torch.from_numpy(spline_warp(image.numpy(), 0.3 * basis("so(2)")[0])) for image in x[:, 0]])[
        :, None
    ]
    scrambled = [found.images(t.flatten(2)[..., hidden.tolist()]) for t in (x, y)]
    learned = discover(*scrambled, parameters=torch.full((6,), 0.3), progress=False)
    assert alignment(learned.generators, true_generators("so(2)"), shape).correlations[0] > 0.99


def test_generator_on_the_graph_of_scrambled_pixels():
    """Neighbours from the data's statistics, a weight on each edge by the L-conv, the field where the pixels belong."""
    random, size = np.random.default_rng(3), 10
    patches = natural_patches(800, size + 8, random).reshape(-1, size + 8, size + 8)
    angles = random.uniform(-0.15, 0.15, len(patches))
    turned = [ndimage.rotate(p, np.degrees(a), reshape=False, order=3) for p, a in zip(patches, angles, strict=True)]
    hidden = random.permutation(size * size)
    x, y = (
        torch.from_numpy(np.stack(list(v))[:, 4:-4, 4:-4].reshape(-1, size * size)[:, hidden].copy())[:, None]
        for v in (patches, turned)
    )
    found = discover(x, y, kind="graph", parameters=torch.from_numpy(angles), progress=False)
    assert found.residual < 0.01
    field = field_on(found.generators, unscramble(x, (size, size))).field
    true = true_generators("so(2)")
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    rotation = fields_of(true, (size, size)).reshape(1, 2, size, size)[inner].ravel()
    learned = field[inner].double().numpy().ravel()
    assert abs(learned @ rotation) > 0.96 * np.linalg.norm(learned) * np.linalg.norm(rotation)
    layer = lc.LConvGraph(1, 4, found.generators)
    assert layer(x.float().transpose(1, 2)).shape == (800, size * size, 4)
    with pytest.raises(ValueError, match="values cannot identify"):
        discover(x[:25], y[:25], kind="graph", parameters=torch.from_numpy(angles[:25]), progress=False)
    with pytest.raises(ValueError, match="kind 'graph' needs labelled pairs"):
        discover(x, y, kind="graph", progress=False)


def test_pixels_without_a_grid_are_refused():
    with pytest.raises(ValueError, match="their pixels do not fit a grid"):
        unscramble(torch.rand(500, 100), (10, 10))
    with pytest.raises(ValueError, match="images: expected 21 or more for 100 pixels, got 12"):
        unscramble(torch.rand(12, 100), (10, 10))
    with pytest.raises(ValueError, match="shape: expected 100 pixels, got 9 x 10"):
        unscramble(torch.rand(500, 100), (9, 10))
