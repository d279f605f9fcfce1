"""SeparableLConv: the L-conv of W^i = W^0 diag(a_i), with a single matrix's parameters."""

import pytest
import torch

import lconv_fast as lc
from lconv_fast import nets


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_is_a_mixing_of_one_operator_for_each_channel(ndim):
    basis = lc.generators.named("laplacian", ndim)
    layer = nets.SeparableLConv(3, 5, basis).double()
    torch.nn.init.normal_(layer.bias)
    f = torch.randn(2, 3, *[6] * ndim, dtype=torch.float64, requires_grad=True)
    derivatives = basis.double()(f)  # (N, n_L, C, *spatial)
    own = f + torch.einsum("nic...,ic->nc...", derivatives, layer.scale)
    truth = torch.einsum("nc...,oc->no...", own, layer.weight0) + layer.bias.reshape(-1, *[1] * ndim)
    torch.testing.assert_close(layer(f), truth)
    tensors = (f, *layer.parameters())
    g = torch.randn_like(truth)
    for a, b in zip(torch.autograd.grad(layer(f), tensors, g), torch.autograd.grad(truth, tensors, g), strict=True):
        torch.testing.assert_close(a, b)


def test_keeps_the_variance_of_white_noise():
    torch.manual_seed(0)
    layer = nets.SeparableLConv(64, 64, lc.generators.named("laplacian", 2, padding_mode="circular"))
    assert 0.7 < layer(torch.randn(2, 64, 32, 32)).var().item() < 1.4


def test_in_the_place_of_each_lconv():
    torch.manual_seed(0)
    model = nets.LUNet(1, 2, widths=(8, 16, 32), norm="instance")
    full = sum(p.numel() for p in model.parameters())
    assert nets.separable(model) is model
    layers = [m for m in model.modules() if isinstance(m, nets.SeparableLConv)]
    assert len(layers) == 10 and not any(isinstance(m, lc.LConv2d) for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) < 0.4 * full
    assert layers[0].generators is layers[1].generators  # as before: one basis for each level
    f = torch.randn(1, 1, 9, 12)
    model(f).square().sum().backward()
    assert model(f).shape == (1, 2, 9, 12)
    assert all(p.grad is not None for p in model.parameters())


def test_strided_and_grouped_layers_stay():
    model = torch.nn.Sequential(lc.LConv2d(4, 4, stride=2), lc.LConv2d(4, 4, groups=2), lc.LConv2d(4, 4))
    kinds = [type(layer) for layer in nets.separable(model)]
    assert kinds == [lc.LConv2d, lc.LConv2d, nets.SeparableLConv]


def test_errors():
    with pytest.raises(TypeError, match="generators: expected a Generators object, got str"):
        nets.SeparableLConv(2, 2, "laplacian")
    with pytest.raises(ValueError, match="in_channels"):
        nets.SeparableLConv(0, 2, lc.generators.named("laplacian", 2))
