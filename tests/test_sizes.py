"""Sizes that change: one graph for all of them, however a layer is traced, and pieces of a larger grid."""

import itertools
import subprocess
import sys

import pytest
import torch
from problems import MODES, relative_rms
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

import lconv_fast as lc
from lconv_fast.ops.geometry import Geometry

LAYERS = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}


def make_layer(kind: str, ndim: int, mode: str, stride: int = 1):
    torch.manual_seed(0)
    keywords = {"padding_mode": mode}
    if kind == "affine":
        return LAYERS[ndim](3, 4, "affine", stride=stride, learnable=True, **keywords)
    if kind == "transposed":
        return LAYERS[ndim](3, 4, lc.AffineGenerators.named("gl", ndim, accuracy=4, **keywords).transpose())
    taps = torch.randint(-2, 3, (3, ndim))
    return LAYERS[ndim](3, 4, lc.StencilGenerators(torch.randn(2, 3), taps, learnable=True, **keywords), stride=stride)


def test_one_list_of_arguments():
    """The fields of Geometry are what follows the tensors in every schema, in order."""
    for name, leading in (("apply", 4), ("gram", 3), ("correlate", 3), ("backward", 4)):
        arguments = [a.name for a in getattr(torch.ops.lconv_fast, name).default._schema.arguments]
        assert tuple(arguments[leading : leading + len(Geometry._fields)]) == Geometry._fields


def recompilations(layer, backend: str, sizes) -> int:
    """Compares results and all gradients at every size; how many graphs that took."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for batch, size in enumerate(sizes, 2):
        x = torch.randn(batch, 3, *(size + 3 * a for a in range(layer.ndim)), requires_grad=True)
        y, truth = compiled(x), layer(x)
        u, inputs = torch.randn_like(truth), [x, *layer.parameters()]
        found, expected = (torch.autograd.grad(t, inputs, u) for t in (y, truth))
        for one, other in zip((y, *found), (truth, *expected), strict=True):
            assert relative_rms(one, other) < 1e-6
    return counter.frame_count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "ndim"), [("affine", 2), ("affine", 3), ("transposed", 2), ("constant", 1)])
def test_one_graph(kind, ndim, mode):
    stride = 1 if kind == "transposed" else 1 + MODES.index(mode) % 2
    assert recompilations(make_layer(kind, ndim, mode, stride), "aot_eager", (8, 13, 10)) == 1


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph_everywhere(backend):
    for kind, ndim, mode, stride in itertools.product(("affine", "constant"), LAYERS, MODES, (1, 3)):
        assert recompilations(make_layer(kind, ndim, mode, stride), backend, range(8, 20)) == 1


def test_one_graph_of_a_network():
    network = torch.nn.Sequential(lc.LConv2d(3, 4), torch.nn.ReLU(), lc.LConv2d(4, 2, "se", stride=2))
    network.ndim = 2
    assert recompilations(network, "inductor", (9, 16, 11)) == 1


def test_marked_sizes_do_not_specialise():
    layer = torch.compile(make_layer("affine", 2, "zeros"), backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 9, 12)
    for dim in (0, 2, 3):
        torch._dynamo.mark_dynamic(x, dim)
    assert layer(x).shape == (2, 4, 9, 12)


@pytest.mark.parametrize("mode", MODES)
def test_symbolic_tracing(mode):
    """make_fx, with all gradients: a graph traced at one size is right at others."""
    layer = make_layer("affine", 2, mode, stride=2)
    state = {name: value.detach().clone().requires_grad_() for name, value in layer.state_dict().items()}

    def gradients(x, state):
        y = torch.func.functional_call(layer, state, (x,))
        return torch.autograd.grad(y.square().sum(), [x, *state.values()])

    traced = make_fx(gradients, tracing_mode="symbolic")(torch.randn(2, 3, 9, 10, requires_grad=True), state)
    x = torch.randn(3, 3, 14, 7, requires_grad=True)
    for found, expected in zip(traced(x, state), gradients(x, state), strict=True):
        assert relative_rms(found, expected) < 1e-6


LOAD = """
import sys, torch, lconv_fast
program, x, y = sys.argv[1:]
found = torch.export.load(program).module()(torch.load(x))
assert (found - torch.load(y)).norm() < 1e-6 * found.norm()
"""


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_exported_once_runs_elsewhere_at_other_sizes(mode, tmp_path):
    network = torch.nn.Sequential(make_layer("affine", 2, mode), make_layer("constant", 2, mode, stride=2))
    network[1] = lc.LConv2d(4, 2, network[1].generators, stride=2)
    x = torch.randn(2, 3, 9, 10)
    sizes = {0: Dim("batch"), 2: Dim("height", min=4), 3: Dim("width", min=4)}
    program = export(network, (x,), dynamic_shapes=(sizes,))
    assert export(network, (x,), dynamic_shapes=({k: Dim.AUTO for k in sizes},)).module()(x[:, :, 2:]).shape[2] == 4
    other = torch.randn(5, 3, 21, 6)
    files = [str(tmp_path / name) for name in ("program.pt2", "x.pt", "y.pt")]
    torch.export.save(program, files[0])
    torch.save(other, files[1])
    torch.save(network(other).detach(), files[2])
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True)


@pytest.mark.full
def test_ahead_of_time(tmp_path):
    """AOTInductor's package calls the compiled operators, with sizes that vary."""
    layer = make_layer("affine", 2, "zeros")
    with torch.no_grad():
        program = export(layer, (torch.randn(2, 3, 9, 10),), dynamic_shapes=({2: Dim("h", min=4), 3: Dim("w", min=4)},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
        x = torch.randn(2, 3, 15, 8)
        assert relative_rms(torch._inductor.aoti_load_package(path)(x), layer(x)) < 1e-6


# ---- pieces of a larger grid ----


def pieces(ndim: int, mode: str):
    """A layer of each kind that knows where it is, in float64, with the reach of its taps."""
    full = (9, 11, 7)[:ndim]
    yield lc.AffineGenerators.named("affine", ndim, padding_mode=mode).double(), full, 1
    yield lc.AffineGenerators.named("affine", ndim, padding_mode=mode, coordinate_scale=2.0).double(), full, 1
    yield lc.FieldGenerators(torch.randn(2, ndim, *full).double(), padding_mode=mode, learnable=True), full, 1
    taps = torch.randint(-1, 2, (3, ndim))
    yield lc.StencilGenerators(torch.randn(2, 3, *full).double(), taps, padding_mode=mode, learnable=True), full, 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ndim", LAYERS)
def test_a_window_takes_its_part_of_the_grid(ndim, mode):
    """Inside, past the reach of the taps, a piece gives what the whole grid gives; so does its border, where it is the
    grid's own (but for circular, whose other side the piece does not hold)."""
    for generators, full, reach in pieces(ndim, mode):
        w = torch.randn(generators.num_generators + 1, 4, 3).double()
        f = torch.randn(2, 3, *full).double()
        origin, size = (0, 4, 2)[:ndim], (6, 7, 4)[:ndim]
        place = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
        y = lc.functional.lconv(f[(..., *place)], w, generators, window=(origin, full))
        whole = lc.functional.lconv(f, w, generators)[(..., *place)]
        low = [0 if o == 0 and mode != "circular" else reach for o in origin]
        high = [0 if o + s == n and mode != "circular" else reach for o, s, n in zip(origin, size, full, strict=True)]
        inner = tuple(slice(a, s - b) for a, s, b in zip(low, size, high, strict=True))
        assert relative_rms(y[(..., *inner)], whole[(..., *inner)]) < 1e-14
        for parameter in generators.parameters():  # the gradient lies in the piece's part alone
            (g,) = torch.autograd.grad(y.square().sum(), parameter)
            outside = g.clone()
            outside[(..., *place)] = 0
            assert g.norm() > 0 and outside.norm() == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_halo_makes_pieces_whole(stride):
    """Two pieces with halos of the other's points, side by side, are the grid's result."""
    for generators, full, _ in pieces(2, "zeros"):
        w = torch.randn(generators.num_generators + 1, 4, 3).double()
        f = torch.randn(2, 3, *full).double()
        options = {"stride": stride}
        left = lc.functional.lconv(f[..., :7], w, generators, window=((0, 0), full), halo=((0, 0), (0, 1)), **options)
        right = lc.functional.lconv(f[..., 5:], w, generators, window=((0, 6), full), halo=((0, 0), (1, 0)), **options)
        assert relative_rms(torch.cat([left, right], -1), lc.functional.lconv(f, w, generators, **options)) < 1e-14


def test_windows_and_halos_vary_in_one_graph():
    generators = lc.AffineGenerators.named("affine", 2)
    w = torch.randn(7, 4, 3)
    counter = CompileCounterWithBackend("aot_eager")

    def piece(f, first, rows, columns, low):
        return lc.functional.lconv(f, w, generators, window=((first, 0), (rows, columns)), halo=((low, 1), (0, 0)))

    torch._dynamo.reset()
    compiled = torch.compile(piece, backend=counter, fullgraph=True, dynamic=True)
    for first, rows, columns, low in ((3, 30, 9, 2), (5, 40, 11, 3), (8, 60, 14, 4)):
        f = torch.randn(2, 3, 12, columns, requires_grad=True)
        found, expected = (call(f, first, rows, columns, low) for call in (compiled, piece))
        assert relative_rms(found, expected) < 1e-6
        u = torch.randn_like(expected)
        assert relative_rms(*(torch.autograd.grad(t, f, u)[0] for t in (found, expected))) < 1e-6
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": ((0, 3), (9, 8))}, ValueError, r"does not fit into one of \(9, 8\)"),
        ({"window": ((0, -1), (9, 9))}, ValueError, "does not fit"),
        ({"window": (0, 3)}, TypeError, r"window: expected \(origin, full\) with 2 integers each"),
        ({"window": ((0, 0.5), (9, 9))}, TypeError, "window: expected"),
        ({"halo": ((1, 1),)}, TypeError, "halo: expected 2 pairs"),
        ({"halo": ((3, 2), (0, 0))}, ValueError, "leave a grid"),
        ({"halo": ((-1, 2), (0, 0))}, ValueError, "halo: expected 2 pairs"),
    ],
    ids=str,
)
def test_pieces_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        lc.functional.lconv(
            torch.randn(1, 3, 5, 6), torch.randn(3, 4, 3), lc.AffineGenerators.named("translation"), **options
        )
