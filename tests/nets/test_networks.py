"""LUNet and LResNet: shapes on any grid, gradients, memory formats, checkpointing, compiling, errors, symmetry."""

import copy

import pytest
import torch
from torch import nn

import lconv_fast as lc
from lconv_fast import nets
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
