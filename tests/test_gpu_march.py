"""The marching kernels in Triton's interpreter: which of them runs, and results against the reference in float64."""

import importlib.util
import math

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need the package triton, which this platform may not have", allow_module_level=True)

from gpu_interpreter import TABLE, calls, check, fresh_memory_is_nan, guarded, interpreted, wide
from problems import TOLERANCE, relative_rms

import lconv_fast as lc
from lconv_fast.epilogue import ACTIVATIONS
from lconv_fast.generators import bases
from lconv_fast.ops import reference
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry, Stencil
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.tables import Table
from lconv_fast.ops.gpu.views import AFFINE_BASIS, TAP_BASIS

FIXTURES = (fresh_memory_is_nan,)  # of every test here


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
    assert names.count("march_gram_kernel") == (1 if kind == "field" or n == 2 else 3)
    assert names.count("march_moments_kernel") == (kind == "affine" and n == 2)


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


def stencils(n, count, mode):
    """Constant ones, on a few points near and one further away; one tap comes twice."""
    taps = [[2] + [0] * (n - 1), [0] * (n - 1) + [-1], [1] * n, [0] * n, [-1] + [0] * (n - 1), [1] * n]
    return lc.StencilGenerators(torch.randn(count, len(taps)), taps, padding_mode=mode)


def generators_of(name, n, mode):
    return stencils(n, 2, mode) if name == "stencils" else bases.named(name, n, padding_mode=mode)


@pytest.mark.parametrize(
    ("size", "ins", "outs", "groups", "mode", "name"),
    [
        ((4, 70), 32, 20, 2, "circular", "stencils"),
        ((5, 3), 64, 64, 1, "zeros", "stencils"),
        ((3, 4, 6), 32, 32, 1, "circular", "stencils"),
        ((3, 5), 64, 70, 1, "circular", "laplacian"),
        ((3, 2, 4), 32, 32, 1, "zeros", "laplacian"),
        ((4, 5), 32, 32, 1, "zeros", "second"),
    ],
    ids=str,
)
def test_march_of_constant_stencils(size, ins, outs, groups, mode, name, marched):
    generators = generators_of(name, len(size), mode)
    taps = len({*generators.stencil().taps, (0,) * len(size)})
    for operator, arguments in march_calls(generators, size, torch.float16, ins, outs, groups):
        marched.check(operator, *arguments)
    # Both gradients at once where their sums stay in registers.
    both = len(size) == 2 and ins == 32 and taps <= 5
    assert marched.names.count("march_backward_kernel") == both
    assert marched.names.count("march_apply_kernel") == (2 if both else 3)
    assert all(s.kind == TAP_BASIS.value and s.generators == taps - 1 for _, s in marched.found)


@pytest.mark.parametrize(
    ("size", "ins", "outs", "groups", "mode", "name"),
    [
        ((3, 70), 32, 20, 2, "circular", "laplacian"),
        ((3, 16), 64, 70, 1, "circular", "laplacian"),
        ((3, 80), 32, 32, 1, "zeros", "stencils"),
        ((2, 3, 16), 32, 32, 1, "zeros", "laplacian"),
        ((3, 16), 32, 32, 1, "zeros", "affine"),
        ((4, 6), 64, 32, 1, "circular", "se"),
        ((2, 3, 16), 32, 32, 1, "zeros", "rotation"),
    ],
    ids=str,
)
def test_march_on_contiguous_data(size, ins, outs, groups, mode, name, marched):
    """Lines that threads can shift, of a multiple of 16 points, and others; narrower and wider than a tile."""
    generators = generators_of(name, len(size), mode)
    for i, o, names in ((ins, outs, ("forward", "gram", "correlate")), (outs, ins, ("transposed",))):
        for operator, arguments in calls(generators, size, torch.float16, 1, groups, i, o, 1, False, torch.float32):
            role = ("forward", "transposed")[arguments[-1]] if operator == "apply" else operator
            if role in names:
                marched.check(operator, *arguments)
    affine = generators.stencil().kind == CoefficientKind.AFFINE
    # Coordinates jump where a circle closes; sums with all affine fields of three axes are too many.
    transposed = not (affine and mode == "circular")
    assert marched.names.count("march_planes_kernel") == 1 + transposed
    assert marched.names.count("march_planes_gram_kernel") == 2 * (not affine or len(size) == 2)


@pytest.mark.parametrize("activation", [None, "gelu"], ids=str)
def test_march_with_an_epilogue_on_contiguous_data(activation, marched):
    generators = bases.named("laplacian", 2)
    _, (f, w, v, bias, *geometry, identity, _) = next(calls(generators, (3, 16), torch.float16, 1, 1, 32, 64, 1))
    expected = reference.apply(*map(wide, (f, w, v, bias)), *geometry, identity, False)
    plain = guarded(torch.randn(1, 64, 3, 16).half())
    last = torch.randn(1, 3, 16, 64).half().movedim(-1, 1)
    for residual, keep in ((None, True), (plain, False), (last, True)):
        z = expected if residual is None else expected + residual.double()
        y, kept = marched.operators.finished(f, w, v, bias, residual, activation, keep, *geometry, identity)
        truth = z if activation is None else getattr(torch.nn.functional, activation)(z)
        assert relative_rms(y, truth) < TOLERANCE[torch.float16]
        assert y.is_contiguous()
        assert relative_rms(kept, z) < TOLERANCE[torch.float16] if keep else kept.numel() == 0
    assert marched.names == ["march_planes_kernel"] * 3


def test_contiguous_data_of_mixed_layouts_and_without_the_identity(marched):
    """g channels-last beside contiguous f goes to other kernels; f's own row drops out."""
    generators = lc.AffineGenerators.named("se", 2)
    for name, arguments in calls(generators, (3, 16), torch.float16, 1, 1, 32, 32, 1, False, torch.float32):
        if name == "gram":
            f, g, *rest = arguments
            before = len(marched.found)
            marched.check(name, f, g.movedim(1, -1).contiguous().movedim(-1, 1), *rest)
            assert len(marched.found) == before
        if name in ("apply", "gram"):
            position = len(arguments) - (2 if name == "apply" else 1)
            marched.check(name, *arguments[:position], False, *arguments[position + 1 :])
    assert marched.names == ["march_planes_kernel"] * 2 + ["march_planes_gram_kernel"]


def test_stencils_around_the_whole_grid_do_not_march(marched):
    generators = lc.StencilGenerators(torch.randn(1, 2), [[0, 0], [5, 0]], padding_mode="circular")
    for name, arguments in march_calls(generators, (4, 6), torch.float16, 32, 32):
        marched.check(name, *arguments)
    assert not marched.found


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
    for name, arguments in march_calls(stencils(2, 2, "zeros"), (5, 7), torch.float16, 32, 32):
        if name != "correlate":
            position = len(arguments) - (2 if name == "apply" else 1)
            marched.check(name, *arguments[:position], False, *arguments[position + 1 :])
    assert len(marched.found) == 12


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
