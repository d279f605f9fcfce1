"""What PyTorch does to operators: opcheck, compile, export, autocast, checkpointing."""

import pytest
import torch
from problems import Problem, relative_rms, results
from torch.utils.checkpoint import checkpoint

import lconv_fast as lc
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry

PROBLEMS = [
    Problem("affine", 2, "reflect"),
    Problem("field", 1, "zeros"),
    Problem("stencil", 3, "circular"),
    Problem("constant", 2, "replicate"),
]


def operator_calls(problem, dtype=torch.float64, channels_last=False):
    """Arguments for each operator, and for the transposed apply; where it folds, on the extended array."""
    generators = problem.make(problem.numbers(dtype))
    stride = (2, *[1] * (problem.ndim - 1))
    geometry = Geometry.of(generators.stencil(), problem.grid, stride, 2)
    v = generators.coefficients().clone()
    f = torch.randn(2, 6, *problem.grid, dtype=dtype)
    w = torch.randn(problem.count + 1, 4, 3, dtype=dtype)
    g = torch.randn(2, 4, *[-(-n // s) for n, s in zip(problem.grid, stride, strict=True)], dtype=dtype)
    if channels_last:
        f, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (f, g))
    bias = torch.randn(4, dtype=dtype)
    adjoint, array = geometry, f
    if problem.mode not in ("zeros", "circular"):
        adjoint = geometry.extended()
        halo = zip(adjoint.halo[::2], adjoint.halo[1::2], strict=True)
        array = f.new_empty(2, 6, *[n + sum(h) for n, h in zip(problem.grid, halo, strict=True)]).normal_()
    ops = torch.ops.lconv_fast
    return [
        (ops.apply.default, (f, w, v, bias, *geometry, True, False)),
        (ops.apply.default, (g, w, v, None, *adjoint, True, True)),
        (ops.gram.default, (f, g, v, *geometry, True)),
        (ops.gram.default, (f, g, v, *geometry, False)),
        (ops.correlate.default, (f, w, g, *geometry)),
        (ops.backward.default, (g, array, w, v, *adjoint, True)),
    ]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_opcheck(problem):
    for op, arguments in operator_calls(problem, channels_last=problem.ndim == 2):
        differentiable = tuple(
            a.requires_grad_() if isinstance(a, torch.Tensor) else list(a) if isinstance(a, tuple) else a
            for a in arguments
        )
        torch.library.opcheck(op, differentiable)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_operators_agree_with_the_reference(problem, channels_last):
    for op, arguments in operator_calls(problem, channels_last=channels_last):
        found, expected = op(*arguments), getattr(reference, op._schema.name.split("::")[1])(*arguments)
        for ours, theirs in zip(results(found), results(expected), strict=True):
            assert relative_rms(ours, theirs) < 1e-13


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_operators_own_gradients(problem):
    """Called directly, the operators are differentiable too."""
    for op, arguments in operator_calls(problem):
        tensors = [k for k, a in enumerate(arguments) if isinstance(a, torch.Tensor)]

        def call(*values, op=op, arguments=arguments, tensors=tensors):
            full = list(arguments)
            for k, value in zip(tensors, values, strict=True):
                full[k] = value
            return op(*full)

        values = [arguments[k].detach().requires_grad_() for k in tensors]
        torch.autograd.gradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_operators_map_over_examples(problem):
    """torch.vmap of direct calls, over the data alone and over all tensors."""
    for op, (first, *arguments) in operator_calls(problem):
        data = torch.stack([first, 2 * first, -first])
        found = torch.vmap(lambda t, op=op, arguments=arguments: op(t, *arguments))(data)
        tensors = [k for k, a in enumerate(arguments) if isinstance(a, torch.Tensor)]

        def all_mapped(t, *others, op=op, arguments=arguments, tensors=tensors):
            full = list(arguments)
            for k, other in zip(tensors, others, strict=True):
                full[k] = other
            return op(t, *full)

        stacked = [torch.stack([arguments[k]] * 3) for k in tensors]
        again = torch.vmap(all_mapped)(data, *stacked)
        for k in range(3):
            expected = results(op(data[k], *arguments))
            for ours, also, theirs in zip(results(found), results(again), expected, strict=True):
                assert relative_rms(ours[k], theirs) < 1e-13 and relative_rms(also[k], theirs) < 1e-13


def layers():
    return [
        (lc.LConv2d(4, 6, "affine", learnable=True, stride=2, dtype=torch.float64), (2, 4, 9, 8)),
        (lc.LConv2d(4, 6, "se", padding_mode="reflect", factorized=True, dtype=torch.float64), (2, 4, 9, 8)),
        (lc.LConv1d(4, 4, "affine", groups=2, padding_mode="circular", dtype=torch.float64), (2, 4, 17)),
        (lc.LConv3d(2, 3, "rotation", accuracy=4, padding_mode="replicate", dtype=torch.float64), (2, 2, 5, 6, 7)),
        (
            lc.LConv2d(3, 3, lc.AffineGenerators.named("gl", learnable=True).double().transpose(), dtype=torch.float64),
            (1, 3, 8, 8),
        ),
    ]


@pytest.mark.parametrize("k", range(5))
def test_compile_without_graph_breaks(k):
    layer, shape = layers()[k]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    a = torch.autograd.grad(layer(x).pow(3).sum(), inputs)
    b = torch.autograd.grad(compiled(x).pow(3).sum(), inputs)
    assert relative_rms(compiled(x), layer(x)) < 1e-14
    assert all(relative_rms(p, q) < 1e-13 for p, q in zip(b, a, strict=True))


def test_compile_for_another_size():
    layer = lc.LConv2d(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 8, 9), (3, 3, 12, 7), (1, 3, 20, 20)):
        x = torch.randn(shape)
        assert relative_rms(compiled(x), layer(x)) < 1e-6


def test_inductor():
    layer, shape = layers()[0]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(torch.nn.Sequential(layer, torch.nn.ReLU()), fullgraph=True)
    y = compiled(x)
    assert relative_rms(y, layer(x).relu()) < 1e-13
    assert relative_rms(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(layer(x).relu().sum(), x)[0]) < 1e-13


@pytest.mark.parametrize("k", range(5))
def test_export(k):
    layer, shape = layers()[k]
    x = torch.randn(shape, dtype=torch.float64)
    program = torch.export.export(layer, (x,))
    assert any("lconv_fast.apply" in str(node.target) for node in program.graph.nodes)
    assert relative_rms(program.module()(x), layer(x)) < 1e-14


def test_autocast():
    layer = lc.LConv2d(8, 8, learnable=True)
    x = torch.randn(2, 8, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().pow(2).sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    with torch.no_grad():
        # input and weight are rounded, and the result
        assert relative_rms(y, layer(x)) < 5e-3


def test_activation_checkpointing():
    layer = lc.LConv2d(4, 4, learnable=True, dtype=torch.float64)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    a = torch.autograd.grad(layer(x).tanh().sum(), inputs)
    b = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).tanh().sum(), inputs)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_import_does_not_initialise_cuda():
    assert not torch.cuda.is_initialized()
