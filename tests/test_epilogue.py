"""activation(L-conv + residual) against its parts: values, gradients of every argument, second order, refusals."""

import pytest
import torch
from problems import other_problems, problems
from torch.nn import functional as F

import lconv_fast as lc
import lconv_fast.form.fused as fused
from lconv_fast.ops.geometry import Geometry

PARTS = {None: lambda z: z, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
KINDS = [
    p for p in [*problems(), *other_problems()] if p.ndim == 2 and p.mode in ("zeros", "reflect") and p.accuracy == 2
]
KINDS = [p for p in KINDS if p.kind not in ("graph", "incidence")]


def arguments(problem, stride, dtype=torch.float64):
    generators = problem.make(problem.numbers(dtype), learnable=True)
    f = torch.randn(2, 4, *problem.grid, dtype=dtype, requires_grad=True)
    weight = torch.randn(problem.count + 1, 6, 2, dtype=dtype, requires_grad=True)
    bias = torch.randn(6, dtype=dtype, requires_grad=True)
    sizes = [-(-size // stride) for size in problem.grid]
    return generators, f, weight, bias, torch.randn(2, 6, *sizes, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("activation", PARTS, ids=str)
@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_is_its_parts(problem, activation):
    torch.manual_seed(0)
    for stride, with_residual in ((1, True), (1, False), (2, True)):
        generators, f, weight, bias, residual = arguments(problem, stride)
        extra = {"stride": stride, "groups": 2}
        z = lc.functional.lconv(f, weight, generators, bias, **extra)
        expected = PARTS[activation](z + residual if with_residual else z)
        got = lc.functional.lconv(
            f, weight, generators, bias, **extra, residual=residual if with_residual else None, activation=activation
        )
        assert torch.equal(got, expected)
        inputs = [f, weight, bias, *generators.parameters(), *([residual] if with_residual else [])]
        g = torch.randn_like(expected)
        ours = torch.autograd.grad(got, inputs, g, create_graph=True)
        theirs = torch.autograd.grad(expected, inputs, g, create_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        second = [sum(p.square().sum() for p in gradients[:2]) for gradients in (ours, theirs)]
        for a, b in zip(*(torch.autograd.grad(s, [f, weight]) for s in second), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", PARTS, ids=str)
def test_modules(activation):
    """Batched and not, under autocast, compiled, exported and lowered; arguments stay as they were."""
    layer = lc.LConv2d(3, 5, activation=activation)
    plain = lc.LConv2d(3, 5)
    plain.load_state_dict(layer.state_dict())
    x, residual = torch.randn(2, 3, 8, 9), torch.randn(2, 5, 8, 9)
    kept = residual.clone()
    expected = PARTS[activation](plain(x) + residual)
    assert torch.equal(layer(x, residual), expected) and torch.equal(residual, kept)
    assert torch.equal(layer(x[0], residual[0]), expected[0])
    assert torch.equal(layer(x), PARTS[activation](plain(x)))
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x, residual), expected)
    torch.testing.assert_close(torch.export.export(layer, (x, residual)).module()(x, residual), expected)
    torch.testing.assert_close(lc.convert.lower(layer)(x, residual), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, residual)
        torch.testing.assert_close(y, PARTS[activation](plain(x) + residual.bfloat16()))
    assert y.dtype == torch.bfloat16
    assert ("activation" in repr(layer)) == (activation is not None)


def test_halo_and_window():
    """The residual has the shape of the output, which is the input's without the halo."""
    g = lc.AffineGenerators.named("affine", 2)
    x, weight = torch.randn(1, 2, 9, 9, dtype=torch.float64), torch.randn(7, 2, 2, dtype=torch.float64)
    residual = torch.randn(1, 2, 9, 7, dtype=torch.float64)
    extra = {"halo": ((0, 0), (1, 1)), "window": ((3, 4), (20, 30))}
    z = lc.functional.lconv(x, weight, g.double(), **extra)
    y = lc.functional.lconv(x, weight, g, **extra, residual=residual, activation="silu")
    assert torch.equal(y, F.silu(z + residual))
    with pytest.raises(ValueError, match=r"residual of the output's shape \(1, 2, 9, 7\), got \(1, 2, 9, 9\)"):
        lc.functional.lconv(x, weight, g, **extra, residual=x)


def test_refusals():
    layer, x = lc.LConv2d(3, 5, activation="relu"), torch.randn(2, 3, 8, 9)
    for wrong in ("tanh", ""):
        with pytest.raises(ValueError, match="activation: expected None or one of relu, gelu, silu"):
            lc.LConv2d(3, 5, activation=wrong)
    for wrong in (torch.relu, 1, True):
        with pytest.raises(TypeError, match="activation: expected None or one of"):
            lc.functional.lconv(x, layer.weight, layer.generators, activation=wrong)
    for wrong, kind in (
        (x, ValueError),
        (torch.randn(5, 8, 9), ValueError),
        (torch.randn(1, 5, 8, 9), ValueError),
        (torch.randn(2, 5, 8, 9).double(), TypeError),
        (torch.randn(2, 5, 8, 9, device="meta"), TypeError),
        (1.0, TypeError),
    ):
        with pytest.raises(kind, match="LConv2d: expected residual"):
            layer(x, wrong)
    with pytest.raises(ValueError, match="expected no activation"):
        lc.convert.to_conv(layer)


@pytest.mark.parametrize("activation", PARTS, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_operator_of_gpus_is_its_parts(activation, with_residual, monkeypatch):
    """Values, gradients and gradients of gradients of lconv_fast::finished, which calls take on a GPU."""
    if activation is None and not with_residual:
        return
    torch.manual_seed(0)
    generators = lc.AffineGenerators.named("se", 2, learnable=True)
    shapes = ((2, 4, 5, 6), (4, 6, 4), (6,), (2, 6, 5, 6))
    f, weight, bias, residual = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)
    inputs = [f, weight, bias, *generators.parameters(), *([residual] if with_residual else [])]
    extra = {"residual": residual if with_residual else None, "activation": activation}
    u, found = torch.randn(2, 6, 5, 6).bfloat16(), []
    for on_gpu in (False, True):
        monkeypatch.setattr(fused, "on_gpu", lambda input, on_gpu=on_gpu: on_gpu)
        y = lc.functional.lconv(f, weight, generators, bias, **extra)
        assert ("finished" in type(y.grad_fn).__name__) == on_gpu
        first = torch.autograd.grad(y, inputs, u, retain_graph=True)
        again = torch.autograd.grad(y, inputs, u, create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in again[:2]), [f, weight])
        found.append((y, *first, *again, *second))
        with torch.no_grad():
            assert torch.equal(lc.functional.lconv(f, weight, generators, bias, **extra), y)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item())


def test_traces_of_the_operator_of_gpus(monkeypatch):
    monkeypatch.setattr(fused, "on_gpu", lambda input: True)
    layer = lc.LConv2d(4, 6, activation="silu").bfloat16()
    x = torch.randn(2, 4, 5, 6).bfloat16().requires_grad_()
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    u = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, [x, *layer.parameters()], u),
        torch.autograd.grad(expected, [x, *layer.parameters()], u),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    program = torch.export.export(layer, (x.detach(),), strict=False)
    assert not any("finished" in str(node.target) for node in program.graph.nodes)
    v, stencil = layer.generators.coefficients(), layer.generators.stencil()
    geometry = Geometry.of(stencil, (5, 6), (1, 1), 1)
    arguments = (x, layer.weight, v, layer.bias, torch.randn_like(expected), "gelu", True, *geometry, True)
    torch.library.opcheck(
        torch.ops.lconv_fast.finished,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
