"""activation(L-conv + residual) against its parts: values, gradients of every argument, second order, refusals."""

import pytest
import torch
from problems import other_problems, problems
from torch.nn import functional as F

import lconv_fast as lc

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
