"""Generators: dense matrices, transposes, named algebras, exact derivatives."""

import itertools
import math

import pytest
import torch
from problems import MODES, other_problems, problems, relative_rms

import lconv_fast as lc
from lconv_fast.generators import algebras, differences

EVERY = [*problems(), *other_problems()]


@pytest.mark.parametrize("problem", EVERY, ids=str)
def test_dense_and_transpose(problem):
    numbers = problem.numbers()
    generators, truth = problem.make(numbers), problem.dense(numbers)
    assert relative_rms(generators.to_dense(problem.grid), truth) < 1e-14
    assert relative_rms(generators.transpose().to_dense(problem.grid), truth.transpose(1, 2)) < 1e-14
    assert relative_rms(generators.transpose().transpose().to_dense(problem.grid), truth) < 1e-14


@pytest.mark.parametrize("problem", EVERY, ids=str)
def test_dot(problem):
    """<L f, g> = <f, L^T g>."""
    generators = problem.make(problem.numbers())
    f, g = torch.randn(2, 2, 3, *problem.grid, dtype=torch.float64)
    moved = problem.act(generators, f)
    left = moved * g[:, None]
    right = f[:, None] * problem.act(generators.transpose(), g)
    scale = moved.norm() * g.norm()
    assert (
        left.transpose(0, 1).flatten(1).sum(1) - right.transpose(0, 1).flatten(1).sum(1)
    ).abs().max() < 1e-14 * scale


@pytest.mark.parametrize("accuracy", differences.CENTRAL)
def test_differences_are_exact_on_polynomials(accuracy):
    offsets, weights = differences.central(accuracy)
    for power in range(accuracy + 1):
        derivative = math.fsum(w * o**power for o, w in zip(offsets, weights, strict=True))
        assert abs(derivative - (power == 1)) < 1e-13
    assert abs(math.fsum(w * o ** (accuracy + 1) for o, w in zip(offsets, weights, strict=True))) > 1e-3


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_number_of_generators(ndim):
    n = ndim
    counts = {
        "translation": n,
        "rotation": n * (n - 1) // 2,
        "scaling": 1,
        "se": n + n * (n - 1) // 2,
        "similitude": n + n * (n - 1) // 2 + 1,
        "sl": n * n - 1,
        "gl": n * n,
        "affine": n * n + n,
        "lorentz": n * (n - 1) // 2,
    }
    assert counts.keys() == algebras.ALGEBRAS.keys()
    for name, count in counts.items():
        if count:
            assert lc.AffineGenerators.named(name, ndim).num_generators == count
        else:
            with pytest.raises(ValueError, match=f"'{name}' has no generators on {ndim} axis"):
                lc.AffineGenerators.named(name, ndim)


@pytest.mark.parametrize(("name", "ndim"), [(n, d) for n, d in itertools.product(algebras.ALGEBRAS, (2, 3))])
def test_named_bases_are_lie_algebras(name, ndim):
    """Commutators of the fields stay in their span (eq. 5)."""
    matrix, shift = algebras.named(name, ndim)
    count = matrix.shape[0]
    homogeneous = torch.zeros(count, ndim + 1, ndim + 1, dtype=torch.float64)
    homogeneous[:, :ndim, :ndim], homogeneous[:, :ndim, ndim] = matrix, shift
    flat = homogeneous.flatten(1)
    assert torch.linalg.matrix_rank(flat) == count
    for a, b in itertools.combinations(homogeneous, 2):
        commutator = (a @ b - b @ a).flatten()
        solution = torch.linalg.lstsq(flat.T, commutator[:, None]).solution
        assert (flat.T @ solution - commutator[:, None]).norm() < 1e-12


@pytest.mark.parametrize("accuracy", differences.CENTRAL)
def test_rotation_in_pixels_is_the_derivative_of_turning(accuracy):
    """With coordinate_scale=1, L f = x^0 d_1 f - x^1 d_0 f, exact on quadratic images away from the border."""
    generators = lc.AffineGenerators.named("rotation", accuracy=accuracy, coordinate_scale=1.0)
    generators = generators.double()
    y, x = torch.meshgrid(torch.arange(21) - 10.0, torch.arange(17) - 8.0, indexing="ij")
    y, x = y.double(), x.double()
    f = 2 * x * x - 3 * x * y + y * y + x - 4
    expected = y * (4 * x - 3 * y + 1) - x * (-3 * x + 2 * y)
    inner = (slice(4, -4), slice(4, -4))
    assert relative_rms(generators(f[None, None])[0, 0, 0][inner], expected[inner]) < 1e-12


def test_default_scale_does_not_depend_on_the_size():
    generators = lc.AffineGenerators.named("scaling").double()
    for size in (9, 33, 129):
        x = torch.arange(size, dtype=torch.float64)[None, None, None].expand(1, 1, size, size)
        assert abs(generators(x)[0, 0, 0, size // 2, -2] - (size - 3) / (size - 1)) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_mean_square_is_the_variance_of_white_noise(mode):
    for generators, grid in [
        (lc.AffineGenerators.named("affine", padding_mode="circular"), (96, 96)),
        (lc.FieldGenerators(torch.randn(2, 2, 40, 30), accuracy=4, padding_mode=mode), (40, 30)),
        (lc.StencilGenerators(torch.randn(3, 3), [[0, 0], [1, 1], [0, -2]], padding_mode="circular"), (64, 64)),
    ]:
        noise = torch.randn(64, 1, *grid)
        measured = generators(noise).square().mean((0, 2, 3, 4))
        assert ((measured / generators.mean_square()) - 1).abs().max() < 0.12  # sampling noise and borders


def test_dense_generators_are_the_layer_of_eq_17():
    matrix = torch.randn(2, 12, 12, dtype=torch.float64)
    generators = lc.DenseGenerators(matrix, learnable=True)
    f = torch.randn(3, 4, 3, 4, dtype=torch.float64)
    expected = torch.einsum("ixy,ncy->nicx", matrix, f.flatten(2)).reshape(3, 2, 4, 3, 4)
    assert relative_rms(generators(f), expected) < 1e-14
    assert torch.equal(generators.transpose().to_dense((3, 4)), matrix.transpose(1, 2))
    weight = torch.randn(3, 6, 2, dtype=torch.float64)
    sparse = lc.StencilGenerators(torch.randn(2, 3, 3, 4, dtype=torch.float64), [[0, 1], [1, 0], [-1, -1]])
    dense = lc.DenseGenerators(sparse.to_dense((3, 4)))
    for stride in (1, 2):
        a = lc.functional.lconv(f, weight, sparse, stride=stride, groups=2)
        b = lc.functional.lconv(f, weight, dense, stride=stride, groups=2)
        assert relative_rms(a, b) < 1e-13


def test_transpose_shares_parameters():
    generators = lc.AffineGenerators.named("affine", learnable=True)
    turned = generators.transpose()
    assert turned.matrix is generators.matrix and isinstance(turned, lc.AffineGenerators)
    turned.double()
    assert list(turned.state_dict()) == ["matrix", "shift"]


@pytest.mark.parametrize("problem", [p for p in EVERY if p.ndim == 2 or p.mode == "none"], ids=str)
def test_without_channels(problem):
    """y is the bias, and all gradients but the bias's are 0."""
    generators = problem.make(problem.numbers(), learnable=True)
    for g in (generators, generators.transpose()):
        for ins, outs in ((0, 3), (3, 0), (0, 0)):
            x = torch.randn(2, ins, *problem.grid, dtype=torch.float64, requires_grad=True)
            w = torch.randn(problem.count + 1, outs, ins, dtype=torch.float64, requires_grad=True)
            b = torch.randn(outs, dtype=torch.float64)
            y = problem.layer(x, w, g, b)
            assert y.shape == (2, outs, *problem.grid) and (y == b.reshape(1, -1, *[1] * problem.ndim)).all()
            gradients = torch.autograd.grad(y.sum(), [x, w, *g.parameters()])
            assert all(t.count_nonzero() == 0 for t in gradients)


@pytest.mark.parametrize(
    "problem", [p for p in EVERY if p.ndim < 3 and p.mode in ("none", "circular", "zeros")], ids=str
)
def test_autocast_rounds_nothing_in_between(problem):
    """Sums stay in float32: the bits of a call on rounded arguments."""
    generators = problem.make(problem.numbers(torch.float32))
    f, w = torch.randn(2, 4, *problem.grid).bfloat16(), torch.randn(problem.count + 1, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, moved = problem.layer(f, w, generators), problem.act(generators, f)
    assert torch.equal(found, problem.layer(f, w, generators)) and torch.equal(moved, problem.act(generators, f))
