"""Eq. (19) and (20): the loss of a layer as a Lagrangian."""

import itertools

import pytest
import torch
from fields import band_limited, relative

import lconv_fast as lc
from lconv_fast.ops.boundary import PADDING_MODES
from lconv_fast.physics.derivatives import coordinates

LAYERS = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}
GRIDS = {1: (17,), 2: (9, 12), 3: (6, 7, 5)}
MODES = tuple(PADDING_MODES)


def make(ndim, channels, generators="affine", out=None, **keywords):
    layer = LAYERS[ndim](channels, out or channels + 1, generators, dtype=torch.float64, **keywords)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("ndim, channels", list(itertools.product((1, 2, 3), (1, 2, 3, 4))))
@pytest.mark.parametrize("mode", MODES)
def test_corrected_form_is_the_loss(ndim, channels, mode):
    for keywords in ({"bias": False}, {}, {"factorized": True}, {"accuracy": 4}):
        layer = make(ndim, channels, padding_mode=mode, **keywords)
        phi = torch.randn(2, channels, *GRIDS[ndim], dtype=torch.float64)
        lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
        loss = layer(phi).square().sum(1)
        for form in ("corrected", "direct"):
            assert relative(lagrangian.density(phi, form) - loss, loss) < 1e-12
        x = lc.physics.gradient(phi, layer.generators.accuracy, mode)
        assert relative(lagrangian(phi, x, coordinates(GRIDS[ndim], phi)) - loss, loss) < 1e-12
        printed = lagrangian.density(phi, "printed") + lagrangian.correction(phi)
        assert relative(printed - loss, loss) < 1e-12


def test_printed_form_fails_for_unsymmetric_v_and_holds_for_symmetric():
    phi = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    layer = make(2, 2, "rotation", factorized=True, bias=False)
    lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
    loss = layer(phi).square().sum()
    assert abs(lagrangian.density(phi, "printed").sum() - loss) > 1e-4 * loss
    # eps = m2^-1 s makes v_i = m2 eps^i = s symmetric.
    s = torch.randn(1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.epsilon.copy_(torch.linalg.solve(lagrangian.m2, s + s.transpose(1, 2)))
    loss = layer(phi).square().sum()
    assert abs(lagrangian.density(phi, "printed").sum() - loss) < 1e-12 * loss


def test_numbers_of_eq_20():
    layer = make(2, 3, "similitude", out=5, factorized=True, bias=False)
    lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
    m2 = layer.weight0.T @ layer.weight0
    assert torch.allclose(lagrangian.m2, m2, atol=1e-13)
    assert torch.allclose(lagrangian.v, m2 @ layer.epsilon, atol=1e-13)
    h = lagrangian.h((7, 8))
    assert h.shape == (2, 2, 3, 3, 7, 8)
    # At a point, by the definition: x = (index - centre) / half extent.
    y, x = (5 - 3) / 3.5, (1 - 3.5) / 3.5
    field = layer.generators.matrix @ torch.tensor([y, x], dtype=torch.float64) + layer.generators.shift
    by_hand = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):
        by_hand += torch.einsum("a,b,cd->abcd", field[i], field[j], layer.epsilon[i].T @ m2 @ layer.epsilon[j])
    assert torch.allclose(h[..., 5, 1], by_hand, atol=1e-12)
    assert torch.allclose(h, h.permute(1, 0, 3, 2, 4, 5))


def test_groups_and_field_generators():
    phi = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    field = lc.FieldGenerators(torch.randn(3, 2, 6, 7, dtype=torch.float64), padding_mode="circular", accuracy=4)
    layer = make(2, 4, field, out=6, groups=2)
    lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
    loss = layer(phi).square().sum(1)
    assert relative(lagrangian.density(phi) - loss, loss) < 1e-12


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("accuracy", (2, 6))
def test_total_derivative_of_translations_integrates_to_zero(ndim, accuracy):
    spatial = tuple(s + 4 for s in GRIDS[ndim])
    phi = torch.randn(1, 2, *spatial, dtype=torch.float64)
    layer = make(ndim, 2, "translation", padding_mode="circular", accuracy=accuracy)
    term = lc.physics.QuadraticLagrangian.from_layer(layer).total_derivative(phi)
    assert term.sum().abs() < 1e-10 * term.abs().sum()


@pytest.mark.parametrize("mode", ("zeros", "circular", "replicate"))
def test_total_derivative_of_scaling_is_the_boundary_s(mode):
    """sum x^a d_a q = flux(x q) - n sum q: away from the boundary, d_a^T (x^a) = -n."""
    size, ndim = 24, 2
    layer = make(2, 2, "scaling", padding_mode=mode, coordinate_scale=1.0, bias=False)
    lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
    phi = torch.randn(1, 2, size, size, dtype=torch.float64)
    q = torch.einsum("Ncyx,cd,Ndyx->Nyx", phi, lagrangian.v[0], phi)
    term = lagrangian.total_derivative(phi)
    # The boundary's value by hand: d_a^T x^a + n there, which vanishes inside.
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for k in (-1, 1):
            j = i + k
            if mode == "circular":
                j %= size
            elif mode == "replicate":
                j = min(max(j, 0), size - 1)
            if 0 <= j < size:
                matrix[i, j] += k / 2
    jump = matrix.T @ axis + 1
    assert jump[1:-1].abs().max() < 1e-13 and jump[0].abs() > 1
    boundary = (q * (jump[:, None] + jump[None, :])).sum()
    assert abs(term.sum() + ndim * q.sum() - boundary) < 1e-10 * q.abs().sum()
    assert (lagrangian.boundary_term(phi)[0] - boundary).abs() < 1e-12 * q.abs().sum()
    assert term.sum().abs() > 1e-3 * q.abs().sum()
    # Far from the boundary, the boundary's value is zero and the volume's is left.
    inside = phi.clone()
    inside[..., :2, :] = inside[..., -2:, :] = inside[..., :2] = inside[..., -2:] = 0
    q = torch.einsum("Ncyx,cd,Ndyx->Nyx", inside, lagrangian.v[0], inside)
    assert abs(lagrangian.total_derivative(inside).sum() + ndim * q.sum()) < 1e-10 * q.abs().sum()


def test_complex_fields_are_pairs_of_real_ones():
    layer = make(2, 2, "se", padding_mode="circular")
    lagrangian = lc.physics.QuadraticLagrangian.from_layer(layer)
    phi = band_limited(2, 2, (9, 12), 3, torch.complex128)
    direct = lagrangian.density(phi, "direct")
    assert relative(lagrangian.density(phi) - direct, direct) < 1e-12
    layer.bias.data.zero_()
    pairs = layer(phi.real).square().sum(1) + layer(phi.imag).square().sum(1)
    assert relative(lagrangian.density(phi) - pairs, pairs) < 1e-12


def test_free_field_from_its_numbers():
    h = torch.tensor([[1.0, 0.0], [0.0, -0.25]], dtype=torch.float64)
    lagrangian = lc.physics.QuadraticLagrangian(-0.3, h, components=2, padding_mode="circular")
    phi = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    t, x = ((phi.roll(-1, d) - phi.roll(1, d)) / 2 for d in (2, 3))
    by_hand = (t**2 - 0.25 * x**2 - 0.3 * phi**2).sum(1)
    assert relative(lagrangian.density(phi) - by_hand, by_hand) < 1e-14
    everywhere = lc.physics.QuadraticLagrangian(
        -0.3, (h[..., None, None] * torch.eye(2).double())[..., None, None].expand(2, 2, 2, 2, 8, 8),
        b=torch.randn(2, 2, 2, 8, 8, dtype=torch.float64), padding_mode="circular",
    )  # fmt: skip
    slope = torch.stack([t, x], 2)
    extra = 2 * torch.einsum("acdyx,Ncyx,Ndayx->Nyx", everywhere._b, phi, slope)
    assert relative(everywhere.density(phi) - by_hand - extra, by_hand) < 1e-14


def test_bad_input():
    P = lc.physics.QuadraticLagrangian
    with pytest.raises(TypeError, match="layer: expected LConv1d"):
        P.from_layer(torch.nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="stride 1"):
        P.from_layer(lc.LConv2d(2, 2, stride=2))
    with pytest.raises(TypeError, match="vector fields"):
        P.from_layer(lc.LConv2d(2, 2, lc.StencilGenerators(torch.randn(1, 2), [[0, 1], [1, 0]])))
    with pytest.raises(ValueError, match="phi: expected"):
        P.from_layer(lc.LConv2d(2, 2, "affine")).density(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="form: expected one of"):
        P.from_layer(lc.LConv2d(2, 2, "affine")).density(torch.randn(1, 2, 8, 8), "other")
    with pytest.raises(ValueError, match="h: expected shape"):
        P(1.0, torch.randn(2, 3))
    with pytest.raises(ValueError, match="m2: expected shape"):
        P(torch.randn(3, 3), torch.randn(2, 2, 2, 2))
