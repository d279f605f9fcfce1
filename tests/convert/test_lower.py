"""L-convs as plain PyTorch operators: agreement in all kinds, no operator of this library left, exporters."""

import random
import warnings

import pytest
import torch
from problems import MODES, Problem, other_problems, problems, relative_rms
from torch import nn

import lconv_fast as lc

LAYERS = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}


def operators(model, *inputs):
    """What torch.export sees."""
    return {str(node.target) for node in torch.export.export(model, inputs).graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_agrees(problem):
    rng = random.Random(str(problem))
    for transposed in (False, True):
        generators = problem.make(problem.numbers(), learnable=True)
        generators = generators.transpose() if transposed else generators
        stride, groups = rng.choice([(1, 1), (2, 2), (3, 1), (1, 2)])
        layer = LAYERS[problem.ndim](4, 6, generators, stride=stride, groups=groups, factorized=rng.random() < 0.3)
        layer, x = layer.double(), torch.randn(2, 4, *problem.grid, dtype=torch.float64, requires_grad=True)
        plain = lc.convert.lower(layer)
        y, z = layer(x), plain(x)
        u = torch.randn_like(y)
        assert relative_rms(z, y) < 1e-13
        assert relative_rms(*(torch.autograd.grad(out, x, u)[0] for out in (z, y))) < 1e-13
        assert relative_rms(plain(x[0]), y[0]) < 1e-13
        assert relative_rms(plain.generators(x), generators(x)) < 1e-13
        assert relative_rms(plain.generators.to_dense(problem.grid), generators.to_dense(problem.grid)) < 1e-13


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_small_grids(size, mode):
    layer = lc.LConv2d(3, 4, "affine", padding_mode=mode, accuracy=4, dtype=torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert relative_rms(lc.convert.lower(layer)(x), layer(x)) < 1e-13


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-4), (torch.bfloat16, 3e-3)])
def test_half_types(dtype, tolerance):
    layer, x = lc.LConv2d(8, 8, "affine", dtype=dtype), torch.randn(2, 8, 9, 9, dtype=dtype)
    y = lc.convert.lower(layer)(x)
    assert y.dtype == dtype and relative_rms(y, layer(x)) < tolerance


class Many(nn.Module):
    """All outputs of several layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def others():
    """Modules besides LConv that hold generators, and framed layers."""
    generators = lc.AffineGenerators.named("se")
    return [
        lc.RecursiveLConv(generators, 2, 0.2, order=2),
        lc.MaxLConv(generators),
        lc.DerivativeLConv(4, 3, generators, stride=2, groups=1),
        lc.convert.from_conv(nn.Conv2d(4, 4, 4, stride=2, padding=3, padding_mode="circular")),
        lc.convert.from_conv(nn.Conv2d(4, 4, 3, padding=0, groups=2)),
        lc.LConv2d(4, 4, "translation", padding_mode="reflect"),
    ]


def test_whole_model():
    shared = lc.LConv2d(4, 4, "se")
    model = Many([*others(), shared, nn.Sequential(nn.ReLU(), shared)]).eval()
    x, before = torch.randn(2, 4, 8, 9), dict(model.named_modules())
    assert any("lconv_fast" in name for name in operators(model, x))
    plain = lc.convert.lower(model)
    assert not any("lconv_fast" in name for name in operators(plain, x))
    assert dict(model.named_modules()) == before and not plain.training
    assert plain.layers[6] is plain.layers[7][1]
    for z, y in zip(plain(x), model(x), strict=True):
        assert relative_rms(z, y) < 1e-6


@pytest.mark.parametrize("problem", other_problems(), ids=str)
def test_kinds_without_taps(problem):
    generators = problem.make(problem.numbers())
    x = torch.randn(2, 4, *problem.grid, dtype=torch.float64)
    if isinstance(generators, lc.GraphGenerators):
        layer, x = lc.LConvGraph(4, 6, generators, dtype=torch.float64), x.transpose(1, 2)
    else:
        layer = LAYERS[problem.ndim](4, 6, generators, stride=2, groups=2, dtype=torch.float64)
    plain = lc.convert.lower(layer)
    assert relative_rms(plain(x), layer(x)) < 1e-13
    assert not any("lconv_fast" in name for name in operators(plain, x))


def test_graph_and_dense():
    edges = torch.randint(0, 9, (2, 30))
    layer = lc.LConvGraph(4, 3, lc.GraphGenerators(edges, torch.randn(2, 30), 9).transpose())
    x = torch.randn(2, 9, 4)
    assert relative_rms(lc.convert.lower(layer)(x), layer(x)) < 1e-6
    assert not any("lconv_fast" in name for name in operators(lc.convert.lower(layer), x))
    layer = lc.LConv2d(4, 6, lc.DenseGenerators(torch.randn(2, 12, 12)), groups=2, stride=2)
    x = torch.randn(2, 4, 3, 4)
    assert relative_rms(lc.convert.lower(layer)(x), layer(x)) < 1e-6


def onnx_agrees(model, x, dynamic, *more):
    """torch.onnx.export of the lowered model, run by onnxruntime on x and on inputs of other sizes."""
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported, where onnxruntime is installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = lc.convert.lower(model).eval()
        program = torch.onnx.export(plain, (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), options)
    for f in (x, *more):
        found = session.run(None, {session.get_inputs()[0].name: f.numpy()})
        with torch.no_grad():
            wanted = model(f)
        for z, y in zip(found, wanted, strict=True):
            assert relative_rms(torch.from_numpy(z), y) < 1e-5


def sizes(ndim, dynamic=True):
    d = torch.export.Dim.DYNAMIC
    return {"x": {0: d, **({axis + 2: d for axis in range(ndim)} if dynamic else {})}}


def test_onnx_of_one_layer():
    x = torch.randn(2, 4, 5, 6)
    model = Many([lc.LConv2d(4, 6, "se", stride=2, groups=2, padding_mode="reflect")])
    onnx_agrees(model, x, sizes(2), torch.randn(3, 4, 9, 11), torch.randn(1, 4, 16, 5))


def test_onnx_in_three_axes():
    """Sizes that change, boundaries and strides."""
    layers = [
        lc.LConv3d(4, 6, lc.AffineGenerators.named("se", 3, padding_mode=mode), stride=stride)
        for mode, stride in (("circular", 2), ("replicate", 1), ("zeros", 3))
    ]
    onnx_agrees(Many(layers), torch.randn(2, 4, 4, 5, 3), sizes(3), torch.randn(1, 4, 5, 4, 6))


@pytest.mark.full
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["affine", "constant", "field", "stencil"])
def test_onnx_of_every_kind(kind, ndim):
    layers = []
    for mode in MODES:
        problem = Problem(kind, ndim, mode)
        for transposed, stride, groups in ((False, 1, 1), (True, 2, 2), (False, 2, 1), (False, 3, 2)):
            generators = problem.make(problem.numbers(torch.float32))
            generators = generators.transpose() if transposed else generators
            layers.append(LAYERS[ndim](4, 6, generators, stride=stride, groups=groups))
    grid, free = problem.grid, kind in ("affine", "constant")
    more = [torch.randn(3, 4, *(size + 4 + 2 * k for k, size in enumerate(grid))), torch.randn(1, 4, *[5] * ndim)]
    x = torch.randn(2, 4, *grid)
    onnx_agrees(Many(layers), x, sizes(ndim, free), *(more if free else [torch.randn(5, 4, *grid)]))


@pytest.mark.full
def test_onnx_of_other_modules():
    onnx_agrees(Many(others()), torch.randn(2, 4, 8, 9), sizes(2), torch.randn(1, 4, 11, 7))
