"""One traced graph for all sizes, whatever the kind of generators; export; PyTorch's own checks of modules."""

import copy
import pickle

import pytest
import torch
from problems import relative_rms
from torch._dynamo.testing import CompileCounterWithBackend

import lconv_fast as lc

PERIODIC = {"accuracy": "spectral", "padding_mode": "circular"}
ANY_SIZE = {
    "laplacian": lambda: lc.LConv2d(3, 4, "laplacian", learnable=True, dtype=torch.float64),
    "laplacian, reflect": lambda: lc.LConv2d(3, 4, "laplacian", padding_mode="reflect", dtype=torch.float64),
    "second, replicate": lambda: lc.LConv2d(3, 4, "second", padding_mode="replicate", dtype=torch.float64),
    "second, 4th order": lambda: lc.LConv2d(3, 4, "second", accuracy=4, stride=2, dtype=torch.float64),
    "second, 3D": lambda: lc.LConv3d(3, 4, "second", padding_mode="circular", dtype=torch.float64),
    "products": lambda: lc.LConv2d(
        3, 4, lc.ProductGenerators(lc.AffineGenerators.named("translation", 2)), dtype=torch.float64
    ),
    "spectral affine": lambda: lc.LConv2d(3, 4, "affine", learnable=True, dtype=torch.float64, **PERIODIC),
    "spectral in pixels": lambda: lc.LConv2d(3, 4, "rotation", coordinate_scale=1.0, dtype=torch.float64, **PERIODIC),
    "spectral second, 1D": lambda: lc.LConv1d(3, 4, "second", stride=2, dtype=torch.float64, **PERIODIC),
    "transposed": lambda: lc.LConv2d(3, 4, lc.generators.named("second", 2).transpose(), dtype=torch.float64),
}  # fmt: skip
SIZES = [(8, 9), (9, 8), (13, 19), (19, 12), (10, 16)]


def fixed_size():
    grid = (6, 7)
    free = torch.Generator().manual_seed(0)
    index = torch.randint(42, (2, 60), generator=free)
    return {
        "products": lc.ProductGenerators(lc.AffineGenerators.named("se", 2, learnable=True), spatial=grid),
        "differential": lc.DifferentialGenerators(torch.randn(2, 2, *grid), [[2, 0], [1, 1]], learnable=True),
        "dense": lc.DenseGenerators(torch.randn(2, 42, 42), learnable=True),
        "low rank": lc.LowRankGenerators(torch.randn(2, 42, 3), torch.randn(2, 3, 42), learnable=True),
        "spectral field": lc.FieldGenerators(torch.randn(2, 2, *grid), learnable=True, **PERIODIC),
        "graph": lc.GraphGenerators(index, torch.randn(2, 60), 42, learnable=True),
    }


def layer_and_input(kind):
    generators = fixed_size()[kind].double()
    if kind == "graph":
        return lc.LConvGraph(3, 4, generators, dtype=torch.float64), torch.randn(2, 42, 3, dtype=torch.float64)
    return lc.LConv2d(3, 4, generators, dtype=torch.float64), torch.randn(2, 3, 6, 7, dtype=torch.float64)


def agrees(compiled, layer, x):
    x = x.requires_grad_()
    inputs = [x, *layer.parameters()]
    a, b = (torch.autograd.grad(f(x).pow(3).sum(), inputs) for f in (layer, compiled))
    assert relative_rms(compiled(x), layer(x)) < 1e-13
    assert all(relative_rms(q, p) < 1e-12 for p, q in zip(a, b, strict=True))


FEW = ("laplacian", "second, replicate", "spectral affine")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.full) for n in ANY_SIZE])
def test_one_graph_for_all_sizes(name):
    torch._dynamo.reset()
    layer = ANY_SIZE[name]()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch, size in enumerate(SIZES, start=2):
        extents = {"1D": size[:1], "3D": (*size, sum(size))}.get(name[-2:], size)
        agrees(compiled, layer, torch.randn(batch, 3, *extents, dtype=torch.float64))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", fixed_size())
def test_compiled_on_a_fixed_grid(kind):
    torch._dynamo.reset()
    layer, x = layer_and_input(kind)
    agrees(torch.compile(layer, fullgraph=True, backend="aot_eager"), layer, x)


@pytest.mark.parametrize("name", ["second, replicate", "spectral affine"])
def test_export_for_all_sizes(name):
    layer = ANY_SIZE[name]()
    batch, height, width = (torch.export.Dim(axis, min=4, max=512) for axis in ("batch", "height", "width"))
    example = torch.randn(5, 3, 8, 9, dtype=torch.float64)
    program = torch.export.export(layer, (example,), dynamic_shapes=({0: batch, 2: height, 3: width},))
    for size in SIZES:
        x = torch.randn(4, 3, *size, dtype=torch.float64)
        assert relative_rms(program.module()(x), layer(x)) < 1e-13


@pytest.mark.parametrize("kind", fixed_size())
def test_copied_pickled_and_loaded(kind):
    layer, x = layer_and_input(kind)
    other, _ = layer_and_input(kind)
    other.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin(x), layer(x))
    meta, _ = layer_and_input(kind)
    y = meta.to("meta")(x.to("meta"))
    assert y.is_meta and y.shape == layer(x).shape
