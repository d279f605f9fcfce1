"""At the edges of what a layer is called with: no channels, no examples, any number of threads, autocast."""

import pytest
import torch
from problems import MODES
from torch.utils.flop_counter import FlopCounterMode

import lconv_fast as lc


def each_kind(mode: str, dtype: torch.dtype):
    yield lc.AffineGenerators.named("affine", 2, padding_mode=mode, learnable=True).to(dtype)
    yield lc.FieldGenerators(torch.randn(2, 2, 5, 6, dtype=dtype), padding_mode=mode, learnable=True)
    yield lc.StencilGenerators(torch.randn(2, 2, dtype=dtype), [[0, 1], [1, 0]], padding_mode=mode, learnable=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_without_channels(mode, transposed, dtype):
    """y is the bias, and all gradients but the bias's are 0: nothing is left as memory came."""
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    for generators in each_kind(mode, numbers):
        g = generators.transpose() if transposed else generators
        for ins, outs in ((0, 3), (3, 0), (0, 0)):
            x = torch.randn(2, ins, 5, 6).to(dtype).requires_grad_()
            w = torch.randn(g.num_generators + 1, outs, ins).to(dtype).requires_grad_()
            b = torch.randn(outs).to(dtype).requires_grad_()
            y = lc.functional.lconv(x, w, g, b)
            assert (y == b.reshape(1, -1, 1, 1)).all() and y.shape == (2, outs, 5, 6)
            gradients = torch.autograd.grad(y.sum(), [x, w, *g.parameters()])
            assert all((t == 0).all() for t in gradients)


def test_without_examples():
    layer = lc.LConv2d(3, 4, learnable=True)
    x = torch.randn(0, 3, 5, 6, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 4, 5, 6)
    assert all((t == 0).all() for t in torch.autograd.grad(y.sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize(("name", "keywords"), [("affine", {}), ("gl", {"accuracy": 4, "padding_mode": "replicate"})])
@pytest.mark.parametrize("factorized", [False, True])
def test_bits_do_not_depend_on_threads(name, keywords, factorized):
    """Output and every gradient, of general matrices as well, which the gradients of affine fields contract."""
    before, expected = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for channels_last in (False, True):
                torch.manual_seed(1)
                layer = lc.LConv2d(32, 48, name, learnable=True, factorized=factorized, **keywords)
                torch.nn.init.normal_(layer.generators.matrix)
                x = torch.randn(2, 32, 67, 51)
                x = x.to(memory_format=torch.channels_last) if channels_last else x
                y = layer(x.requires_grad_())
                found = (y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.randn(y.shape)))
                for one, other in zip(found, expected.setdefault(channels_last, found), strict=True):
                    assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 5, 300), (2, 17, 40, 33), (2, 3, 4, 5, 70), (0, 4, 3), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sums_over_points(shape, dtype):
    """In any layout, against PyTorch's sum in float64; with every derivative that a bias needs."""
    values = torch.randn(shape).to(dtype)
    turned = values.movedim(1, -1).contiguous().movedim(-1, 1)
    spread = torch.cat([values, values], -1)[..., ::2][..., : shape[-1]]
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for t in (values, turned, spread, values[:, :1].expand(shape) if shape[1] else values):
        truth = t.double().sum([0, *range(2, t.dim())])
        scale = t.double().abs().sum([0, *range(2, t.dim())])
        assert ((torch.ops.lconv_fast.sum_points(t) - truth).abs() <= tolerance * scale).all()


def test_sums_over_points_are_an_operator():
    torch.library.opcheck(torch.ops.lconv_fast.sum_points.default, (torch.randn(2, 3, 4, 5, requires_grad=True),))


def test_backward_under_autocast_keeps_the_types_of_forward():
    layer = lc.LConv2d(3, 4, "gl", learnable=True)
    x = torch.randn(2, 3, 8, 8)
    u, parameters = torch.randn(2, 4, 8, 8), list(layer.parameters())
    expected = torch.autograd.grad(layer(x), parameters, u)
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(y, parameters, u)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_autocast_leaves_float64_as_it_is():
    layer, x = lc.LConv2d(3, 4, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x)) and layer(x).dtype == torch.float64


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_are_counted(groups):
    """(n_L + 1) products forward and for each of two gradients, 2 multiplications and additions each."""
    layer = lc.LConv2d(6, 4, "se", groups=groups, stride=2)
    x = torch.randn(3, 6, 9, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = layer(x)
    one_pass = 2 * 4 * (6 // groups) * 4 * 3 * 5 * 4
    assert forward.get_total_flops() == one_pass
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y.sum(), [x, layer.weight])
    assert backward.get_total_flops() == 2 * one_pass
