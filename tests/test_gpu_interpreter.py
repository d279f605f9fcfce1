"""The Triton kernels in Triton's interpreter against the plain reference in float64. No GPU is needed."""

import importlib.util
import itertools
import math
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need the package triton, which this platform may not have", allow_module_level=True)

from gpu_interpreter import TABLE, guarded, interpreted
from problems import MODES, TOLERANCE, Problem, problems, relative_rms, results

import lconv_fast as lc
from lconv_fast import form
from lconv_fast.epilogue import ACTIVATIONS
from lconv_fast.ops import reference
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry, Stencil
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tables import Table, tuned
from lconv_fast.ops.gpu.views import AFFINE_BASIS

OPERATORS = interpreted()


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def wide(t):
    return t.double() if isinstance(t, torch.Tensor) else t


def check(name, *arguments, tolerance=None, operators=OPERATORS):
    """An operator's kernel, on guarded arguments, against the reference in float64."""
    guards = [guarded(t) if isinstance(t, torch.Tensor) and t.numel() else t for t in arguments]
    found = getattr(operators, name)(*guards)
    expected = getattr(reference, name)(*map(wide, arguments))
    for ours, theirs in zip(results(found), results(expected), strict=True):
        assert ours.dtype == (arguments[0].dtype if name != "correlate" else ours.dtype)
        assert relative_rms(ours, theirs) < (tolerance or TOLERANCE[arguments[0].dtype]), name


def calls(generators, grid, dtype, stride=1, groups=1, ins=4, outs=3, batch=2, last=False, numbers=None):
    """Each operator's name and arguments."""
    geometry = Geometry.of(generators.stencil(), grid, [stride] * len(grid), groups)
    output = [(size - 1) // stride + 1 for size in grid]

    def data(channels, size):
        if last:
            return torch.randn(batch, *size, channels).to(dtype).movedim(-1, 1)
        return torch.randn(batch, channels, *size).to(dtype)

    f, g = data(ins * groups, grid), data(outs * groups, output)
    v = generators.coefficients().detach().to(numbers or dtype)
    w = (torch.randn(v.shape[0] + 1, outs * groups, ins) / (v.shape[0] * ins) ** 0.5).to(dtype)
    bias = torch.randn(outs * groups).to(dtype)
    yield "apply", (f, w, v, bias, *geometry, True, False)
    if generators.padding_mode in ("zeros", "circular"):
        yield "apply", (g, w, v, None, *geometry, True, True)
        yield "backward", (g, f, w, v, *geometry, True)
    yield "gram", (f, g, v, *geometry, True)
    yield "correlate", (f, w, g, *geometry)


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


class Marched:
    """Operators that note which marching kernels ran, with their stencils."""

    def __init__(self, table=TABLE):
        found = self.found = []

        class Noting(Launch):
            def __call__(self, programs, device, *arguments):
                if self.kernel.fn.__name__.startswith("march"):
                    found.append((self.kernel.fn.__name__, self.constants["stencil"]))
                super().__call__(programs, device, *arguments)

        self.operators = interpreted(table, Noting)

    @property
    def names(self):
        return [name for name, _ in self.found]

    def check(self, name, *arguments, tolerance=None):
        """L_i f is rounded to float16 before the products. The few numbers of an affine gradient are sums over all
        points that may cancel: what is rounded then weighs more."""
        check(
            name,
            *arguments,
            tolerance=tolerance or (1e-3 if name == "correlate" else None),
            operators=self.operators,
        )


@pytest.fixture
def marched():
    return Marched()


def march_calls(generators, size, dtype, ins, outs, groups=1):
    """The operators' calls that a marching kernel may serve: the data that it marches along have 32 k channels."""
    for i, o, names in ((ins, outs, ("forward", "gram", "correlate")), (outs, ins, ("transposed", "backward"))):
        for name, arguments in calls(generators, size, dtype, 1, groups, i, o, 1, True, torch.float32):
            role = ("transposed" if arguments[-1] else "forward") if name == "apply" else name
            if role in names:
                yield name, arguments


SIZES = [
    ((4, 70), 32, 20, 2),
    ((5, 3), 64, 64, 1),
    ((3, 4, 6), 32, 70, 1),
    ((3, 5), 96, 70, 1),
]  # and channels in, out, groups


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("kind", ["affine", "field"])
@pytest.mark.parametrize(("size", "ins", "outs", "groups"), SIZES, ids=str)
def test_march(kind, mode, size, ins, outs, groups, marched):
    """The marching kernels are those that run, on strips of rows, tiles of columns, 2D and 3D."""
    n = len(size)
    # Fields with divergence: L^T is not -L.
    generators = lc.AffineGenerators(torch.randn(2, n, n), torch.randn(2, n), padding_mode=mode)
    if kind == "field":
        generators = lc.FieldGenerators(torch.randn(2, n, *size), padding_mode=mode)
    for name, arguments in march_calls(generators, size, torch.float16, ins, outs, groups):
        marched.check(name, *arguments)
    names = marched.names
    # With more features than it takes, what makes both gradients at once leaves them to the others.
    both = outs <= 64
    assert names.count("march_backward_kernel") == both
    assert names.count("march_apply_kernel") == (2 if both else 3)
    # A field's own gradient is at every point: the tile kernel's.
    assert names.count("march_gram_kernel") == (1 if kind == "field" else 0 if n == 2 else 3)
    assert names.count("march_moments_kernel") == (2 if kind == "affine" and n == 2 else 0)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(("size", "count"), [((4, 5), 4), ((4, 5), 6), ((3, 3, 4), 12)], ids=str)
def test_march_in_the_basis_of_affine_fields(size, count, mode, marched):
    n = len(size)
    generators = lc.AffineGenerators(torch.randn(count, n, n), torch.randn(count, n), padding_mode=mode)
    for name, arguments in march_calls(generators, size, torch.float16, 32, 32):
        marched.check(name, *arguments)
    stencils = [stencil for name, stencil in marched.found if name in ("march_apply_kernel", "march_backward_kernel")]
    assert len(stencils) == 3
    assert all(s.kind == AFFINE_BASIS.value and s.generators == n * (n + 1) for s in stencils)


@pytest.mark.parametrize(("size", "count"), [((4, 5), 6), ((3, 3, 4), 6)], ids=str)
def test_march_with_many_fields(size, count, marched):
    """Their sums take several launches: as many rows each as the registers of a Hopper hold."""
    generators = lc.FieldGenerators(torch.randn(count, len(size), *size))
    for name, arguments in march_calls(generators, size, torch.float16, 32, 32):
        marched.check(name, *arguments)
    most = TABLE.gram_marches[len(size), False].most_fields[1]
    assert marched.names.count("march_gram_kernel") == 2 * math.ceil((count + 1) / most) > 2  # gram, and backward's


def test_no_march_where_it_would_waste():
    """Images narrower than half a tile of columns, and partial sums that are large beside the data."""
    generators = lc.AffineGenerators.named("rotation", 2)
    marched = Marched(Table())
    for name, arguments in march_calls(generators, (3, 5), torch.float16, 32, 32):
        marched.check(name, *arguments)
    assert not marched.found
    marched = Marched(TABLE._replace(most_sum_bytes=0))
    for name, arguments in march_calls(generators, (3, 5), torch.float16, 32, 32):
        if name == "backward":
            marched.check(name, *arguments)
    assert marched.names == ["march_apply_kernel", "march_gram_kernel"]


def test_march_in_bfloat16(marched):
    for count in (3, 6):
        generators = lc.AffineGenerators(torch.randn(count, 2, 2), torch.randn(count, 2))
        for name, arguments in march_calls(generators, (18, 5), torch.bfloat16, 32, 32):
            marched.check(name, *arguments, tolerance=8e-3)
    assert len(marched.found) == 10


def test_march_without_the_identity(marched):
    for n, size in ((2, (5, 7)), (3, (3, 2, 5))):
        generators = lc.AffineGenerators.named("translation", n)
        for name, arguments in march_calls(generators, size, torch.float16, 32, 32):
            if name != "correlate":
                position = len(arguments) - (2 if name == "apply" else 1)
                marched.check(name, *arguments[:position], False, *arguments[position + 1 :])
    assert len(marched.found) == 8


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS], ids=str)
def test_march_with_an_epilogue(activation, marched):
    """activation(z + residual) and z in the layer's own pass; as parts where the residual is laid out otherwise."""
    generators = lc.AffineGenerators.named("se", 2)
    _, (f, w, v, bias, *geometry, identity, _) = next(march_calls(generators, (4, 70), torch.float16, 32, 64))
    expected = reference.apply(*map(wide, (f, w, v, bias)), *geometry, identity, False)
    plain = torch.randn(1, 64, 4, 70).half()
    last = guarded(plain.movedim(1, -1).contiguous()).movedim(-1, 1)
    for residual, keep in ((None, True), (last, False), (last, True), (plain, True)):
        z = expected if residual is None else expected + residual.double()
        y, kept = marched.operators.finished(f, w, v, bias, residual, activation, keep, *geometry, identity)
        truth = z if activation is None else getattr(torch.nn.functional, activation)(z)
        assert relative_rms(y, truth) < TOLERANCE[torch.float16]
        assert y.dtype == torch.float16 and y.stride() == expected_strides(y)
        assert relative_rms(kept, z) < TOLERANCE[torch.float16] if keep else kept.numel() == 0
    assert marched.names == ["march_apply_kernel"] * 4


def expected_strides(y):
    return torch.empty_like(y, memory_format=torch.channels_last).stride()


def test_march_with_unequal_steps(marched):
    """Differences other than (f(x + 1) - f(x - 1)) / 2, which only direct calls have."""
    for kind, v in (
        (CoefficientKind.AFFINE, torch.randn(6, 2, 3)),
        (CoefficientKind.AFFINE, torch.randn(2, 2, 3)),
        (CoefficientKind.SAMPLED, torch.randn(2, 2, 4, 5)),
    ):
        stencil = Stencil(
            kind,
            ((-1, 0), (1, 0), (0, 1), (0, -1)),
            (-0.5, 0.5, 2.0, -2.0),
            (0, 0, 1, 1),
            PaddingMode.ZEROS,
            2.0,
        )
        geometry = Geometry.of(stencil, (4, 5), [1, 1], 1)
        f, g = (torch.randn(2, 4, 5, 32).half().movedim(-1, 1) for _ in range(2))
        w = (torch.randn(v.shape[0] + 1, 32, 32) / 10).half()
        marched.check("apply", f, w, v, None, *geometry, True, False)
        marched.check("apply", g, w, v, None, *geometry, True, True)
        marched.check("backward", g, f, w, v, *geometry, True)
        marched.check("gram", f, g, v, *geometry, True)
        marched.check("correlate", f, w, g, *geometry)
    assert len(marched.found) == 14


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
