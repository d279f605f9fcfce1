"""A sharded model is the model: results and all gradients against one process, in float64."""

import copy

import pytest
import torch
from ranks import MESHES, compare, error_of, mesh_of, run_ranks
from torch import nn
from torch.nn import functional as F

import lconv_fast as lc

LAYERS = {2: lc.LConv2d, 3: lc.LConv3d}


def layers(n: int, mode: str, accuracy: int, full: tuple[int, ...]):
    layer, keywords = LAYERS[n], {"padding_mode": mode}
    field = torch.randn(2, n, *full).double()
    taps = torch.randint(-1, 2, (3, n))
    yield "affine", layer(3, 4, "affine", accuracy=accuracy, learnable=True, **keywords)
    yield "laplacian", layer(3, 4, accuracy=accuracy, **keywords)
    yield "stride", layer(3, 4, "affine", accuracy=accuracy, stride=2, **keywords)
    yield "field", layer(3, 4, lc.FieldGenerators(field, accuracy=accuracy, learnable=True, **keywords))
    sampled = lc.StencilGenerators(torch.randn(2, 3, *full).double(), taps, learnable=True, **keywords)
    yield "stencil", layer(3, 4, sampled, stride=2)
    yield "constant", layer(3, 4, lc.StencilGenerators(torch.randn(2, 3).double(), taps, learnable=True, **keywords))


def _layers(rank, world, modes, accuracies, grids, overlap=None):
    for sizes, names in MESHES[world]:
        mesh, dims = mesh_of(sizes, names), {2 + a: name for a, name in enumerate(names)}
        for full in grids:
            for mode in modes:
                for accuracy in accuracies:
                    torch.manual_seed(0)
                    for kind, layer in layers(len(full), mode, accuracy, full):
                        what = (sizes, full, mode, accuracy, kind)
                        x = torch.randn(2, 3, *full).double()
                        compare(layer.double(), x, mesh, dims, what=what, overlap=overlap)


@pytest.mark.parametrize("world", [1, 4])
def test_layers(world):
    run_ranks(world, _layers, ("zeros", "circular"), (2, 6), ((21, 18), (16, 13, 5)))


@pytest.mark.full
@pytest.mark.parametrize("overlap", [None, True])
@pytest.mark.parametrize("world", MESHES)
def test_layers_everywhere(world, overlap):
    modes, grids = ("zeros", "circular", "replicate", "reflect"), ((20, 16), (22, 18), (16, 13, 6), (19, 12, 5))
    run_ranks(world, _layers, modes, (2, 4, 6), grids, overlap, seconds=300)


def test_layers_that_compute_while_halos_travel():
    """Mixed with those that cannot: strides, shards too thin for an interior, ranks that mirror at the border."""
    modes = ("zeros", "circular", "reflect")
    run_ranks(4, _layers, modes, (2, 4), ((21, 19), (16, 17, 5)), True, seconds=60)


class Functions(nn.Module):
    """Functions rather than layers, a gate from the global mean, a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.lconv = nn.Conv2d(3, 4, 3, padding=1), lc.LConv2d(4, 4, padding_mode="replicate")
        self.scale, self.gate, self.norm = nn.Parameter(torch.randn(4, 1, 1)), nn.Linear(4, 4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        y = self.norm(self.lconv(F.max_pool2d(x, 2)))
        y = F.interpolate(y, scale_factor=2, mode="bilinear")
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        border = F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :1, 1:-1, 1:-1]
        return torch.cat([x, y * gate * self.scale], 1) * 2 + 3 * border


def _affine(**keywords):
    return lc.AffineGenerators.named("affine", learnable=True, **keywords)


def models():
    nets, seq = lc.nets, nn.Sequential
    yield "functions", Functions, (2, 3, 20, 16)
    pooled = [lc.LConv2d(6, 6, "affine"), nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    first = [nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.InstanceNorm2d(6, affine=True), nn.PReLU()]
    yield "classifier", lambda: seq(*first, nn.AvgPool2d(2), *pooled), (2, 3, 20, 16)
    yield "uneven U-Net", lambda: nets.LUNet(3, 2, widths=(4, 6, 8), norm="batch", checkpoint=True), (2, 3, 22, 17)
    volumes = {"ndim": 3, "widths": (3, 4), "norm": "instance", "padding_mode": "circular"}
    yield "U-Net 3D", lambda: nets.LUNet(1, 2, **volumes), (1, 1, 18, 12, 5)
    yield "residual", lambda: nets.LResNet(3, 5, widths=(4, 6)), (2, 3, 24, 16)
    points = {"read_out": "points", "norm": "channel", "activation": "gelu"}
    yield "residual, points", lambda: nets.LResNet(3, 5, widths=(4, 6), **points), (2, 3, 24, 17)
    up = [nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), nn.ConvTranspose2d(3, 3, 2, 2)]
    down = [nn.MaxPool2d(3, 2, 1), nn.ConvTranspose2d(3, 2, 3, dilation=2)]
    yield "transposed", lambda: seq(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *up, *down), (2, 3, 20, 16)
    odd = [nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 5, 3, 1), nn.Conv2d(4, 4, 5, dilation=2)]
    finer = [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3, mode="bicubic"), nn.PixelShuffle(2)]
    yield "uneven", lambda: seq(*odd, *finer), (2, 3, 23, 17)
    valid = [nn.Conv2d(3, 4, 3), nn.ELU(), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding="same")]
    pads = [nn.ReflectionPad2d(2), nn.CircularPad2d(1), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 2, (3, 1), (2, 1), (1, 0))]
    yield "valid and padded", lambda: seq(*valid, *pads), (2, 3, 48, 24)
    yield "recursive", lambda: lc.RecursiveLConv(_affine(), 3, torch.randn(6) * 0.01), (2, 3, 20, 16)
    yield "maximum", lambda: lc.MaxLConv(_affine()), (2, 3, 20, 16)
    product = lambda: lc.ProductGenerators(_affine(), [(0, 1), (2,)], spatial=(20, 16))  # noqa: E731
    factored = lambda: lc.LConv2d(3, 4, "affine", factorized=True)  # noqa: E731
    yield "products", lambda: seq(factored(), nn.Dropout(0.0), lc.LConv2d(4, 2, product())), (2, 3, 20, 16)


def _models(rank, world):
    for sizes, names in MESHES[world]:
        mesh, dims = mesh_of(sizes, names), {2 + a: name for a, name in enumerate(names)}
        for k, (name, make, shape) in enumerate(models()):
            torch.manual_seed(0)
            x, overlap = torch.randn(shape).double(), True if k % 2 else None
            compare(make().double(), x, mesh, dims, 1e-13, what=(sizes, name), overlap=overlap)


@pytest.mark.parametrize("world", [4, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)])
def test_models(world):
    run_ranks(world, _models)


def _second_order(rank, world):
    """Derivatives of gradients, for which the exchange of the backward pass has to be differentiable itself."""
    mesh, dims = mesh_of((2, 2), ("z", "y")), {2: "z", 3: "y"}
    torch.manual_seed(0)
    model, x = lc.LConv2d(2, 3, "affine", padding_mode="circular").double(), torch.randn(1, 2, 12, 11).double()
    plain, results = copy.deepcopy(model), []
    lc.sharding.shard(model, mesh, dims, overlap=True)
    for layer, input in ((plain, x.clone()), (model, lc.sharding.local_part(x, mesh, dims))):
        input.requires_grad_()
        (g,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(3).sum(), input)
        results += [g.detach(), h]
    for found, expected in zip(results[2:], results[:2], strict=True):
        assert error_of(lc.sharding.full_tensor(found, mesh, dims), expected) < 1e-12


def test_second_order_while_halos_travel():
    run_ranks(4, _second_order)


def _three_axes(rank, world):
    mesh, dims = mesh_of((2, 2, 2), ("z", "y", "x")), {2: "z", 3: "y", 4: "x"}
    torch.manual_seed(0)
    unet = lc.nets.LUNet(1, 2, ndim=3, widths=(3, 4), norm="instance")
    compare(unet.double(), torch.randn(1, 1, 8, 14, 10).double(), mesh, dims, 1e-13)
    layer = lc.LConv3d(2, 3, "affine", accuracy=4, padding_mode="circular", stride=2)
    compare(layer.double(), torch.randn(1, 2, 9, 8, 7).double(), mesh, dims)


@pytest.mark.full
def test_three_sharded_axes():
    run_ranks(8, _three_axes, seconds=60)
