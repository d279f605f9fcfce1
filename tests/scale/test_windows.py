"""lc.window: pieces of a larger grid at their true coordinates."""

import copy
import random
import threading

import drawn_models
import numpy as np
import pytest
import torch
from problems import relative_rms
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import lconv_fast as lc


def unet(ndim=2, norm="none", **keywords):
    return lc.nets.LUNet(2, 3, "affine", ndim=ndim, widths=(4, 6), layers=1, norm=norm, **keywords).double()


def place_patch(drawn, seed):
    """A patch, as large as the model needs to see something whole, at an origin that its levels divide."""
    r = random.Random(seed)
    total = 4 if drawn.step in (1, 2, 4) else drawn.step * 2  # the levels inside of skips as well
    least = 2 * drawn.reach + 2 * total + 4
    origin, size = [], []
    for n in drawn.full:
        if n <= least or r.random() < 0.15:
            origin.append(0)
            size.append(n)
            continue
        first = r.randrange(0, n - least + 1) // total * total
        origin.append(first)
        size.append(n - first if r.random() < 0.4 else r.randint(least, n - first))
    return tuple(origin), tuple(size)


def interior(drawn, origin, size):
    """Slices of the patch's output, and of the full grid's, that the patch's inner borders do not reach."""
    ours, theirs = [], []
    for o, p, n in zip(origin, size, drawn.full, strict=True):
        inner = drawn.mode == "circular" and p < n
        low = drawn.reach if o > 0 or inner else 0
        high = drawn.reach + 4 if o + p < n or inner else 0
        step = drawn.step
        first, last = -(-low // step), (p - high - 1) // step + 1
        ours.append(slice(first, last))
        theirs.append(slice(o // step + first, o // step + last))
    return (..., *ours), (..., *theirs)


def check_drawn(seed):
    drawn = drawn_models.draw(seed)
    origin, size = place_patch(drawn, seed)
    f = torch.randn(1, 2, *drawn.full).double()
    patch = f[(..., *(slice(o, o + p) for o, p in zip(origin, size, strict=True)))].clone()
    whole = drawn.model(f)
    with lc.window(drawn.model, origin, drawn.full):
        y = drawn.model(patch)
    ours, theirs = interior(drawn, origin, size)
    theirs = whole[theirs]
    y = y[ours][tuple(slice(0, n) for n in theirs.shape)]  # floors: the last cell of a grid may be missing
    assert y.shape == theirs.shape and y.numel() > 0
    label = f"{seed}: {drawn.ndim}D {drawn.mode} {drawn.names} {drawn.full} {origin} {size}"
    assert relative_rms(y, theirs) < 1e-13, label
    u = torch.randn_like(y)
    parameters = list(drawn.model.parameters())
    found, expected = (torch.autograd.grad(t, parameters, u, allow_unused=True) for t in (y, theirs))
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other.norm() > 0:
            assert relative_rms(one, other) < 1e-12, label  # sums of many points of either sign


@pytest.mark.parametrize("seed", range(60))
def test_drawn(seed):
    """Inside, a patch gives what the full grid gives: outputs, and the gradients of all parameters."""
    check_drawn(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(60, 500))
def test_drawn_500(seed):
    check_drawn(seed)


PLACES = [((0, 0), (64, 96)), ((8, 20), (64, 96)), ((2, 2), (65, 101)), ((16, 0), (65, 101)), ((1 << 1, 4), (50, 60))]


def at(model, patch, origin, full):
    with lc.window(model, origin, full):
        return model(patch)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_one_graph_for_all_origins(backend):
    torch._dynamo.reset()
    net, patch = unet(norm="group"), torch.randn(1, 2, 24, 32).double()
    counter, graphs = CompileCounterWithBackend(backend), []
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for origin, full in PLACES:
        y = at(compiled, patch, origin, full)
        graphs.append(counter.frame_count)
        assert relative_rms(y, at(net, patch, origin, full)) < 1e-13
        assert relative_rms(y, net(patch)) > 1e-3
    assert set(graphs) == {graphs[0]} and graphs[0] <= 2  # none for another origin
    assert relative_rms(compiled(patch), net(patch)) < 1e-13


def test_compiled_samples_and_checkpoints():
    torch._dynamo.reset()
    net, patch = unet(checkpoint=True), torch.randn(2, 2, 24, 32).double()
    compiled = torch.compile(net, backend="aot_eager")
    for origins in ([(0, 0), (8, 20)], [(2, 4), (16, 0)]):
        y, truth = at(compiled, patch, origins, (64, 96)), at(net, patch, origins, (64, 96))
        assert relative_rms(y, truth) < 1e-13
        for one, other in zip(*(torch.autograd.grad(t.sum(), list(net.parameters())) for t in (y, truth)), strict=True):
            assert relative_rms(one, other) < 1e-12


class Placed(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, patch, y, x):
        with lc.window(self.net, (y, x), (64, 96)):
            return self.net(patch)


def test_export():
    """The origin it was traced with; or integers among the inputs, where the window is opened in what is exported."""
    net, patch = unet(norm="batch").eval(), torch.randn(1, 2, 24, 32).double()
    with lc.window(net, (8, 20), (64, 96)):
        program = torch.export.export(net, (patch,))
    assert relative_rms(program.module()(patch), at(net, patch, (8, 20), (64, 96))) < 1e-13
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(Placed(unet()), (patch, 8, 20), dynamic_shapes=({}, dynamic, dynamic))
    net = unet()
    net.load_state_dict({k.removeprefix("net."): v for k, v in program.state_dict.items()})
    assert relative_rms(program.module()(patch, 16, 40), at(net, patch, (16, 40), (64, 96))) < 1e-13


def test_opened_inside_of_what_is_compiled():
    torch._dynamo.reset()
    model, patch = Placed(unet()), torch.randn(1, 2, 24, 32).double()
    model(patch, 0, 0)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for origin in ((8, 20), (0, 0), (16, 40), (2, 2)):
        assert relative_rms(compiled(patch, *origin), model(patch, *origin)) < 1e-13
    assert counter.frame_count <= 2


@pytest.mark.parametrize("form", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_one_origin_for_each_sample(form):
    net, patch = unet(), torch.randn(3, 2, 24, 32).double()
    origins = [(0, 0), (8, 20), (40, 64)]
    y = at(net, patch, form(origins), (64, 96))
    for k, origin in enumerate(origins):
        assert relative_rms(y[k : k + 1], at(net, patch[k : k + 1], origin, (64, 96))) < 1e-14
    fulls = [(64, 96), (32, 52), (70, 100)]
    y = at(net, patch, origins, fulls)
    for k, (origin, full) in enumerate(zip(origins, fulls, strict=True)):
        assert relative_rms(y[k : k + 1], at(net, patch[k : k + 1], origin, full)) < 1e-14


class Patches(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        origin = torch.tensor([2 * k, 4 * k])
        return torch.full((2, 24, 32), float(k)).double(), origin


def test_data_loader_workers():
    net = unet()
    for patch, origin in torch.utils.data.DataLoader(Patches(), batch_size=2, num_workers=2):
        y = at(net, patch, origin, (64, 96))
        for k in range(2):
            assert relative_rms(y[k], at(net, patch[k : k + 1], origin[k], (64, 96))[0]) < 1e-14


def test_threads_do_not_mix():
    net, patch = unet(), torch.randn(1, 2, 24, 32).double()
    places = [(2 * k, 4 * k) for k in range(8)]
    truth = [at(net, patch, origin, (64, 96)) for origin in places]
    wrong, gate = [], threading.Barrier(len(places))

    def work(k):
        with lc.window(net, places[k], (64, 96)):
            gate.wait()
            wrong.extend(k for _ in range(20) if not torch.equal(net(patch), truth[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nested_and_left_by_exceptions():
    net, other, patch = unet(), unet(), torch.randn(1, 2, 24, 32).double()
    plain = net(patch)
    outer, inner = at(net, patch, (8, 20), (64, 96)), at(net, patch, (2, 4), (50, 60))
    window = lc.window(net, (8, 20), (64, 96))
    with window:
        assert torch.equal(net(patch), outer)
        with lc.window(net, (2, 4), (50, 60)), lc.window(other, (0, 0), (24, 32)):
            assert torch.equal(net(patch), inner)
            assert torch.equal(other(patch), other(patch))
        with pytest.raises(ZeroDivisionError), lc.window(net, (2, 4), (50, 60)):
            raise ZeroDivisionError
        with window:
            assert torch.equal(net(patch), outer)
        assert torch.equal(net(patch), outer)
    assert torch.equal(net(patch), plain)
    twin = copy.deepcopy(net)
    assert torch.equal(at(twin, patch, (8, 20), (64, 96)), outer)
    assert list(twin.state_dict()) == list(net.state_dict())


def test_autocast():
    net, patch = unet().float(), torch.randn(1, 2, 24, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = at(net, patch, (8, 20), (64, 96))
    assert relative_rms(y, at(net, patch, (8, 20), (64, 96))) < 3e-2  # bfloat16 through six layers


def test_recomputed_activations():
    net, patch = unet(checkpoint=True), torch.randn(1, 2, 24, 32).double()
    kept = unet()
    kept.load_state_dict(net.state_dict())
    found, expected = (
        torch.autograd.grad(at(m, patch, (8, 20), (64, 96)).square().sum(), list(m.parameters())) for m in (net, kept)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("given", [False, True])
def test_checkpoints_without_the_place_are_refused(given):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = lc.LConv1d(2, 2, "affine")

        def forward(self, f):
            options = {"context_fn": lc.window.contexts} if given else {}
            return checkpoint(self.layer, f, use_reentrant=False, **options)

    model = Checkpointed()
    y = at(model, torch.randn(1, 2, 8, requires_grad=True), (4,), (20,))
    if given:
        return y.sum().backward()
    with pytest.raises(RuntimeError, match=r"context_fn=lconv_fast\.window\.contexts"):
        y.sum().backward()


def test_learning_the_levels_leaves_the_model_alone():
    net = unet(norm="batch")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    net.eval()
    at(net, torch.zeros(1, 2, 24, 32).double(), (8, 20), (64, 96))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def strided(**keywords):
    return nn.Sequential(lc.LConv2d(2, 3, "se", stride=3), lc.LConv2d(3, 3, "se"), nn.Conv2d(3, 3, 3, **keywords))


F = torch.zeros(2, 2, 12, 12)


@pytest.mark.parametrize(
    ("make", "call", "error", "message"),
    [
        (unet, ((1, 0), (64, 64)), ValueError, r"origin: down\.1\.0\.0 computes one point in 2 of axis 0.*by 2"),
        (strided, ((3, 4), (64, 64)), ValueError, r"origin: 0 computes one point in 3 of axis 1: expected.*\(3, 4\)"),
        (
            lambda: nn.Sequential(
                lc.LConv2d(2, 3, "se"), nn.Conv2d(3, 3, 3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
            ),
            ((2, 3), (64, 64)),
            ValueError,
            r"origin: 2 computes one point in 2 of axis 1: expected an origin divisible by 2",
        ),
        (strided, ((60, 0), (64, 64)), ValueError, r"patch of \(12, 12\) at \(60, 0\) does not fit into .*\(64, 64\)"),
        (strided, ((-3, 0), (64, 64)), ValueError, r"origin: expected integers from 0 on, got \(-3, 0\)"),
        (strided, ((0, 0, 0), (64, 64)), ValueError, r"origin: expected 2 integers"),
        (strided, ((0, 0), (64, 64, 64)), ValueError, r"origin: expected 3 integers"),
        (strided, ((0, 0, 0), (64, 64, 64)), ValueError, r"full: expected 2 extents, as 0 has axes, got 3"),
        (strided, ((0.5, 0), (64, 64)), TypeError, r"origin: expected n integers"),
        (strided, ("00", (64, 64)), TypeError, r"origin: expected n integers"),
        (strided, ([torch.tensor([0, 0])], (64, 64)), TypeError, r"origin: expected n integers, or such a row"),
        (strided, ([(0, 0)] * 3, (64, 64)), ValueError, r"origin: expected one, or one for each sample"),
        (strided, ([(0, 0)] * 3, [(64, 64)] * 2), ValueError, r"full: expected one grid, or 3"),
        (lambda: lc.LConv2d(2, 3, lc.DenseGenerators(torch.eye(144)[None])), ((0, 0), (64, 64)), ValueError, "Dense"),
        (lambda: lc.RecursiveLConv(lc.AffineGenerators.named("se")), ((0, 0), (64, 64)), ValueError, "knows no window"),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 2, 3), lc.LConv2d(2, 3, "se")),
            ((0, 0), (64, 64)),
            ValueError,
            r"1 gets a grid of .* with no border cut off",
        ),
        (
            lambda: lc.LConv2d(2, 3, lc.FieldGenerators(torch.zeros(1, 2, 32, 32))),
            ((0, 0), (64, 64)),
            ValueError,
            r"full: LConv2d has generators for a grid of \(32, 32\), and gets one of \(64, 64\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_refused(make, call, error, message):
    model = make()
    f = F.double() if any(p.dtype == torch.float64 for p in model.parameters()) else F
    with pytest.raises(error, match=message), lc.window(model, *call):
        model(f)


def test_a_part_of_the_model_alone_is_refused():
    net = unet()
    with lc.window(net, (0, 0), (64, 64)), pytest.raises(RuntimeError, match=r"was called, and not the LUNet"):
        net.down[0](F.double())
