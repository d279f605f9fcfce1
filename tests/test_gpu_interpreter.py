"""The Triton kernels in Triton's interpreter against the plain reference in float64. No GPU is needed."""

import importlib.util
import itertools
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need the package triton, which this platform may not have", allow_module_level=True)

from gpu_interpreter import OPERATORS, TABLE, calls, check, fresh_memory_is_nan, interpreted
from problems import MODES, Problem, problems, relative_rms, results

import lconv_fast as lc
from lconv_fast import form
from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.gpu.tables import Table, tuned

FIXTURES = (fresh_memory_is_nan,)  # of every test here


def chosen() -> list:
    """Every kind with every boundary and every number of axes, each pair of them once; the whole cross takes long."""
    axes = {mode: {0: 1, 1: 2, 2: 3, 3: 2} for mode in MODES}
    kinds = list(dict.fromkeys(problem.kind for problem in problems()))
    found = []
    for problem in problems():
        shown = (
            problem.accuracy == 2
            and problem.ndim == axes[problem.mode][(kinds.index(problem.kind) + MODES.index(problem.mode)) % 4]
        )
        shown |= problem.accuracy == 4 and problem.kind == "affine" and problem.mode == "zeros"
        found.append(pytest.param(problem, id=str(problem), marks=() if shown else pytest.mark.full))
    return found


@pytest.mark.parametrize("problem", chosen())
def test_every_kind_of_problem(problem):
    """float64 and float32, contiguous and channels-last, stride and groups, in turn."""
    dtype = torch.float64 if problem.count % 2 else torch.float32
    generators = problem.make(problem.numbers(dtype))
    stride, groups, last = (2, 2, False) if problem.mode in ("circular", "reflect") else (1, 1, True)
    for name, arguments in calls(generators, problem.grid, dtype, stride, groups, last=last):
        check(name, *arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["affine", "stencil"])
def test_half_types(kind, dtype):
    """The generators keep float32, as under autocast. The interpreter cuts a float32 number off where a GPU rounds it
    to bfloat16: twice the error, in each factor and in the result."""
    problem = Problem(kind, 2, "zeros")
    generators = problem.make(problem.numbers(torch.float32))
    for name, arguments in calls(generators, problem.grid, dtype, ins=20, outs=7, last=True, numbers=torch.float32):
        check(name, *arguments, tolerance=8e-3 if dtype == torch.bfloat16 else None)


def test_more_channels_than_a_tile_has():
    """Several blocks of channels in and out, several tiles of points, several parts of a sum."""
    generators = lc.AffineGenerators.named("rotation", 2)
    for name, arguments in calls(generators, (7, 11), torch.float32, ins=70, outs=67, batch=1):
        check(name, *arguments)


def test_more_generators_than_are_unrolled():
    generators = lc.AffineGenerators(torch.randn(9, 2, 2), torch.randn(9, 2))
    for name, arguments in calls(generators, (5, 7), torch.float32):
        check(name, *arguments)


def test_many_taps():
    """More than are held in registers, and reaching beyond a side of the grid."""
    taps = list(itertools.product((-3, 0, 2), (-1, 0, 5)))
    for mode in MODES[:3]:
        generators = lc.StencilGenerators(torch.randn(2, len(taps), 4, 5), taps, padding_mode=mode)
        for name, arguments in calls(generators, (4, 5), torch.float32, batch=1):
            check(name, *arguments)


@pytest.mark.parametrize("transposed", [False, True])
def test_halo(transposed):
    """An array with points around the grid: what replicate and reflect are transposed on."""
    generators = lc.AffineGenerators.named("se", 2, padding_mode="replicate", accuracy=4)
    geometry = Geometry.of(generators.stencil(), (6, 5), [1, 1], 1).extended()
    w = torch.randn(4, 3, 2)
    f = torch.randn(2, 3, 6, 5) if transposed else torch.randn(2, 2, 10, 9)
    check("apply", f, w, generators.coefficients(), None, *geometry, True, transposed)


def test_without_the_identity():
    generators = lc.AffineGenerators.named("se", 2)
    for name, arguments in calls(generators, (5, 7), torch.float32):
        if name != "correlate":
            position = len(arguments) - (2 if name == "apply" else 1)
            check(name, *arguments[:position], False, *arguments[position + 1 :])


def test_offsets_past_32_bits():
    """The kernels with 64-bit offsets, on strides as only very large tensors have them."""
    generators = lc.AffineGenerators.named("se", 2)
    long = interpreted(TABLE._replace(least_long_index=0))
    for name, arguments in calls(generators, (5, 7), torch.float32):
        check(name, *arguments, operators=long)
    for name, arguments in calls(generators, (3, 20), torch.float16, 1, 1, 32, 32, 1, True, torch.float32):
        check(name, *arguments, operators=long)


def test_empty():
    generators = lc.AffineGenerators.named("se", 2)
    for name, arguments in calls(generators, (5, 7), torch.float32, batch=0):
        found, expected = (results(getattr(where, name)(*arguments)) for where in (OPERATORS, torch.ops.lconv_fast))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape and (not ours.numel() or ours.eq(0).all())


def test_derivatives_of_every_order_use_the_kernels(monkeypatch):
    """Value, gradients and gradients of gradients of the layer with the kernels in the operators' place, float64."""
    monkeypatch.setattr(torch.ops, "lconv_fast", OPERATORS)
    generators = lc.AffineGenerators.named("rotation", 2, learnable=True).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def layer(x, w, matrix):
        v = torch.cat([matrix, torch.zeros(1, 2, 1, dtype=torch.float64)], 2)
        return form.lconv(v, x, w, None, generators.stencil(), (1, 1), 1)

    matrix = generators.matrix.detach().requires_grad_()
    y = layer(x, w, matrix)
    first = torch.autograd.grad(y.sin().sum(), (x, w, matrix), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w, matrix))
    monkeypatch.undo()
    y_true = layer(x, w, matrix)
    first_true = torch.autograd.grad(y_true.sin().sum(), (x, w, matrix), create_graph=True)
    second_true = torch.autograd.grad(sum(g.square().sum() for g in first_true), (x, w, matrix))
    for ours, theirs in zip((y, *first, *second), (y_true, *first_true, *second_true), strict=True):
        assert relative_rms(ours, theirs) < 1e-12


def test_traced_on_a_gpu_that_is_not_there():
    """Shapes, devices and memory formats of the operators, on fake CUDA tensors; such tensors have no autograd here."""
    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        numbers = [torch.empty(3, *shape, device="cuda") for shape in ((2, 2), (2,))]
        generators = lc.AffineGenerators(*numbers)
        x = torch.empty(2, 4, 9, 8, device="cuda").to(memory_format=torch.channels_last)
        w = torch.empty(4, 6, 4, device="cuda")
        y = lc.functional.lconv(x, w, generators, stride=2)
        assert y.shape == (2, 6, 5, 4) and y.is_contiguous(memory_format=torch.channels_last)
        geometry = Geometry.of(generators.stencil(), (9, 8), [2, 2], 1)
        v, ops = generators.coefficients(), torch.ops.lconv_fast
        adjoint = ops.apply(y, w, v, None, *geometry, True, True)
        gram, correlated = ops.gram(x, y, v, *geometry, True), ops.correlate(x, w, y, *geometry)
        for found, like in ((adjoint, x), (gram, w), (correlated, v)):
            assert found.shape == like.shape and found.device.type == "cuda"


def test_without_triton(monkeypatch):
    from lconv_fast.ops import gpu

    monkeypatch.delitem(sys.modules, "lconv_fast.ops.gpu.dispatch")
    monkeypatch.delitem(sys.modules, "lconv_fast.ops.gpu.call")
    monkeypatch.delattr(gpu, "dispatch")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "triton.language", None)
    with pytest.raises(RuntimeError, match="tensors on a GPU need the package triton"):
        gpu.operators()


def test_tuned_tiles(tmp_path, monkeypatch):
    """A user's own file overrides the table, for the card it names; a broken one is no file."""
    file = tmp_path / "tuned.json"
    monkeypatch.setenv("LCONV_FAST_TUNED", str(file))
    usual = Table().tile("apply", torch.bfloat16)
    for text, expected in (
        ('{"a card": {"apply half": [32, 32, 16, 2]}}', (32, 32, 16, 2)),
        ('{"another card": {"apply half": [32, 32, 16, 2]}}', usual[:4]),
        ("{", usual[:4]),
        ('{"a card": {"apply half": 3}}', usual[:4]),
    ):
        file.write_text(text)
        assert tuned("a card").tile("apply", torch.bfloat16)[:4] == expected


def test_refusals():
    """What Python's checks above the operators let pass only from direct calls."""
    generators = lc.AffineGenerators.named("se", 2)
    (_, (f, w, v, bias, *rest)), *_ = calls(generators, (5, 7), torch.float32)
    for changed, message in (
        ((f[:, :3], w, v, bias), "the shape of input"),
        ((f, w.double(), v, bias), "the type of weight"),
        ((f, w, v[:2], bias), "the shape of coefficients"),
        ((f, w, v, bias[:1]), "the shape of bias"),
        ((f.to("meta"), w, v, bias), "weight is on cpu, the data are on meta"),
        ((f.long(), w.long(), v, None), "expected float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPERATORS.apply(*changed, *rest)
