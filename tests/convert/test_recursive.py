"""RecursiveLConv and flow against the exponential of dense generators; the strided and the max variant."""

import itertools

import pytest
import torch
from problems import Problem, relative_rms

import lconv_fast as lc

GRID = (6, 7)
T = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


def se(**keywords):
    return lc.AffineGenerators.named("se", 2, coordinate_scale=4.0, **keywords).double()


def exponential(generators, t, x):
    spatial = x.shape[2:]
    moved = torch.matrix_exp(torch.einsum("i,ixy->xy", t, generators.to_dense(spatial)))
    return torch.einsum("xy,ncy->ncx", moved, x.flatten(2)).reshape(x.shape)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_error_falls_as_steps_to_the_order(order):
    generators, x = se(), torch.randn(2, 3, *GRID, dtype=torch.float64)
    truth = exponential(generators, T, x)
    errors = [relative_rms(lc.RecursiveLConv(generators, p, T, order=order)(x), truth) for p in (16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        assert abs(coarse / fine / 2**order - 1) < 0.02


@pytest.mark.parametrize("kind", ["affine", "field", "stencil", "constant"])
def test_every_kind(kind):
    problem = Problem(kind, 2, "replicate")
    generators, t = problem.make(problem.numbers()), torch.tensor([0.1, -0.05], dtype=torch.float64)
    x = torch.randn(2, 3, *problem.grid, dtype=torch.float64)
    for g in (generators, generators.transpose(), lc.DenseGenerators(generators.to_dense(problem.grid))):
        assert relative_rms(lc.flow(x, g, t, 64, order=6), exponential(g, t, x)) < 1e-9


def test_power_of_one_step():
    """(I + (t / p) L)^p, by dense matrices."""
    generators, x = se(), torch.randn(1, 1, *GRID, dtype=torch.float64)
    step = torch.eye(42, dtype=torch.float64) + torch.einsum("i,ixy->xy", T, generators.to_dense(GRID)) / 5
    wanted = (torch.linalg.matrix_power(step, 5) @ x.flatten()).reshape(x.shape)
    assert relative_rms(lc.RecursiveLConv(generators, 5, T)(x), wanted) < 1e-13


def test_rotation_turns():
    """A quarter turn of a smooth image, with coordinates in pixels."""
    axis = torch.arange(24, dtype=torch.float64) - 11.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.exp(-(((x - 3) / 4) ** 2) - (y / 3) ** 2)[None, None]
    generators = lc.AffineGenerators.named("rotation", 2, coordinate_scale=1.0, accuracy=8).double()
    turned = lc.flow(image, generators, torch.pi / 2, 64)
    # The generator is y d_x - x d_y in (row, column) coordinates: which of the two turns is a matter of axes.
    assert min(relative_rms(turned, image.rot90(k, (2, 3))) for k in (1, 3)) < 3e-3


def test_gradients():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 2, 2, dtype=torch.float64)
    t = torch.randn(2, dtype=torch.float64, requires_grad=True)
    generators = lc.AffineGenerators(matrix, torch.randn(2, 2, dtype=torch.float64), learnable=True)

    def moved(x, t, matrix, shift):
        return torch.func.functional_call(
            lc.RecursiveLConv(generators, 2, order=2), {"generators.matrix": matrix, "generators.shift": shift}, (x, t)
        )

    assert torch.autograd.gradcheck(moved, (x, t, generators.matrix, generators.shift))
    each = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    batch = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: lc.flow(batch, generators, t, 2), (each,))


def test_an_element_for_each_example():
    generators, x = se(), torch.randn(3, 2, *GRID, dtype=torch.float64)
    t = torch.randn(3, 3, dtype=torch.float64) / 4
    wanted = torch.stack([lc.flow(f, generators, s, 3) for f, s in zip(x, t, strict=True)])
    assert relative_rms(lc.flow(x, generators, t, 3), wanted) < 1e-13


def test_graphs():
    edges, x = torch.randint(0, 6, (2, 12)), torch.randn(2, 6, 3, dtype=torch.float64)
    generators = lc.GraphGenerators(edges, torch.randn(2, 12, dtype=torch.float64) / 4, 6)
    t = torch.tensor([0.4, -0.3], dtype=torch.float64)
    moved = torch.matrix_exp(torch.einsum("i,ixy->xy", t, generators.to_dense((6,))))
    assert relative_rms(lc.flow(x, generators, t, 16), torch.einsum("xy,nyc->nxc", moved, x)) < 1e-7


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.zeros(1, 1, 4, 4), "se", 0.1, 2), TypeError, "generators"),
        ((torch.zeros(4, 4), se().float(), 0.1, 2), ValueError, "x: expected shape"),
        ((torch.zeros(1, 1, 4, 4), se().float(), torch.zeros(2), 2), ValueError, r"t: expected shape \(\), \(3,\)"),
        ((torch.zeros(1, 1, 4, 4), se().float(), torch.zeros(3).double(), 2), TypeError, "t: expected dtype"),
        ((torch.zeros(1, 1, 4, 4), se().float(), 0.1, 0), ValueError, "steps"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        lc.flow(*arguments)


def test_derivative_layer():
    generators, x = se(), torch.randn(2, 4, *GRID, dtype=torch.float64)
    layer = lc.DerivativeLConv(4, 6, generators, stride=(2, 3), groups=2)
    moved = generators(x)[..., ::2, ::3].unflatten(2, (2, 2))
    wanted = torch.einsum("nigcyx,igoc->ngoyx", moved, layer.weight.unflatten(1, (2, 3))).flatten(1, 2)
    assert relative_rms(layer(x), wanted) < 1e-13
    noise = torch.randn(64, 16, 31, 31)
    assert abs(lc.DerivativeLConv(16, 64, lc.AffineGenerators.named("affine"))(noise).var().item() - 1) < 0.15


def test_max_layer():
    generators, f = se(), torch.randn(2, 4, *GRID, dtype=torch.float64)
    dense = generators.to_dense(GRID)
    products = torch.einsum("ixy,jyz,ncz->nijcx", dense, dense, f.flatten(2))
    assert relative_rms(lc.MaxLConv(generators)(f), products.amax(2).sum(1).reshape(f.shape)) < 1e-13
