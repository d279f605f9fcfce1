"""The direct route: on groups, images, noise and warps that the code was not told of."""

import math

import numpy as np
import pytest
import torch
from discovery_data import (
    GROUPS,
    basis,
    bilinear_rotation,
    photographs,
    spline_warp,
    stacked,
    true_generators,
)
from scipy import ndimage
from scipy.linalg import expm
from skimage import data
from skimage.transform import resize

import lconv_fast as lc
from lconv_fast.discovery import alignment, discover
from lconv_fast.discovery.fields import Polynomial, grid_points


@pytest.mark.parametrize("group", GROUPS)
def test_planar_groups_from_noisy_photographs(group):
    random = np.random.default_rng(7)
    fields, pairs = basis(group), []
    for image in photographs(16, 64, random):
        moved = spline_warp(image, np.einsum("i,iab->ab", random.uniform(-0.15, 0.15, len(fields)), fields))
        pairs.append((image, moved + 0.05 * random.standard_normal(image.shape)))
    x, y = (stacked(side) for side in zip(*pairs, strict=True))
    found = discover(x, y, progress=False)
    assert found.dimension == len(fields) and found.algebra.name == group
    assert alignment(found.generators, true_generators(group), (64, 64)).angles.max() < 0.5
    # The estimates explain the pairs: y = exp(sum t L) x in the interior, by the library's own layers.
    assert found.residual < 0.02 and found.parameters.shape == (16, len(fields))


@pytest.mark.parametrize("group", ["so(2)", "sl(2)", "aff(2)"])
def test_clean_pairs_are_exact(group):
    random = np.random.default_rng(3)
    fields, size = basis(group), 20
    x = torch.from_numpy(random.uniform(-0.5, 0.5, (24, 1, size, size)))
    _, points, _ = grid_points((size, size))
    ys = []
    for image in x[:, 0].numpy():
        generator = np.zeros((3, 3))
        generator[:2] = np.einsum("i,iab->ab", random.uniform(-0.2, 0.2, len(fields)), fields)
        moved = (expm(generator) @ np.concatenate([points, np.ones((1, size**2))]))[:2] * 9.5 + 9.5
        ys.append(ndimage.map_coordinates(image, moved, order=1).reshape(size, size))
    found = discover(x, stacked(ys), progress=False)
    assert found.dimension == len(fields) and found.algebra.name == group
    assert alignment(found.generators, true_generators(group), (20, 20)).angles.max() < 0.01


def test_paper_data_labelled():
    """20 x 20 white noise turned by pi / 10, 10 pairs: the paper's dense L has a correlation of 0.12 from 50,000."""
    x = torch.rand(10, 1, 20, 20, dtype=torch.float64) - 0.5
    y = bilinear_rotation(x, math.pi / 10)
    found = discover(x, y, parameters=torch.full((10,), math.pi / 10), progress=False)
    true = lc.AffineGenerators.named("rotation", 2)
    assert alignment(found.generators, true).correlations.min() > 0.999999
    assert abs(found.generators.matrix[0, 0, 1].abs().item() - 1) < 1e-6  # radians
    found = discover(x, y, parameters=torch.full((10,), math.pi / 10), route="lconv", progress=False)
    assert alignment(found.generators, true).correlations.min() > 0.998


def test_angles():
    """Unlabelled angles at 5 percent noise, 20 x 20: the parameters are angles, to 0.05 degrees."""
    random = np.random.default_rng(1)
    angles = random.uniform(-0.5, 0.5, 20)
    x = torch.from_numpy(random.uniform(-0.5, 0.5, (20, 1, 20, 20)))
    y = torch.cat([bilinear_rotation(x[k : k + 1], angle) for k, angle in enumerate(angles)])
    y = y + 0.05 * x.std() * torch.from_numpy(random.standard_normal(y.shape))
    found = discover(x, y, num_generators=1, progress=False)
    error = np.minimum(np.abs(found.parameters[:, 0] - angles), np.abs(found.parameters[:, 0] + angles))
    assert np.degrees(np.sqrt(np.nanmean(error**2))) < 0.05


def test_one_labelled_photograph():
    """256 x 256, cubic splines, 5 percent noise: 1 - cos below 1e-4."""
    random = np.random.default_rng(2)
    (image,) = photographs(1, 256, random)
    moved = spline_warp(image, 0.3 * basis("so(2)")[0]) + 0.05 * random.standard_normal(image.shape)
    found = discover(stacked([image]), stacked([moved]), parameters=torch.tensor([0.3]), progress=False)
    assert 1 - alignment(found.generators, true_generators("so(2)"), (256, 256)).correlations[0] < 1e-4


def test_polynomial_field():
    random, family = np.random.default_rng(4), Polynomial(2, 3)
    _, points, scale = grid_points((64, 64))
    fall = 1 - 0.6 * (points**2).sum(0)
    numbers = (np.stack([points[1] * fall, -points[0] * fall]) @ np.linalg.pinv(family.basis(points))).ravel()
    pairs, labels = [], random.uniform(0.1, 0.4, 6)
    for image, t in zip(photographs(6, 64, random), labels, strict=True):
        moved = ndimage.map_coordinates(image, family.flow(t * numbers, points)[0] * scale + 31.5, order=3)
        pairs.append((image, moved.reshape(64, 64) + 0.02 * random.standard_normal((64, 64))))
    x, y = (stacked(side) for side in zip(*pairs, strict=True))
    found = discover(x, y, kind="field", degree=3, parameters=torch.from_numpy(labels), progress=False)
    true = lc.FieldGenerators(torch.from_numpy((family.field(numbers, points) * scale).reshape(1, 2, 64, 64)))
    assert alignment(found.generators, true).correlations[0] > 0.999


def test_no_symmetry():
    """Unrelated images, noise, and pairs that do not move: dimension 0, and it is said why."""
    random = np.random.default_rng(5)
    images = list(photographs(3, 32, random))
    still = [image + 0.05 * random.standard_normal(image.shape) for image in images]
    for x, y in (
        (stacked(images), stacked(images[1:] + images[:1])),
        (torch.randn(3, 1, 20, 20), torch.randn(3, 1, 20, 20)),
        (stacked(images), stacked(still)),
    ):
        found = discover(x, y, progress=False)
        assert found.dimension == 0 and found.generators is None and found.notes


def test_large_turn_of_a_photograph():
    """One labelled pair whose corners come from outside, as black: blurred, they mislead every start."""
    image = resize(data.coffee().mean(-1) / 255, (256, 256), anti_aliasing=True)
    turned = ndimage.rotate(image, 17, reshape=False, order=3)
    x, y = (torch.from_numpy(f)[None, None] for f in (image, turned))
    found = discover(x, y, parameters=torch.tensor([math.radians(17)]), progress=False)
    assert found.algebra is not None and found.algebra.name == "so(2)"
    assert alignment(found.generators, lc.AffineGenerators.named("rotation"), (256, 256)).angles[0] < 0.05


def test_fewer_pairs_than_generators_say_so():
    """One pair shows one generator, two show two of se(2): there may be more, and the result says so."""
    random = np.random.default_rng(8)
    for count in (1, 2):
        x = random.standard_normal((count, 1, 20, 20))
        move = [0.2 * basis("se(2)")[k] + 0.03 * basis("se(2)")[0] for k in (2, 1)]
        y = np.stack([spline_warp(image[0], m)[None] for image, m in zip(x, move, strict=False)])
        found = discover(torch.from_numpy(x), torch.from_numpy(y), progress=False)
        assert found.dimension == count and any("there may be others" in note for note in found.notes)


def test_free_field_unlabelled():
    """A swirl of degree 3: nobody told the degree nor the angles; 2 % noise."""
    size, rng = 32, np.random.default_rng(5)
    _, points, scale = grid_points((size, size))

    def swirl(p):
        return np.stack([-p[1], p[0]]) * (1 - 0.8 * (p**2).sum(0))

    x, y = [], []
    for t in (-0.5, -0.3, 0.4, 0.6):
        p, steps = points, 20
        for _ in range(steps):  # the midpoint rule
            p = p + t / steps * swirl(p + t / (2 * steps) * swirl(p))
        image = ndimage.gaussian_filter(rng.standard_normal((size, size)), 1.5)
        image /= image.std()
        index = p * scale + (size - 1) / 2
        moved = ndimage.map_coordinates(image, index, order=3, mode="nearest").reshape(size, size)
        x.append(image + 0.02 * rng.standard_normal((size, size)))
        y.append(moved + 0.02 * rng.standard_normal((size, size)))
    x, y = (torch.from_numpy(np.stack(v)[:, None]) for v in (x, y))
    found = discover(x, y, kind="field", progress=False)
    assert found.dimension == 1
    field, true = found.generators.field.double().numpy().ravel(), swirl(points).ravel()
    assert abs(field @ true) > 0.999 * np.linalg.norm(field) * np.linalg.norm(true)
    assert abs(np.corrcoef(found.parameters[:, 0], [-0.5, -0.3, 0.4, 0.6])[0, 1]) > 0.99
