"""Bad input raises before any kernel runs: every message, with what came and what was expected."""

import math

import pytest
import torch

import lconv_fast as lc
from lconv_fast.generators import differences
from lconv_fast.ops.boundary import PADDING_MODES
from lconv_fast.ops.geometry import Geometry

lconv = lc.functional.lconv
AFFINE = lc.AffineGenerators.named("se")
X, W = torch.randn(2, 4, 5, 6), torch.randn(4, 8, 4)
EYE, ZERO = torch.zeros(1, 2, 2), torch.zeros(1, 2)

CASES = {
    "channels": (lambda: lc.LConv2d(64, 8)(torch.randn(8, 32, 9, 9)), ValueError, r"LConv2d: expected input with 64 channels, got \(8, 32, 9, 9\)"),
    "channels, functional": (lambda: lconv(X[:, :3], W, AFFINE), ValueError, r"lconv: expected input with 4 channels, got \(2, 3, 5, 6\)"),
    "channels, unbatched": (lambda: lc.LConv2d(4, 8)(torch.randn(3, 5, 6)), ValueError, r"LConv2d: expected input with 4 channels, got \(3, 5, 6\)"),
    "dimensions": (lambda: lc.LConv2d(4, 8)(torch.randn(2, 4, 5, 6, 7)), ValueError, r"LConv2d: expected input \(N, C, \*spatial\) with 2 spatial axes, or unbatched, got \(2, 4, 5, 6, 7\)"),
    "no points": (lambda: lconv(torch.randn(2, 4, 0, 6), W, AFFINE), ValueError, r"lconv: expected at least one point on each axis, got \(2, 4, 0, 6\)"),
    "input integer": (lambda: lc.LConv2d(4, 8)(torch.ones(2, 4, 5, 6, dtype=torch.int64)), TypeError, "LConv2d: expected input of a real floating-point type, got torch.int64"),
    "input complex": (lambda: lconv(X.to(torch.complex64), W, AFFINE), TypeError, "got torch.complex64"),
    "input no tensor": (lambda: lconv([1.0], W, AFFINE), TypeError, "lconv: expected input to be a tensor, got list"),
    "generators no object": (lambda: lconv(X, W, "se"), TypeError, "generators: expected a Generators object, got str"),
    "generators of a type": (lambda: lc.LConv2d(4, 8, 3), TypeError, "generators: expected a name or a Generators object, got int"),
    "kernel size": (lambda: lc.LConv3d(4, 8, kernel_size=3, dilation=2), TypeError, "LConv3d: an L-conv has no kernel_size and no dilation"),
    "padding": (lambda: lc.LConv3d(4, 8, 3, padding=1), TypeError, "an L-conv has no kernel_size and no padding"),
    "complex layer": (lambda: lc.LConv2d(4, 8, dtype=torch.complex64), TypeError, "dtype: expected a real floating-point type"),
    "groups no number": (lambda: lconv(X, W, AFFINE, groups="2"), TypeError, "groups: expected a positive integer, got '2'"),
    "stride beyond all": (lambda: lconv(X, W, AFFINE, stride=2**63), ValueError, "stride: expected a positive integer up to"),
    "no numbers": (lambda: lc.LConv2d(4, 8, lc.AffineGenerators(torch.full((1, 2, 2), math.nan), torch.zeros(1, 2))), ValueError, "generators: expected finite numbers"),
    "script": (lambda: torch.jit.script(lc.LConv2d(4, 8)), RuntimeError, "LConv2d: torch.jit.script does not compile"),
    "trace": (lambda: torch.jit.trace(lc.LConv2d(4, 8), X), RuntimeError, "LConv2d: torch.jit.trace keeps no lists"),
    "symbolic trace": (lambda: torch.fx.symbolic_trace(lc.LConv2d(4, 8)), TypeError, "LConv2d: torch.fx.symbolic_trace"),
    "weight rows": (lambda: lconv(X, W[:3], AFFINE), ValueError, r"weight: expected 4 matrices, W\^0 and one for each generator, got shape \(3, 8, 4\)"),
    "weight shape": (lambda: lconv(X, W[0], AFFINE), ValueError, r"weight: expected shape \(n_L \+ 1, C_out, C_in / groups\), got \(8, 4\)"),
    "weight no tensor": (lambda: lconv(X, None, AFFINE), TypeError, r"weight: expected a tensor .*, got NoneType"),
    "bias shape": (lambda: lconv(X, W, AFFINE, torch.randn(4)), ValueError, r"bias: expected shape \(8,\), got \(4,\)"),
    "bias dimensions": (lambda: lconv(X, W, AFFINE, torch.randn(8, 1)), ValueError, r"bias: expected shape \(C_out,\), got \(8, 1\)"),
    "weight dtype": (lambda: lconv(X, W.double(), AFFINE), TypeError, "weight: expected dtype torch.float32 as input, got torch.float64"),
    "bias dtype": (lambda: lconv(X, W, AFFINE, torch.randn(8).half()), TypeError, "bias: expected dtype torch.float32 as input, got torch.float16"),
    "generators dtype": (lambda: lconv(X.double(), W.double(), AFFINE), TypeError, "generators: expected dtype torch.float64 as input, got torch.float32"),
    "weight device": (lambda: lconv(X, W.to("meta"), AFFINE), TypeError, "weight: expected device cpu as input, got meta"),
    "generators device": (lambda: lconv(X.to("meta"), W.to("meta"), AFFINE), TypeError, "generators: expected device meta as input, got cpu"),
    "groups, input": (lambda: lc.LConv2d(4, 8, groups=3), ValueError, "groups: expected a divisor of in_channels, got groups=3 and in_channels=4"),
    "groups, output": (lambda: lc.LConv2d(6, 8, groups=3), ValueError, "groups: expected a divisor of out_channels, got groups=3 and out_channels=8"),
    "groups, functional": (lambda: lconv(torch.randn(2, 12, 5, 6), W, AFFINE, groups=3), ValueError, "groups: expected a divisor of out_channels, got groups=3 and out_channels=8"),
    "groups no integer": (lambda: lc.LConv2d(4, 8, groups=1.5), TypeError, "groups: expected a positive integer, got 1.5"),
    "in_channels": (lambda: lc.LConv2d(0, 8), ValueError, "in_channels: expected a positive integer, got 0"),
    "out_channels": (lambda: lc.LConv2d(4, "8"), TypeError, "out_channels: expected a positive integer, got '8'"),
    "stride": (lambda: lconv(X, W, AFFINE, stride=0), ValueError, "stride: expected a positive integer, got 0"),
    "stride axes": (lambda: lc.LConv2d(4, 8, stride=(1, 2, 3)), ValueError, r"stride: expected one integer or 2, got \(1, 2, 3\)"),
    "name": (lambda: lc.LConv2d(4, 8, "rotations"), ValueError, "generators: expected one of translation, rotation, scaling, se, similitude, sl, gl, affine, lorentz, laplacian, unit_laplacian, second, rotation.laplacian, scaling.laplacian, se.laplacian, similitude.laplacian, sl.laplacian, gl.laplacian, affine.laplacian, lorentz.laplacian, got 'rotations'"),
    "no rotation in 1D": (lambda: lc.LConv1d(4, 8, "rotation"), ValueError, "generators: 'rotation' has no generators on 1 axis"),
    "ndim": (lambda: lc.AffineGenerators.named("se", ndim=4), ValueError, "ndim: expected 1, 2 or 3 axes, got 4"),
    "axes of the generators": (lambda: lc.LConv3d(4, 8, AFFINE), ValueError, "generators: expected 3 axes for LConv3d, got 2"),
    "keywords beside an object": (lambda: lc.LConv2d(4, 8, AFFINE, accuracy=4), TypeError, "LConv2d: accuracy: these go with a name"),
    "padding mode": (lambda: lc.LConv2d(4, 8, padding_mode="zero"), ValueError, f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got 'zero'"),
    "accuracy": (lambda: lc.LConv2d(4, 8, accuracy=3), ValueError, "accuracy: expected one of 2, 4, 6, 8, or .spectral., got 3"),
    "coordinate scale": (lambda: lc.LConv2d(4, 8, "affine", coordinate_scale=0), ValueError, "coordinate_scale: expected a positive number or None, got 0"),
    "reflect": (lambda: lc.LConv2d(4, 8, accuracy=8, padding_mode="reflect")(torch.randn(1, 4, 9, 4)), ValueError, r"reflect padding by 4 points needs more than 4 points on axis 1, got a grid of \(9, 4\)"),
    "reflect, stencil": (lambda: lconv(X, torch.randn(2, 8, 4), lc.StencilGenerators(torch.ones(1, 1), [[5, 0]], padding_mode="reflect")), ValueError, "reflect padding by 5 points needs more than 5 points on axis 0"),
    "field grid": (lambda: lconv(X, torch.randn(2, 8, 4), lc.FieldGenerators(torch.randn(1, 2, 6, 6))), ValueError, r"input: expected the spatial shape \(6, 6\) of the generators, got \(5, 6\)"),
    "stencil grid": (lambda: lconv(X, torch.randn(2, 8, 4), lc.StencilGenerators(torch.randn(1, 1, 6, 6), [[0, 1]])), ValueError, r"input: expected the spatial shape \(6, 6\)"),
    "dense points": (lambda: lconv(X, torch.randn(2, 8, 4), lc.DenseGenerators(torch.randn(1, 9, 9))), ValueError, r"input: expected 9 points as the generators have, got spatial shape \(5, 6\) with 30"),
    "dense channels": (lambda: lconv(X, torch.randn(2, 8, 3), lc.DenseGenerators(torch.randn(1, 30, 30))), ValueError, "lconv: expected input with 3 channels"),
    "dense dimensions": (lambda: lconv(X[0, 0], torch.randn(2, 8, 4), lc.DenseGenerators(torch.randn(1, 30, 30))), ValueError, r"lconv: expected input \(N, C, \*spatial\), got \(5, 6\)"),
    "matrix shape": (lambda: lc.AffineGenerators(torch.zeros(1, 2, 3), ZERO), ValueError, r"matrix: expected shape \(n_L, n, n\) with n = 1, 2 or 3, got \(1, 2, 3\)"),
    "matrix dimensions": (lambda: lc.AffineGenerators(torch.zeros(2, 2), ZERO), ValueError, r"matrix: expected shape \(n_L, n, n\), got \(2, 2\)"),
    "matrix integer": (lambda: lc.AffineGenerators(EYE.long(), ZERO), TypeError, "matrix: expected a real floating-point tensor, got torch.int64"),
    "no generators": (lambda: lc.AffineGenerators(torch.zeros(0, 2, 2), torch.zeros(0, 2)), ValueError, r"matrix: expected at least one generator, got shape \(0, 2, 2\)"),
    "shift shape": (lambda: lc.AffineGenerators(EYE, torch.zeros(2, 2)), ValueError, r"shift: expected shape \(1, 2\) beside that matrix, got \(2, 2\)"),
    "coefficients of other derivatives": (lambda: lc.AffineDifferentialGenerators(torch.zeros(1, 2, 2), ZERO, [[1, 0]]), ValueError, r"matrix: expected shape \(n_L, 1, 2\), since orders has 1 derivatives on 2 axes, got \(1, 2, 2\)"),
    "shift of other derivatives": (lambda: lc.AffineDifferentialGenerators(torch.zeros(1, 1, 2), ZERO, [[1, 0]]), ValueError, r"shift: expected shape \(1, 1\) beside that matrix, got \(1, 2\)"),
    "orders of affine coefficients": (lambda: lc.AffineDifferentialGenerators(torch.zeros(1, 1, 2), torch.zeros(1, 1), [[3, 0]]), ValueError, "orders: expected"),
    "shift dtype": (lambda: lc.AffineGenerators(EYE, ZERO.double()), TypeError, "shift: expected torch.float32 on cpu as matrix, got torch.float64 on cpu"),
    "field components": (lambda: lc.FieldGenerators(torch.randn(1, 3, 6, 6)), ValueError, r"field: expected shape \(n_L, n, \*spatial\) with one component for each of the 2 axes, got \(1, 3, 6, 6\)"),
    "taps width": (lambda: lc.StencilGenerators(torch.randn(1, 2), [[0, 1, 0, 0], [0, 0, 0, 1]]), ValueError, r"taps: expected shape \(K, n\) with n = 1, 2 or 3, got \(2, 4\)"),
    "taps float": (lambda: lc.StencilGenerators(torch.randn(1, 1), [[0.5, 1.0]]), TypeError, r"taps: expected integer offsets \(K, n\), got torch.float32"),
    "taps count": (lambda: lc.StencilGenerators(torch.randn(1, 3), [[0, 1], [1, 0]]), ValueError, r"coefficients: expected 2 taps in dimension 1, as many as taps has, got shape \(1, 3\)"),
    "taps against grid": (lambda: lc.StencilGenerators(torch.randn(1, 2, 5), [[0, 1], [1, 0]]), ValueError, r"coefficients: expected shape \(n_L, K\) or \(n_L, K, \*spatial\) with 2 axes, got \(1, 2, 5\)"),
    "dense matrix": (lambda: lc.DenseGenerators(torch.randn(1, 3, 4)), ValueError, r"matrix: expected shape \(n_L, d, d\), got \(1, 3, 4\)"),
    "generators on data": (lambda: AFFINE(torch.randn(4, 5, 6)), ValueError, r"f: expected shape \(N, C, \*spatial\) with 2 spatial axes, got \(4, 5, 6\)"),
    "generators on data of a type": (lambda: AFFINE(torch.randn(1, 4, 5, 6).double()), TypeError, "generators: expected dtype torch.float64 as input, got torch.float32"),
    "generators on integers": (lambda: AFFINE(torch.ones(1, 4, 5, 6).long()), TypeError, "f: expected a real floating-point tensor, got torch.int64"),
    "dense, in a layer": (lambda: lc.LConv2d(4, 8, lc.DenseGenerators(torch.randn(1, 30, 30)))(torch.randn(2, 4, 30)), ValueError, r"LConv2d: expected input with 4 channels, got \(2, 4, 30\)"),
    "to_dense axes": (lambda: AFFINE.to_dense((4, 5, 6)), ValueError, r"expected 2 spatial axes, got .*\(4, 5, 6\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_message(case, monkeypatch):
    call, error, message = CASES[case]

    def no_kernel(*_):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr("lconv_fast.form.calculus.evaluate", no_kernel)
    with pytest.raises(error, match=message):
        call()


def test_operators_check_again():
    """Called past the Python checks, the operators refuse what would read beyond memory."""

    geometry = Geometry.of(AFFINE.stencil(), (5, 6), (1, 1), 1)
    v = AFFINE.coefficients()
    ops = torch.ops.lconv_fast
    x, w, g = X, torch.randn(4, 8, 4), torch.randn(2, 8, 5, 6)
    for call in (
        lambda: ops.apply(x[..., :5], w, v, None, *geometry, True, False),
        lambda: ops.apply(x, w, v[:2], None, *geometry, True, False),
        lambda: ops.apply(x, w, v, torch.randn(3), *geometry, True, False),
        lambda: ops.apply(x, w.double(), v, None, *geometry, True, False),
        lambda: ops.apply(x, w, v, None, *geometry._replace(taps=[0]), True, False),
        lambda: ops.apply(x, w, v, None, *geometry._replace(padding_mode=7), True, False),
        lambda: ops.gram(x, g[:1], v, *geometry, True),
        lambda: ops.gram(x, g.double(), v, *geometry, True),
        lambda: ops.correlate(x, w, g[:, :5], *geometry),
        lambda: ops.correlate(x, w[:, :, :2], g, *geometry),
    ):
        with pytest.raises(RuntimeError, match="lconv_fast"):
            call()
    assert ops.apply(x, w, v, None, *geometry, True, False).shape == g.shape


# Each changes one thing in a call that is right otherwise; all must end in the operators' own error.
HUGE = 2**62
MALFORMED = {
    "components below 0": {"components": [-1, -1, 0, 0]},
    "components that do not begin at 0": {"components": [1, 1, 2, 2]},
    "components that count down": {"components": [1, 1, 0, 0]},
    "components with a gap": {"components": [0, 0, 2, 2]},
    "components far off": {"components": [0, 0, HUGE, HUGE]},
    "too few components": {"components": [0]},
    "a tap of -2^63": {"taps": [0, -(2**63)] * 4},
    "a tap of -2^63 under reflect": {"taps": [0, -(2**63)] * 4, "padding_mode": 3},
    "a tap wider than a reflecting grid": {"taps": [0, 6] * 4, "padding_mode": 3},
    "a tap of 2^62": {"taps": [HUGE, 0] * 4},
    "a tap of 2^31": {"taps": [0, 2**31] * 4, "padding_mode": 1},
    "an unknown kind": {"kind": 3},
    "a kind below 0": {"kind": -1},
    "an unknown padding mode": {"padding_mode": len(PADDING_MODES)},
    "a padding mode below 0": {"padding_mode": -(2**40)},
    "no axes": {"spatial": [], "taps": [], "stride": [], "halo": [], "origin": [], "full": []},
    "four axes": {"spatial": [5] * 4, "stride": [1] * 4, "halo": [0] * 8, "origin": [0] * 4, "full": [5] * 4},
    "a grid without points": {"spatial": [0, 6]},
    "a grid of 2^62 points": {"spatial": [HUGE, 6]},
    "a grid of 2^31 x 2^31 points": {"spatial": [2**31, 2**31]},
    "a halo below 0": {"halo": [-1, 1, 0, 0]},
    "a halo of 2^62": {"halo": [HUGE, 0, 0, 0]},
    "a halo beside circular": {"halo": [1, 0, 0, 0], "padding_mode": 1},
    "half a halo": {"halo": [0, 0]},
    "a stride of 0": {"stride": [0, 1]},
    "a stride of 2^62": {"stride": [HUGE, 1]},
    "an origin of 2^62": {"origin": [HUGE, 0]},
    "one origin": {"origin": [0]},
    "a full grid without points": {"full": [0, 6]},
    "a full grid of 2^62 points": {"full": [HUGE, 6]},
    "no group": {"groups": 0},
    "2^62 groups": {"groups": HUGE},
    "a scale of 0": {"coordinate_scale": 0.0},
    "a scale below 0": {"coordinate_scale": -1.0},
    "a scale of NaN": {"coordinate_scale": math.nan},
    "an infinite scale": {"coordinate_scale": math.inf},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_calls(case):
    """The geometry's own check, which the GPU relies on, and the compiled one, in every operator."""
    geometry = Geometry.of(AFFINE.stencil(), (5, 6), (1, 1), 1)._replace(**MALFORMED[case])
    v, w, g, ops = AFFINE.coefficients(), torch.randn(4, 8, 4), torch.randn(2, 8, 5, 6), torch.ops.lconv_fast
    empty = torch.randn(2, 0, 5, 6)
    for call in (
        geometry.check,
        lambda: ops.apply(X, w, v, None, *geometry, True, False),
        lambda: ops.apply(g, w, v, None, *geometry, True, True),
        lambda: ops.gram(X, g, v, *geometry, True),
        lambda: ops.gram(empty, empty, v, *geometry, True),
        lambda: ops.correlate(X, w, g, *geometry),
        lambda: ops.backward(g, X, w, v, *geometry, True),
    ):
        with pytest.raises(RuntimeError, match="lconv_fast"):
            call()


@pytest.mark.parametrize("change", [{"spatial": [6, 5]}, {"halo": [1, 1, 1, 1]}, {"groups": 3}], ids=str)
def test_tensors_that_do_not_fit_the_geometry(change):
    geometry = Geometry.of(AFFINE.stencil(), (5, 6), (1, 1), 1)._replace(**change)
    v, w, g, ops = AFFINE.coefficients(), torch.randn(4, 8, 4), torch.randn(2, 8, 5, 6), torch.ops.lconv_fast
    for call in (
        lambda: ops.apply(X, w, v, None, *geometry, True, False),
        lambda: ops.gram(X, g, v, *geometry, True),
        lambda: ops.correlate(X, w, g, *geometry),
        lambda: ops.backward(g, X, w, v, *geometry, True),
    ):
        with pytest.raises(RuntimeError, match="lconv_fast"):
            call()


def test_accuracy_table_is_the_list_of_valid_ones():
    assert list(differences.CENTRAL) == [2, 4, 6, 8]
