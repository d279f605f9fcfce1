"""Second derivatives, the named bases made of them, and products of affine generators."""

import itertools
import math

import pytest
import torch
from problems import MODES, relative_rms

import lconv_fast as lc
from lconv_fast.generators import algebras, differences, named
from lconv_fast.generators.differential import first_and_second

ACCURACIES = list(differences.CENTRAL)


def monomials(shape, degree):
    """(name, f, first derivatives, second derivatives) of x^alpha with |alpha| <= degree, on centred pixels."""
    axes = [torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in shape]
    x = torch.meshgrid(*axes, indexing="ij")

    def power(alpha):
        if min(alpha) < 0:
            return torch.zeros(shape, dtype=torch.float64)
        return math.prod(axis**p for axis, p in zip(x, alpha, strict=True))

    def derivative(alpha, *along):
        factor = 1
        for a in along:
            factor, alpha = factor * alpha[a], tuple(p - (b == a) for b, p in enumerate(alpha))
        return factor * power(alpha)

    n = len(shape)
    for alpha in itertools.product(range(degree + 1), repeat=n):
        if sum(alpha) <= degree:
            first = [derivative(alpha, a) for a in range(n)]
            second = {(a, b): derivative(alpha, a, b) for a in range(n) for b in range(n)}
            yield alpha, power(alpha), first, second


def inside(t, reach):
    return t[(..., *[slice(reach, -reach)] * 2)] if reach else t


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("order", [1, 2])
def test_tables_against_sympy(order, accuracy):
    """Weights of Fornberg's algorithm, in rational arithmetic."""
    sympy = pytest.importorskip("sympy", reason="compared with sympy, where that is installed")
    offsets, weights = differences.derivative(order, accuracy)
    points = list(range(-(accuracy // 2), accuracy // 2 + 1))
    exact = dict(zip(points, sympy.finite_diff_weights(order, points, 0)[order][-1], strict=True))
    ours = dict(zip(offsets, weights, strict=True))
    assert all(abs(float(exact[k]) - ours.get(k, 0.0)) < 1e-15 for k in points)


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_second_differences_are_exact_on_polynomials(accuracy):
    offsets, weights = differences.derivative(2, accuracy)
    for power in range(accuracy + 3):
        found = math.fsum(w * o**power for o, w in zip(offsets, weights, strict=True))
        assert (abs(found - 2 * (power == 2)) < 1e-12) == (power < accuracy + 2)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_number_of_generators(ndim):
    assert named("laplacian", ndim).num_generators == ndim + 1
    assert named("second", ndim).num_generators == ndim + ndim * (ndim + 1) // 2
    for name in algebras.ALGEBRAS:
        if algebras.ALGEBRAS[name](ndim):
            assert isinstance(named(name, ndim), lc.AffineGenerators)


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_named_bases_are_derivatives(accuracy):
    """Exact on polynomials of degree `accuracy`, away from the border."""
    shape, reach = (13, 12), accuracy // 2
    second_basis = named("second", 2, accuracy=accuracy).double()
    laplacian = named("laplacian", 2, accuracy=accuracy).double()
    for _, f, first, second in monomials(shape, accuracy):
        scale = f.abs().max()
        found = inside(second_basis(f[None, None])[0, :, 0], reach)
        expected = torch.stack([*first, second[0, 0], second[0, 1], second[1, 1]])
        assert (found - inside(expected, reach)).abs().max() < 1e-12 * scale
        found = inside(laplacian(f[None, None])[0, :, 0], reach)
        expected = torch.stack([*first, second[0, 0] + second[1, 1]])
        assert (found - inside(expected, reach)).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["laplacian", "second"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_in_a_layer(name, ndim, mode):
    layer = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}[ndim]
    layer = layer(3, 4, name, padding_mode=mode, learnable=True, dtype=torch.float64)
    x = torch.randn(2, 3, *(7, 6, 5)[:ndim], dtype=torch.float64)
    matrices = layer.generators.to_dense(x.shape[2:])
    expected = torch.einsum("oc,ncx->nox", layer.weight[0], x.flatten(2))
    expected = expected + torch.einsum("ioc,ixy,ncy->nox", layer.weight[1:], matrices, x.flatten(2))
    assert relative_rms(layer(x), expected.reshape(2, 4, *x.shape[2:])) < 1e-13
    turned = layer.generators.transpose().to_dense(x.shape[2:])
    assert relative_rms(turned, matrices.transpose(1, 2)) < 1e-14
    layer(x).square().sum().backward()
    assert layer.generators.weights.grad.abs().max() > 0


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("name", ["laplacian", "second"])
def test_taps_of_their_own_or_shared_differences(name, accuracy, monkeypatch):
    """Constant coefficients are given to the taps where that is cheaper: the same operators, and gradients."""
    ours = named(name, 2, accuracy=accuracy, learnable=True).double()
    monkeypatch.setattr(lc.DifferentialGenerators, "_merge_taps", lambda self: None)
    other = named(name, 2, accuracy=accuracy, learnable=True).double()
    assert other.coefficients() is other.weights
    f = torch.randn(2, 3, 11, 12, dtype=torch.float64)
    assert relative_rms(ours(f), other(f)) < 1e-14
    assert torch.allclose(ours.mean_square(), other.mean_square())
    a, b = (torch.autograd.grad(g(f).tanh().sum(), g.weights)[0] for g in (ours, other))
    assert relative_rms(a, b) < 1e-13


def test_variance_is_kept():
    for name, shape in (("laplacian", (64, 64)), ("second", (64, 64)), ("second", (24, 24, 24))):
        variances = []
        for _ in range(5):
            layer = (lc.LConv2d if len(shape) == 2 else lc.LConv3d)(16, 16, name, padding_mode="circular")
            variances.append(layer(torch.randn(1, 16, *shape)).var().item())
        assert 0.85 < sum(variances) / 5 < 1.15


def test_laplacian_commutes_with_quarter_turns():
    """The Casimir of the translations in SE(2); d_0 does not."""
    generators = named("laplacian", 2).double()
    f = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    turned = generators(f.rot90(1, (2, 3)))
    assert relative_rms(turned[:, 2], generators(f)[:, 2].rot90(1, (2, 3))) < 1e-14
    assert relative_rms(turned[:, 0], generators(f)[:, 0].rot90(1, (2, 3))) > 0.1


def product_truth(generators, f, first, second, shape, i, j):
    """L_i L_j f = v_i^a v_j^b d_a d_b f + v_i^a (d_a v_j^b) d_b f, derivatives given."""
    n, v = generators.ndim, generators.sample(shape)
    slope = generators.matrix[j] / ((max(shape) - 1) / 2)
    total = torch.zeros(shape, dtype=torch.float64)
    for a, b in itertools.product(range(n), range(n)):
        total = total + v[i, a] * v[j, b] * second[a, b] + v[i, a] * slope[b, a] * first[b]
    return total


@pytest.mark.parametrize("accuracy", [2, 4])
def test_products_are_exact_on_polynomials_and_agree_with_products_of_matrices(accuracy):
    shape = (15, 14)
    generators = lc.AffineGenerators.named("affine", 2, accuracy=accuracy).double()
    pairs = [(0, 0), (0, 1), (1, 2), (2, 1), (4, 0), (5, 3), (4, 5), (1,)]
    plain = lc.ProductGenerators(generators, pairs, symmetrised=False, spatial=shape)
    halves = lc.ProductGenerators(generators, pairs, spatial=shape)
    dense = generators.to_dense(shape)
    for _, f, first, second in monomials(shape, accuracy):
        scale = f.abs().max() * 10
        found, mean = (inside(g(f[None, None])[0, :, 0], accuracy) for g in (plain, halves))
        for k, pair in enumerate(pairs):
            if len(pair) == 1:
                expected = (dense[pair[0]] @ f.flatten()).reshape(shape)
                symmetric = composed = expected
            else:
                i, j = pair
                expected = product_truth(generators, f, first, second, shape, i, j)
                symmetric = (expected + product_truth(generators, f, first, second, shape, j, i)) / 2
                composed = (dense[i] @ dense[j] @ f.flatten()).reshape(shape)
            assert (found[k] - inside(expected, accuracy)).abs().max() < 1e-12 * scale, pair
            assert (mean[k] - inside(symmetric, accuracy)).abs().max() < 1e-12 * scale, pair
            assert (found[k] - inside(composed, accuracy)).abs().max() < 1e-12 * scale, pair


def test_products_of_matrices_differ_by_the_order_of_the_scheme():
    """On a wave, matrix product and product generator approach each other as h^2 and h^4."""
    for accuracy in (2, 4):
        errors = []
        for size in (16, 32, 64):
            generators = lc.AffineGenerators.named("affine", 2, accuracy=accuracy).double()
            shape = (size + 1, size + 1)
            x = torch.linspace(-1, 1, size + 1, dtype=torch.float64)
            f = (2 * x[:, None] + x).sin()
            product = lc.ProductGenerators(generators, [(0, 1), (1, 4)], symmetrised=False, spatial=shape)
            found = inside(product(f[None, None])[0, :, 0], accuracy)
            dense = generators(generators(f[None, None])[:, [1, 4], 0])  # L_i L_j f for all i: (1, i, j, ...)
            expected = inside(torch.stack([dense[0, 0, 0], dense[0, 1, 1]]), accuracy)
            errors.append(relative_rms(found, expected))
        rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert all(abs(rate - accuracy) < 0.4 for rate in rates), rates


@pytest.mark.parametrize("name", ["se", "sl", "affine", "similitude"])
def test_commutators_close(name):
    """[L_i, L_j] = c_ij^k L_k, of eq. (5): the second-order parts cancel, so that it holds to rounding, at the border
    too; with products of matrices it holds to the order of the differences alone."""
    shape, generators = (9, 10), lc.AffineGenerators.named(name, 2).double()
    count, scale = generators.num_generators, (max(shape) - 1) / 2
    h = torch.zeros(count, 3, 3, dtype=torch.float64)
    h[:, :2, :2], h[:, :2, 2] = generators.matrix / scale, generators.shift
    pairs = list(itertools.permutations(range(count), 2))
    dense = lc.ProductGenerators(generators, pairs, symmetrised=False, spatial=shape).to_dense(shape)
    dense = dict(zip(pairs, dense, strict=True))
    basis = generators.to_dense(shape)
    for i, j in itertools.combinations(range(count), 2):
        # Fields compose the other way round than matrices: [v_i, v_j] = (A_j A_i - A_i A_j) x.
        bracket = h[j] @ h[i] - h[i] @ h[j]
        c = torch.linalg.lstsq(h.flatten(1).T, bracket.flatten()[:, None]).solution[:, 0]
        expected = torch.einsum("k,kxy->xy", c, basis)
        assert (dense[i, j] - dense[j, i] - expected).abs().max() < 1e-13


def test_products_of_translations_are_constant():
    """They are the basis "second", on any grid; n_L numbers, with gradients to the shift."""
    generators = lc.AffineGenerators.named("translation", 2, accuracy=4, padding_mode="reflect").double()
    product = lc.ProductGenerators(generators, [(0,), (1,), (0, 0), (0, 1), (1, 1)])
    second = named("second", 2, accuracy=4, padding_mode="reflect").double()
    for shape in ((6, 7), (9, 8)):
        assert torch.equal(product.to_dense(shape), second.to_dense(shape))
    learnable = lc.AffineGenerators(torch.zeros(2, 2, 2), torch.eye(2), learnable=True)
    product = lc.ProductGenerators(learnable, spatial=(6, 6))
    layer = lc.LConv2d(2, 2, product)
    layer(torch.randn(1, 2, 6, 6)).square().sum().backward()
    assert learnable.matrix.grad.abs().max() > 0 and set(layer.state_dict()) == {
        "weight", "bias", "generators.generators.matrix", "generators.generators.shift"
    }  # fmt: skip


def test_both_orders_in_one_layer():
    generators = lc.AffineGenerators.named("rotation", 2)
    layer = lc.LConv2d(3, 3, lc.ProductGenerators(generators, [(0,), (0, 0)], spatial=(8, 9)))
    assert layer(torch.randn(2, 3, 8, 9)).shape == (2, 3, 8, 9) and layer.weight.shape[0] == 3


AFFINE = lc.AffineGenerators.named("se", 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: named("laplace", 2), ValueError, "unit_laplacian, second, .*got 'laplace'"),
        (lambda: named("second", 4), ValueError, "ndim: expected 1, 2 or 3 axes, got 4"),
        (lambda: named("second", 2, accuracy=5), ValueError, "expected one of 2, 4, 6, 8, or 'spectral', got 5"),
        (lambda: lc.DifferentialGenerators(torch.ones(1, 1), [[3]]), ValueError, r"orders: .* got \[\[3\]\]"),
        (lambda: lc.DifferentialGenerators(torch.ones(1, 1), []), ValueError, r"orders: expected \(m, n\) integers"),
        (lambda: lc.DifferentialGenerators(torch.ones(1, 3), [[1], [2]]), ValueError, "coefficients: expected 2 deriv"),
        (lambda: lc.ProductGenerators(named("second", 2)), TypeError, "generators: expected AffineGenerators, got D"),
        (lambda: lc.ProductGenerators(AFFINE.transpose()), ValueError, "generators: expected vector fields"),
        (lambda: lc.ProductGenerators(AFFINE), ValueError, "spatial: expected the shape of the grid"),
        (lambda: lc.ProductGenerators(AFFINE, [(0, 3)], spatial=(4, 4)), ValueError, r"0 to 2, got \(0, 3\)"),
        (lambda: lc.ProductGenerators(AFFINE, [], spatial=(4, 4)), ValueError, "pairs: expected at least one"),
        (lambda: lc.ProductGenerators(AFFINE, spatial=(4,)), ValueError, r"2 positive integers, .*, got \(4,\)"),
        (
            lambda: lc.ProductGenerators(AFFINE, spatial=(4, 4)).to_dense((4, 5)),
            ValueError,
            r"input: expected the spatial shape \(4, 4\) of the generators, got \(4, 5\)",
        ),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_orders_of_second():
    assert first_and_second(2) == ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "ndim, name", [(1, "affine"), (2, "rotation"), (2, "similitude"), (3, "affine"), (3, "rotation")]
)
def test_fields_beside_the_laplacian(ndim, name, mode):
    """One kernel for both: the matrices of the fields, then that of the Laplacian, on any grid."""
    keywords = {"padding_mode": mode, "accuracy": 4, "coordinate_scale": 2.0}
    grid = (7, 5, 6)[:ndim]
    both = named(f"{name}+laplacian", ndim, **keywords).double().to_dense(grid)
    fields = named(name, ndim, **keywords).double().to_dense(grid)
    keywords.pop("coordinate_scale")
    laplacian = named("laplacian", ndim, **keywords).double().to_dense(grid)[-1:]
    torch.testing.assert_close(both, torch.cat([fields, laplacian]), rtol=1e-13, atol=1e-13)


def test_fields_beside_the_laplacian_learn():
    """From pairs of rotation + diffusion: the numbers of both are found."""
    truth = lc.AffineDifferentialGenerators(
        torch.tensor([[[0.0, 1.0], [-1.0, 0.0], [0, 0], [0, 0]]], dtype=torch.float64),
        torch.tensor([[0.0, 0.0, 0.3, 0.3]], dtype=torch.float64),
        [[1, 0], [0, 1], [2, 0], [0, 2]],
    )
    learned = lc.AffineDifferentialGenerators(
        torch.zeros(1, 4, 2, dtype=torch.float64),
        torch.zeros(1, 4, dtype=torch.float64),
        truth.orders,
        learnable=True,
    )
    f = torch.randn(8, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = (learned(f) - truth(f)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(learned.coefficients(), truth.coefficients(), rtol=1e-4, atol=1e-4)
