"""Pairs with known symmetries: groups, photographs, warps."""

import math

import numpy as np
import torch
from scipy import ndimage
from scipy.linalg import expm
from skimage import data
from skimage.transform import resize
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.discovery.algebra import _catalogue
from lconv_fast.discovery.fields import grid_points

GROUPS = {
    "so(2)": "rotation",
    "translations T2": "translation",
    "se(2)": "se",
    "sim(2)": "similitude",
    "sl(2)": "sl",
    "aff(2)": "affine",
    "so(2) x R+": None,
}


def basis(group):
    """(n_L, 2, 3)."""
    if GROUPS[group] is None:
        return np.concatenate([_catalogue()[group]()])
    matrix, shift = lc.generators.algebras.named(GROUPS[group], 2)
    return torch.cat([matrix, shift[..., None]], 2).double().numpy()


def photographs(count, size, random):
    sources = [data.camera(), data.astronaut().mean(-1), data.coffee().mean(-1), data.chelsea().mean(-1)]
    for k in range(count):
        source = sources[k % len(sources)].astype(float)
        row, column = (random.integers(0, extent - 250) for extent in source.shape)
        image = resize(source[row : row + 250, column : column + 250], (size, size), anti_aliasing=True)
        yield (image - image.mean()) / image.std()


def spline_warp(image, matrix):
    """image o exp(matrix), in centred coordinates, by cubic splines."""
    _, points, scale = grid_points(image.shape)
    generator = np.zeros((len(matrix) + 1,) * 2)
    generator[:-1] = matrix
    moved = (expm(generator) @ np.concatenate([points, np.ones((1, points.shape[1]))]))[:-1]
    center = (np.array(image.shape)[:, None] - 1) / 2
    return ndimage.map_coordinates(image, moved * scale + center, order=3, mode="constant").reshape(image.shape)


def bilinear_rotation(images, angle):
    """As the paper makes its pairs."""
    theta = [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0]]
    theta = torch.tensor(theta, dtype=images.dtype).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def stacked(arrays):
    return torch.from_numpy(np.stack(arrays))[:, None]


def true_generators(group):
    numbers = torch.from_numpy(basis(group))
    return lc.AffineGenerators(numbers[..., :2].clone(), numbers[..., 2].clone())


def natural_patches(count, size, random):
    sources = [data.camera().astype(float), data.astronaut().mean(-1), data.coffee().mean(-1), data.chelsea().mean(-1)]
    patches = []
    for k in range(count):
        source = sources[k % len(sources)]
        row, column = (random.integers(0, extent - size) for extent in source.shape)
        patches.append(source[row : row + size, column : column + size])
    return np.stack(patches)


def grid_edges(height, width):
    index = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(
        [
            np.stack([index[1:].ravel(), index[:-1].ravel()], 1),
            np.stack([index[:, 1:].ravel(), index[:, :-1].ravel()], 1),
        ]
    )
    return {tuple(sorted(pair)) for pair in pairs.tolist()}
