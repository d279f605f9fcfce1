"""Structure constants and names."""

import numpy as np
import pytest
import torch

import lconv_fast as lc
from lconv_fast.discovery import identify
from lconv_fast.discovery.algebra import _catalogue
from lconv_fast.discovery.fields import Affine, fields_of, grid_points


@pytest.mark.parametrize("name", _catalogue())
def test_names_do_not_depend_on_basis_or_coordinates(name):
    random, numbers = np.random.default_rng(0), _catalogue()[name]()
    count, n = numbers.shape[:2]
    family = Affine(n)
    change = np.eye(n + 1)
    change[:n] += 0.15 * random.standard_normal((n, n + 1))
    fields = change @ family.homogeneous(numbers.reshape(count, -1)) @ np.linalg.inv(change)
    mixed = np.einsum("ij,jab->iab", np.eye(count) + 0.3 * random.standard_normal((count, count)), fields)
    matrix, shift = torch.from_numpy(mixed[:, :n, :n].copy()), torch.from_numpy(mixed[:, :n, n].copy())
    found = identify(lc.AffineGenerators(matrix, shift))
    assert found.name == name and found.closure < 1e-9


def test_structure_constants():
    """of so(3): [L_i, L_j] = +-eps_ijk L_k; brackets of the operators themselves on smooth functions agree."""
    generators = lc.AffineGenerators.named(
        "rotation", 3, accuracy=8, coordinate_scale=1.0, padding_mode="replicate"
    ).double()
    found = identify(generators)
    assert found.signature == (0, 3, 0) and found.levi == 3 and not found.abelian
    assert np.allclose(np.abs(found.structure_constants).sum(), 6)
    _, points, _ = grid_points((24, 24, 24))
    f = torch.from_numpy(
        np.exp(-8 * ((points - np.array([[0.2], [0.1], [0.0]])) ** 2).sum(0)).reshape(1, 1, 24, 24, 24)
    )
    first = generators(f)[:, :, 0]  # (1, 3, ...)
    second = generators(first)  # (1, i, j, ...): L_i L_j f
    brackets = second - second.transpose(1, 2)
    expected = torch.einsum("ijk,nk...->nij...", torch.from_numpy(found.structure_constants), first)
    assert (brackets - expected).norm() / expected.norm() < 1e-2


def test_not_closed_is_unknown():
    matrix = torch.zeros(2, 2, 2)
    shift = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    matrix[1] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # a translation and a rotation make the other translation
    found = identify(lc.AffineGenerators(matrix, shift))
    assert found.name == "unknown" and found.closure > 0.5


@pytest.mark.parametrize("centre", [0.0, 30.0, 60.0, 110.0])
def test_a_turn_about_any_pixel_is_a_rotation(centre):
    """In pixels, the shift of such a field is far larger than its matrix: what is small is judged on the grid."""
    matrix = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    shift = -(matrix @ torch.tensor([centre, centre / 2]))
    generators = lc.AffineGenerators(matrix, shift, coordinate_scale=1.0)
    assert identify(generators, (256, 256)).name == "so(2)"
    with pytest.raises(ValueError, match="spatial_shape: expected 2 axes"):
        identify(generators, (256,))


def test_the_field_of_affine_generators_is_that_of_the_operators():
    """v^a(x) by its formula, and as L applied to the coordinate a, which central differences take exactly."""
    generators = lc.AffineGenerators.named("affine", padding_mode="replicate", coordinate_scale=3.0).double()
    index, _, _ = grid_points((7, 9))
    coordinates = torch.from_numpy(index.reshape(1, 2, 7, 9))
    inner = (..., slice(1, -1), slice(1, -1))
    applied = generators(coordinates)[0][inner]
    field = torch.from_numpy(fields_of(generators, (7, 9)).reshape(6, 2, 7, 9))[inner]
    assert torch.allclose(applied, field, atol=1e-12)
