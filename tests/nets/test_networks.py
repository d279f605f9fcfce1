"""LUNet and LResNet: shapes on any grid, gradients, memory formats, checkpointing, compiling, errors, symmetry."""

import cmath
import copy
import math

import pytest
import torch
from torch import nn

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.generators import normalise
from lconv_fast.nets.resample import double, halve

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
GRIDS = [(1, (9,)), (1, (1,)), (2, (8, 8)), (2, (7, 10)), (2, (1, 1)), (2, (2, 5)), (3, (4, 6, 5)), (3, (1, 2, 3))]


def unet(ndim=2, widths=(4, 6, 8), **keywords):
    return nets.LUNet(2, 3, ndim=ndim, widths=widths, **keywords)


def resnet(ndim=2, widths=(4, 6, 8), **keywords):
    return nets.LResNet(2, 3, ndim=ndim, widths=widths, **keywords)


@pytest.mark.parametrize("ndim, grid", GRIDS)
def test_shapes_on_any_grid(ndim, grid):
    f = torch.randn(2, 2, *grid)
    assert unet(ndim)(f).shape == (2, 3, *grid)
    assert resnet(ndim)(f).shape == (2, 3)
    assert resnet(ndim, read_out="points")(f).shape == (2, 3, *grid)


@pytest.mark.parametrize("generators", ["translation", "laplacian", "second", "affine"])
@pytest.mark.parametrize("make", [unet, resnet])
def test_every_parameter_has_a_gradient(make, generators):
    model = make(generators=generators)
    model(torch.randn(2, 2, 8, 8)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", nets.NORMS)
@pytest.mark.parametrize("activation", nets.ACTIVATIONS)
def test_norms_and_activations_keep_shape_and_format(norm, activation):
    f = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    block = nets.LBlock(2, 4, 8, lc.AffineGenerators.named("translation"), norm, activation)
    y = block(f)
    assert y.shape == (2, 8, 6, 6) and y.isfinite().all()
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_last_inside_whatever_comes(ndim):
    seen = []
    model = unet(ndim)
    for module in model.modules():
        if isinstance(module, lc.LConv2d | lc.LConv3d):
            module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    f = torch.randn(1, 2, *[8] * ndim)
    y = model(f)
    assert len(seen) == 10 and all(t.is_contiguous(memory_format=FORMATS[ndim]) for t in seen)
    assert torch.equal(y, model(f.contiguous(memory_format=FORMATS[ndim])))


@pytest.mark.parametrize("make", [unet, resnet])
def test_checkpointing_changes_memory_not_gradients(make):
    plain = make(widths=(8, 8))
    saving = copy.deepcopy(plain)
    saving.checkpoint = True
    f = torch.randn(2, 2, 16, 16)
    kept = []
    for model in (plain, saving):
        count = 0

        def keep(t):
            nonlocal count
            count += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = model(f)
        y.square().sum().backward()
        kept.append(count)
    assert kept[1] < 0.7 * kept[0]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("make", [unet, resnet])
def test_one_graph(make):
    model = make()
    f = torch.randn(2, 2, 8, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(f), model(f))


def test_state_loads_into_another_network():
    a, b = unet(), unet()
    b.load_state_dict(a.state_dict())
    f = torch.randn(1, 2, 8, 8)
    assert torch.equal(a(f), b(f))


def test_generators_by_level_and_depths():
    def by_level(level):
        return ("second", "laplacian", lc.AffineGenerators.named("affine", 2))[level]

    model = nets.LUNet(1, 1, by_level, widths=(4, 4, 4), layers=(1, 2, 3))
    counts = [[b[0].generators.num_generators for b in half] for half in model.down]
    assert counts == [[5], [3, 3], [6, 6, 6]]
    model = nets.LResNet(1, 1, by_level, widths=(4, 4, 4), blocks=(1, 2, 3))
    assert len(model.blocks) == 6
    # One basis for each level, not for each layer: learnable numbers are shared.
    learned = lc.AffineGenerators.named("affine", 2, learnable=True)
    model = nets.LUNet(1, 1, learned, widths=(4, 4))
    assert sum(p is learned.matrix for p in model.parameters()) == 1


def test_factories():
    model = unet(norm=lambda c: nn.GroupNorm(1, c), activation=nn.PReLU)
    assert any(isinstance(m, nn.PReLU) for m in model.modules())
    assert model(torch.randn(1, 2, 8, 8)).shape == (1, 3, 8, 8)


def test_double_is_the_transpose_of_a_sum_over_cells():
    for grid in ((7,), (5, 6), (3, 4, 5)):
        fine = torch.randn(2, 3, *grid, dtype=torch.float64)
        coarse = torch.randn_like(halve(fine))
        assert coarse.shape[2:] == tuple(-(-n // 2) for n in grid)
        padded = fine
        for axis in range(2, fine.dim()):
            if fine.shape[axis] % 2:
                shape = list(padded.shape)
                shape[axis] = 1
                padded = torch.cat([padded, padded.new_zeros(shape)], axis)
        cells = padded
        for axis in range(2, fine.dim()):
            cells = cells.unflatten(axis, (-1, 2)).sum(axis + 1)
        left, right = (double(coarse, grid) * fine).sum(), (coarse * cells).sum()
        assert abs(left - right) < 1e-12 * fine.numel()


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_isotropic_networks_commute_with_quarter_turns(turn):
    f = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    dense = unet(generators=nets.isotropic(2)).double()
    whole = resnet(generators=nets.isotropic(2)).double()
    turned = f.rot90(turn, (2, 3))
    torch.testing.assert_close(dense(turned), dense(f).rot90(turn, (2, 3)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole(turned), whole(f), rtol=1e-10, atol=1e-10)
    # The default basis has directions, and does not.
    assert (resnet().double()(turned) - resnet().double()(f)).abs().max() > 1e-3


@pytest.mark.parametrize("norm", list(nets.NORMS))
def test_norms_commute_with_permutations_of_the_points(norm):
    module = nets.blocks.make_norm(norm, 2, 8).double()
    f = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    order = torch.randperm(25)

    def permute(t):
        return t.flatten(2)[:, :, order].unflatten(2, (5, 5))

    torch.testing.assert_close(module(permute(f)), permute(module(f)))


ERRORS = [
    (lambda: nets.LUNet(0, 1), ValueError, "in_channels"),
    (lambda: nets.LUNet(1, 1.5), TypeError, "out_channels"),
    (lambda: nets.LUNet(1, 1, ndim=4), ValueError, "ndim: expected 1, 2 or 3"),
    (lambda: nets.LUNet(1, 1, ndim=2.0), ValueError, "ndim: expected 1, 2 or 3"),
    (lambda: nets.LUNet(1, 1, widths=()), TypeError, "widths"),
    (lambda: nets.LUNet(1, 1, widths=32), TypeError, "widths"),
    (lambda: nets.LUNet(1, 1, widths=(8, -1)), ValueError, "widths"),
    (lambda: nets.LUNet(1, 1, layers=(1, 2)), ValueError, "layers: expected one integer or 3"),
    (lambda: nets.LUNet(1, 1, layers=0), ValueError, "layers"),
    (lambda: nets.LUNet(1, 1, norm="layer"), ValueError, "norm: expected one of group, instance"),
    (lambda: nets.LUNet(1, 1, norm=None), TypeError, "norm"),
    (lambda: nets.LUNet(1, 1, activation="swish"), ValueError, "activation: expected one of relu"),
    (lambda: nets.LUNet(1, 1, activation=3), TypeError, "activation"),
    (lambda: nets.LUNet(1, 1, "twist"), ValueError, "generators: expected one of"),
    (lambda: nets.LUNet(1, 1, 7), TypeError, "generators: expected a name"),
    (lambda: nets.LUNet(1, 1, lambda level: level), TypeError, "generators: expected a name"),
    (lambda: nets.LUNet(1, 1, lc.AffineGenerators.named("se", 3)), ValueError, "generators: expected 2 axes"),
    (lambda: nets.LUNet(1, 1, nets.isotropic(2), accuracy=4), TypeError, "accuracy"),
    (lambda: nets.LUNet(1, 1, checkpoint="no"), TypeError, "checkpoint: expected True or False"),
    (lambda: nets.LResNet(1, 1, read_out="max"), ValueError, "read_out: expected one of mean, points"),
    (lambda: nets.LResNet(1, 1, blocks=(1,)), ValueError, "blocks: expected one integer or 3"),
    (lambda: unet()(torch.randn(1, 3, 8, 8)), ValueError, r"LUNet: expected input \(N, 2, \*spatial\)"),
    (lambda: unet()(torch.randn(2, 8, 8)), ValueError, "LUNet: expected input"),
    (lambda: resnet()(torch.randn(1, 2, 8)), ValueError, "LResNet: expected input"),
    (lambda: unet()(None), TypeError, "LUNet: expected input to be a tensor"),
    (lambda: nets.with_laplacian(lc.generators.named("laplacian")), TypeError, "generators: expected AffineGenerators"),
    (lambda: nets.with_laplacian(lc.generators.named("se").transpose()), ValueError, "expected vector fields"),
    (
        lambda: nets.with_laplacian(lc.AffineGenerators.named("rotation", coordinate_scale=1.0)),
        ValueError,
        r"spatial: expected the grid, since the generators have a coordinate scale of their own \(1 pixels\)",
    ),
    (lambda: nets.with_laplacian(lc.AffineGenerators.named("rotation"), (8,)), ValueError, "spatial: expected"),
    (lambda: nets.equivariant("so"), ValueError, "group: expected one of translation"),
    (lambda: nets.equivariant("rotation", 1), ValueError, "group: 'rotation' has no motions on 1 axis"),
    (lambda: nets.equivariant("se", 4), ValueError, "ndim: expected 1, 2 or 3"),
    (lambda: nets.isotropic(2, 0), ValueError, "powers"),
]


@pytest.mark.parametrize("call, kind, text", ERRORS)
def test_errors_name_the_argument(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["laplacian", "second", "affine"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_normalised_generators_keep_the_variance_of_white_noise(name, ndim):
    generators = normalise(lc.generators.named(name, ndim, padding_mode="circular").double())
    torch.testing.assert_close(generators.mean_square(), torch.ones(generators.num_generators, dtype=torch.float64))
    noise = torch.randn(4, 1, *{1: (20000,), 2: (200, 200), 3: (40, 40, 40)}[ndim], dtype=torch.float64)
    assert (generators(noise).var((0, 2, *range(3, 3 + ndim))) - 1).abs().max() < 0.1


def test_normalise_goes_along_with_the_weights():
    """L_i -> L_i / sqrt(r_i) and W^i -> W^i sqrt(r_i) is the same layer."""
    layer = lc.LConv2d(3, 4, lc.generators.named("second", 2), dtype=torch.float64)
    f = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    before, deviation = layer(f), layer.generators.mean_square().sqrt()
    normalise(layer.generators)
    with torch.no_grad():
        layer.weight[1:] *= deviation[:, None, None]
    torch.testing.assert_close(layer(f), before)
    with pytest.raises(TypeError, match="generators: expected one of AffineGenerators"):
        normalise(lc.GraphGenerators(torch.tensor([[0, 1], [1, 0]]), torch.ones(1, 2), 2))


def spot(size, angle):
    """Two Gaussians on [-1, 1]^2, turned by an angle exactly."""
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    y, x = c * y + s * x, c * x - s * y
    return (torch.exp(-((y - 0.2) ** 2 + x**2) / 0.04) - 0.6 * torch.exp(-((y + 0.1) ** 2 + (x - 0.25) ** 2) / 0.05))[
        None, None
    ]


def moment(y, size, k):
    """integral of y(x) (x_0 + i x_1)^k: turning y by an angle multiplies it by a phase."""
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    z = torch.complex(*torch.meshgrid(axis, axis, indexing="ij"))
    return (y[0, 0] * z**k).sum() / size**2


@pytest.mark.parametrize("group", ["rotation", "rotation + laplacian", "se"])
def test_layers_commute_with_turns(group):
    """By 90 degrees to rounding, by any angle to O(h^2): moments of layer(turned f) and layer(f), turned, agree."""
    errors = []
    for size in (33, 65):
        if group == "se":
            generators = nets.isotropic(2)
        else:
            generators = nets.equivariant("rotation")
            if "laplacian" in group:
                generators = nets.with_laplacian(generators)
        torch.manual_seed(1)
        layer = lc.LConv2d(1, 1, generators, bias=False).double()
        f = spot(size, 0.0)
        torch.testing.assert_close(layer(f.rot90(1, (2, 3))), layer(f).rot90(1, (2, 3)), rtol=1e-12, atol=1e-12)
        angle, worst = 0.4, 0.0
        for k in (1, 2, 3, 4):
            # Cubes of the values, so that the Laplacian's mean, 0, is not what is compared.
            still, turned = moment(layer(f) ** 3, size, k), moment(layer(spot(size, angle)) ** 3, size, k)
            worst = max(worst, ((turned - still * cmath.exp(1j * k * angle)).abs() / still.abs()).item())
        errors.append(worst)
    assert errors[0] / errors[1] > 3, errors


@pytest.mark.parametrize("grid", [(16, 16), (9, 33)])
def test_fields_in_pixels_are_normalised_as_those_in_half_extents(grid):
    """Whatever units they come in, the same operators on their grid, whose mean square is 1 for white noise."""
    half = (max(grid) - 1) / 2
    units = lc.AffineGenerators.named("similitude").double()
    pixels = lc.AffineGenerators(units.matrix / half, units.shift, coordinate_scale=1.0)
    expected, found = nets.with_laplacian(units), nets.with_laplacian(pixels, grid)
    torch.testing.assert_close(found.to_dense(grid), expected.to_dense(grid), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.mean_square(), torch.ones(5, dtype=torch.float64))


def test_the_default_basis_does_not_commute_with_turns():
    layer = lc.LConv2d(1, 1, lc.generators.named("laplacian", 2), bias=False).double()
    size, angle = 65, 0.4
    still, turned = (moment(layer(spot(size, a)) ** 3, size, 1) for a in (0.0, angle))
    assert (turned - still * cmath.exp(1j * angle)).abs() > 0.05 * still.abs()
