"""The ways through an operator: that each is taken where it should be, and that they agree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import relative_rms

import lconv_fast as lc
from lconv_fast import _C
from lconv_fast.ops import reference
from lconv_fast.ops.boundary import PADDING_MODES, PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry, Stencil

CENTRAL = {n: [sign * (a == b) for a in range(n) for sign in (-1, 1) for b in range(n)] for n in (1, 2, 3)}


def plan(count, spatial, kind=CoefficientKind.AFFINE, taps=None, batch=4):
    n = len(spatial)
    taps, components = taps or CENTRAL[n], tuple(a for a in range(n) for _ in range(2))
    stencil = Stencil(
        kind, tuple(taps[j : j + n] for j in range(0, len(taps), n)), (1.0,) * 2 * n, components, PaddingMode.ZEROS
    )
    return _C.plan(count, batch, *Geometry.of(stencil, spatial, [1] * n, 1))


def test_products_a_point():
    """The basis of a row takes 1 + 2 n products, 3 n transposed, once there are more generators than that."""
    for spatial in ((4096,), (256, 256), (64, 64, 64)):
        n = len(spatial)
        many, few = plan(n * (n + 1) + 3, spatial), plan(2 * n - 1, spatial)
        assert many["forward"]["row_basis"] and many["forward"]["products"] == 1 + 2 * n
        assert many["weight gradient"]["row_basis"] and many["weight gradient"]["products"] == 1 + 2 * n
        assert many["input gradient"]["row_basis"] and many["input gradient"]["products"] == 3 * n
        for chosen in few.values():
            assert not chosen["row_basis"] and chosen["products"] == 2 * n
    # Matrices that change from row to row do not pay on short rows, and a field has no basis.
    assert not plan(6, (256, 4))["forward"]["row_basis"]
    assert not plan(6, (256, 256), kind=CoefficientKind.SAMPLED)["forward"]["row_basis"]
    # A difference along another axis than its own.
    assert not plan(6, (256, 256), taps=[1, 1, -1, -1, 0, 1, 0, -1])["forward"]["row_basis"]


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spatial", [(200,), (9, 67), (5, 6, 40)], ids=str)
def test_basis_of_a_row_agrees_with_the_reference(spatial, channels_last, mode):
    """Output and all gradients, by the kernels' basis of a row and by the plain reference; strides and groups too."""
    n, stride, groups = len(spatial), 2 if mode == "circular" else 1, 2
    count = n * (n + 1) + 1
    generators = lc.AffineGenerators(
        torch.randn(count, n, n, dtype=torch.float64), torch.randn(count, n, dtype=torch.float64), padding_mode=mode
    )
    geometry = Geometry.of(generators.stencil(), spatial, [stride] * n, groups)
    ways = _C.plan(count, 3, *geometry)
    assert ways["forward"]["row_basis"] and ways["weight gradient"]["row_basis"] and ways["input gradient"]["row_basis"]
    output = [(size - 1) // stride + 1 for size in spatial]
    x, g = torch.randn(3, 6, *spatial, dtype=torch.float64), torch.randn(3, 10, *output, dtype=torch.float64)
    if channels_last:
        x, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, g))
    w, v = torch.randn(count + 1, 10, 3, dtype=torch.float64), generators.coefficients()
    calls = [("apply", (x, w, v, None, *geometry, True, False)), ("gram", (x, g, v, *geometry, False))]
    if mode in ("zeros", "circular"):
        calls.append(("apply", (g, w, v, None, *geometry, True, True)))
    for name, arguments in calls:
        expected = getattr(reference, name)(*arguments)
        assert relative_rms(getattr(torch.ops.lconv_fast, name)(*arguments), expected) < 1e-13


@pytest.mark.parametrize("count", [1, 3, 6])
def test_gradients_of_affine_numbers_by_either_way(count):
    """One gram in the basis of affine fields, or correlate: whether the weight needs its gradient decides for some n_L,
    and must not change the result."""
    numbers = [torch.randn(count, 2, 2, dtype=torch.float64), torch.randn(count, 2, dtype=torch.float64)]
    generators = lc.AffineGenerators(*numbers, learnable=True)
    x = torch.randn(2, 3, 8, 40, dtype=torch.float64)
    w = torch.randn(count + 1, 4, 3, dtype=torch.float64)
    u = torch.randn(2, 4, 8, 40, dtype=torch.float64)
    parameters = (generators.matrix, generators.shift)
    alone = torch.autograd.grad(lc.functional.lconv(x, w, generators), parameters, u)
    w.requires_grad_()
    *both, _ = torch.autograd.grad(lc.functional.lconv(x, w, generators), (*parameters, w), u)
    for a, b in zip(alone, both, strict=True):
        assert relative_rms(a, b) < 1e-13


# Relative RMS against float64 on the same numbers; half types round the result once, pairs of bfloat16 the rows too.
LARGEST_ERRORS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("g_last", [False, True])
@pytest.mark.parametrize("spatial", [(131,), (3, 109), (2, 3, 100)], ids=str)
def test_few_channels_on_long_lines_in_any_layout(spatial, x_last, g_last):
    """Strips, and what they leave to tiles: channels-first data are turned on the way, from half a vector on."""
    n = len(spatial)
    for dtype, tolerance in LARGEST_ERRORS.items():
        for mode, ins, outs in (("zeros", 8, 8), ("reflect", 16, 24), ("circular", 12, 32), ("replicate", 33, 17)):
            own = dtype if dtype.itemsize > 2 else torch.float32
            generators = lc.AffineGenerators.named("affine", n, padding_mode=mode).to(own)
            count, v = generators.num_generators, generators.coefficients()
            geometry = Geometry.of(generators.stencil(), spatial, [1] * n, 1)
            x, g = (torch.randn(3, c, *spatial, dtype=dtype) for c in (ins, outs))
            x, g = (
                t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t for t, last in ((x, x_last), (g, g_last))
            )
            w, b = torch.randn(count + 1, outs, ins, dtype=dtype), torch.randn(outs, dtype=dtype)
            calls = [("apply", (x, w, v, b, *geometry, True, False)), ("gram", (x, g, v, *geometry, True))]
            calls.append(("correlate", (x, w, g, *geometry)))
            if mode in ("zeros", "circular"):
                calls.append(("apply", (g, w, v, None, *geometry, True, True)))
            for name, arguments in calls:
                wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
                found = getattr(torch.ops.lconv_fast, name)(*arguments)
                assert relative_rms(found.double(), getattr(reference, name)(*wide)) < tolerance, (name, mode)


SMALLER_TILES = """
import torch
import lconv_fast as lc
from lconv_fast import _C, form
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry
from problems import relative_rms

assert _C.second_level_cache_bytes() == 2**17
torch.manual_seed(0)
for last in (False, True):
    for basis in ("se", "affine"):
        generators = lc.AffineGenerators.named(basis, 2).double()
        count, v = generators.num_generators, generators.double().coefficients()
        geometry = Geometry.of(generators.stencil(), (7, 230), [1, 1], 1)
        x, g = (torch.randn(2, c, 7, 230, dtype=torch.float64) for c in (5, 19))
        if last:
            x, g = (t.to(memory_format=torch.channels_last) for t in (x, g))
        w = torch.randn(count + 1, 19, 5, dtype=torch.float64)
        calls = [("apply", (x, w, v, None, *geometry, True, False)), ("apply", (g, w, v, None, *geometry, True, True)),
                 ("gram", (x, g, v, *geometry, True)), ("correlate", (x, w, g, *geometry))]
        for name, arguments in calls:
            found, expected = (getattr(where, name)(*arguments) for where in (torch.ops.lconv_fast, reference))
            assert relative_rms(found, expected) < 1e-13, (name, basis, last)
"""


# Channels-first data with channels enough to be transposed on the way in, in slabs of a line or two.
LINE_STORE = """
import torch
import lconv_fast as lc
from lconv_fast import _C
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry
from problems import relative_rms

assert _C.second_level_cache_bytes() == 2**14
torch.manual_seed(0)
grids = ((5, 9, 11), 1, 1), ((4, 5, 17), 2, 2), ((13, 50), 1, 1)
for spatial, stride, groups in grids:
    n = len(spatial)
    for mode in ("zeros", "circular", "replicate", "reflect"):
        for generators in (
            lc.AffineGenerators.named("rotation", n, padding_mode=mode, accuracy=4 if min(spatial) > 4 else 2).double(),
            lc.FieldGenerators(torch.randn(2, n, *spatial, dtype=torch.float64), padding_mode=mode),
        ):
            count, v = generators.num_generators, generators.coefficients()
            geometry = Geometry.of(generators.stencil(), spatial, [stride] * n, groups)
            output = [(size - 1) // stride + 1 for size in spatial]
            x = torch.randn(2, 18 * groups, *spatial, dtype=torch.float64)
            g = torch.randn(2, 17 * groups, *output, dtype=torch.float64)
            w = torch.randn(count + 1, 17 * groups, 18, dtype=torch.float64)
            calls = [("apply", (x, w, v, None, *geometry, True, False)), ("gram", (x, g, v, *geometry, True)),
                     ("correlate", (x, w, g, *geometry))]
            if mode in ("zeros", "circular"):
                calls.append(("apply", (g, w, v, None, *geometry, True, True)))
            for name, arguments in calls:
                found, expected = (getattr(where, name)(*arguments) for where in (torch.ops.lconv_fast, reference))
                assert relative_rms(found, expected) < 1e-13, (name, spatial, mode)
                torch.set_num_threads(2)
                assert torch.equal(getattr(torch.ops.lconv_fast, name)(*arguments), found), (name, spatial, mode)
                torch.set_num_threads(1)
"""


@pytest.mark.parametrize(("program", "cache"), [(SMALLER_TILES, 2**17), (LINE_STORE, 2**14)], ids=["tiles", "lines"])
def test_work_follows_the_cache(program, cache):
    """A smaller second-level cache gives smaller tiles and fewer lines at a time, and the same result."""
    environment = os.environ | {"LCONV_FAST_CACHE_BYTES": str(cache), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_explain(capsys):
    """It says nothing by itself: printed, it stands there once."""
    layer = lc.LConv2d(32, 64, "affine", stride=2)
    found = lc.explain(layer, (4, 32, 256, 256))
    assert capsys.readouterr().out == "" and repr(found) == str(found) and str(found).startswith("LConv2d: (4, 32")
    forward, adjoint, weight = found.steps
    assert found.output_shape == (4, 64, 128, 128) == tuple(layer(torch.randn(4, 32, 256, 256)).shape)
    points = 4 * 128 * 128
    assert forward.flops == 2 * forward.products * points * 32 * 64 and forward.products == 5
    assert adjoint.flops == 2 * adjoint.products * 4 * points * 32 * 64 and adjoint.products == 6
    assert forward.bytes_written == points * 64 * 4 and weight.bytes_written == 7 * 64 * 32 * 4
    assert found.bytes_held == 6 * 2 * 3 * 4
    assert lc.explain(lc.LConv1d(2, 3, "translation"), (2, 9)).output_shape == (3, 9)


def test_explain_refuses():
    with pytest.raises(TypeError, match="expected a layer with generators on a grid, got Linear"):
        lc.explain(torch.nn.Linear(2, 2), (1, 2))
    with pytest.raises(
        ValueError, match=r"input_shape: expected \(N, 3, \*spatial\) with 2 spatial axes, got \(1, 4, 8, 8\)"
    ):
        lc.explain(lc.LConv2d(3, 3), (1, 4, 8, 8))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_thousand_runs_give_the_same_bits(channels_last):
    layer = lc.LConv2d(5, 7, "similitude", learnable=True)
    x = torch.randn(2, 5, 24, 40, requires_grad=True)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()

    def run():
        y = layer(x)
        return (y.detach(), *torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))

    first = run()
    for _ in range(1000):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
