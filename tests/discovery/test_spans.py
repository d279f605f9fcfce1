"""Centralizers and closed algebras near a span."""

import pytest
import torch

import lconv_fast as lc
from lconv_fast.discovery import alignment, centralizer, closed, identify


@pytest.mark.parametrize(
    ("of", "expected"), [("rotation", "so(2) x R+"), ("translation", "translations T2"), ("scaling", "gl(2)")]
)
def test_centralizer(of, expected):
    generators = lc.AffineGenerators.named(of)
    fields = centralizer(generators, (24, 18))
    assert identify(fields).name == expected
    # [L, w] = 0 as operators: on a polynomial of degree 1, differences are exact.
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(18.0), indexing="ij"))
    f = (0.3 * grid[0] - 0.7 * grid[1])[None, None]
    there = torch.stack([fields(v) for v in generators(f).unbind(1)], 1)
    back = torch.stack([generators(v) for v in fields(f).unbind(1)], 2)
    assert (there - back)[..., 3:-3, 3:-3].abs().max() < 1e-3 * there.abs().max()
    if of == "rotation":
        with pytest.raises(ValueError, match="no affine field commutes"):
            centralizer(lc.AffineGenerators.named("se"), (24, 18))


@pytest.mark.parametrize("name", ["se", "sl", "similitude"])
def test_nearest_closed_algebra(name):
    """From a span that does not close, to one that does, is as near, and has the true one's name."""
    true = lc.AffineGenerators.named(name)
    torch.manual_seed(3)
    noise = 0.03 * torch.randn_like(true.matrix), 0.03 * torch.randn_like(true.shift)
    noisy = lc.AffineGenerators(true.matrix + noise[0], true.shift + noise[1])
    found = closed(noisy, (20, 20), true.num_generators)
    assert identify(noisy).closure > 1e-2 and identify(found).closure < 1e-6
    assert identify(found).name == identify(true).name
    assert alignment(found, noisy, (20, 20)).angles.max() < alignment(true, noisy, (20, 20)).angles.max()
    with pytest.raises(ValueError, match="dimension: expected 1 to"):
        closed(noisy, (20, 20), 9)


def test_generated_algebra():
    """A rotation and one translation generate se(2)."""
    matrix, shift = torch.zeros(2, 2, 2), torch.zeros(2, 2)
    matrix[0], shift[1, 0] = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), 1.0
    two = lc.AffineGenerators(matrix, shift)
    assert identify(two).name == "unknown" and identify(closed(two, (20, 20))).name == "se(2)"
