"""Images whose pixels come in an unknown order: their grid and neighbour graph from the statistics of the data.

Natural images are alike at neighbouring pixels (section 4 of Dehmamy et al. 2021: topology is a prior that data hold).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor

from lconv_fast.checks import check_float, check_strided, check_tensor, extents
from lconv_fast.discovery.fields import Array, Polynomial
from lconv_fast.generators import FieldGenerators, GraphGenerators

WORST = 0.16  # mean square distance in pixels between a pixel's place and the grid's: above it, some are mixed up


@dataclass
class Unscrambled:
    edges: Array  # (E, 2), a < b: pixels that are neighbours
    order: Array  # (height * width,): the pixel that belongs at each place of the grid, up to the grid's own symmetries
    shape: tuple[int, int]
    misfit: float  # mean square distance in pixels between where a pixel seems to be and its place

    def images(self, scrambled: Tensor) -> Tensor:
        """(P, C, d) to (P, C, height, width)."""
        check_tensor("scrambled", scrambled)
        if scrambled.dim() == 0 or scrambled.shape[-1] != len(self.order):
            raise ValueError(f"scrambled: expected (..., {len(self.order)}), got {tuple(scrambled.shape)}")
        check_strided("scrambled", scrambled)
        return scrambled[..., self.order.tolist()].reshape(*scrambled.shape[:-1], *self.shape)


def _distances(images: Tensor) -> Array:
    """The mean square difference of each two pixels: the same all over the image, and on natural images it grows about
    like the distance. Images of high contrast do not outvote the others."""
    check_float("images", images, (2, 3), "(P, d) or (P, C, d)")
    data = images.detach().cpu().double().numpy()
    data = data.reshape(-1, data.shape[-1])
    count, pixels = data.shape
    if count < 2 * pixels**0.5:
        raise ValueError(f"images: expected {int(2 * pixels**0.5) + 1} or more for {pixels} pixels, got {count}")
    spread = data.std(1, keepdims=True)
    data = (data / np.where(spread > 0, spread, 1.0))[spread[:, 0] > 0]
    if len(data) == 0 or (data.std(0) == 0).any():
        raise ValueError("images: expected pixels that vary over the images")
    squares = (data**2).mean(0)
    return np.maximum(squares[:, None] + squares - 2 * (data.T @ data) / len(data), 0)


def likest(images: Tensor, near: int) -> Tensor:
    """(2, d * near): each pixel as a target, and as sources the `near` others that are most like it in the images."""
    lengths = _distances(images)
    np.fill_diagonal(lengths, np.inf)
    closest = np.argsort(lengths, axis=1)[:, : min(near, len(lengths) - 1)]
    targets = np.repeat(np.arange(len(lengths)), closest.shape[1])
    return torch.from_numpy(np.stack([closest.ravel(), targets]))


def field_on(generators: GraphGenerators, unscrambled: Unscrambled) -> FieldGenerators:
    """The field of generators on scrambled pixels: v_i(mu) = sum_e w[i, e] (place(nu) - place(mu)), the first
    moments of each node's edges."""
    if not isinstance(generators, GraphGenerators):
        raise TypeError(f"generators: expected GraphGenerators, got {type(generators).__name__}")
    if not isinstance(unscrambled, Unscrambled):
        raise TypeError(f"unscrambled: expected what `unscramble` returns, got {type(unscrambled).__name__}")
    height, width = unscrambled.shape
    if generators.num_nodes != height * width:
        raise ValueError(f"generators: expected {height * width} nodes as unscrambled, got {generators.num_nodes}")
    place = np.empty((height * width, 2))
    place[unscrambled.order] = np.stack(np.divmod(np.arange(height * width), width), 1)
    source, target = generators.edge_index.cpu().numpy()
    moved = place[source] - place[target]
    field = np.zeros((generators.num_generators, 2, height * width))
    for i, weight in enumerate(generators.edge_weight.detach().double().cpu().numpy()):
        for axis in range(2):
            field[i, axis] = np.bincount(target, weight * moved[:, axis], height * width)[unscrambled.order]
    return FieldGenerators(torch.from_numpy(field.reshape(-1, 2, height, width)).float())


def _embedded(distances: Array, near: int = 8) -> Array:
    """Places in the plane (d, 2) by Isomap: shortest paths over the `near` closest pixels, then classical scaling."""
    pixels = len(distances)
    lengths = distances.copy()
    np.fill_diagonal(lengths, np.inf)
    closest = np.argsort(lengths, axis=1)[:, :near]
    rows = np.repeat(np.arange(pixels), near)
    graph = csr_matrix((lengths[rows, closest.ravel()], (rows, closest.ravel())), shape=(pixels, pixels))
    paths = shortest_path(graph, directed=False)
    if not np.isfinite(paths).all():
        raise ValueError("images: the pixels fall into separate groups: more images are needed, or they are no grid")
    centering = np.eye(pixels) - 1 / pixels
    values, vectors = np.linalg.eigh(-0.5 * centering @ paths**2 @ centering)
    return vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))


def unscramble(images: Tensor, shape: tuple[int, int]) -> Unscrambled:
    """The grid of a given shape on which images (P, d) or (P, C, d) are smooth, and with it the 4-neighbour graph.

    Pixels are embedded in the plane by how alike they are, turned so that they fill a rectangle, and assigned to the
    grid's places at the smallest total distance, which is repeated with the cubic map that the assignment suggests.
    What comes out is up to the grid's own symmetries: no statistics tell a picture from its mirror image.

    Raises ValueError for too few images, constant pixels, and images whose pixels do not fit such a grid.
    """
    check_float("images", images, (2, 3), "(P, d) or (P, C, d)")
    height, width = extents("shape", shape, 2)
    pixels = images.shape[-1]
    if pixels != height * width:
        raise ValueError(f"shape: expected {pixels} pixels, got {height} x {width}")
    places = _embedded(_distances(images))
    lattice = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).reshape(2, -1).T.astype(float)
    lattice -= lattice.mean(0)
    scaled = places / np.abs(places).max()
    best = None
    for angle in np.radians(np.arange(0, 180, 7.5)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = places @ turn.T
        # Uniform on a rectangle: the spread along each side.
        moved = turned / turned.std(0) * lattice.std(0)
        for degree in (1, 1, 1, 3, 3, 3, 3):
            owner = linear_sum_assignment(cdist(lattice, moved, "sqeuclidean"))[1]
            basis = Polynomial(2, degree).basis(scaled.T).T
            moved = basis @ np.linalg.lstsq(basis[owner], lattice, rcond=None)[0]
        cost = float(((lattice - moved[owner]) ** 2).sum(1).mean())
        if best is None or cost < best[0]:
            best = cost, owner
    assert best is not None
    if best[0] > WORST:
        raise ValueError(
            f"images: their pixels do not fit a grid of {height} x {width}, off by {best[0] ** 0.5:.1f} pixels: "
            "more images are needed, or ones that are smooth on such a grid"
        )
    grid = best[1].reshape(shape)
    pairs = [
        np.stack([grid[1:].ravel(), grid[:-1].ravel()], 1),
        np.stack([grid[:, 1:].ravel(), grid[:, :-1].ravel()], 1),
    ]
    return Unscrambled(np.sort(np.concatenate(pairs), 1), best[1], shape, best[0])
