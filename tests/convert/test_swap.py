"""Whole models: what is replaced, what is left and why, undo, failures, check and project."""

import copy
import random

import pytest
import torch
from problems import relative_rms
from torch import nn

import lconv_fast as lc

RING = [[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


def shifts():
    return lc.StencilGenerators(torch.eye(8), RING)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Conv2d):
    """Without a forward of its own."""


class Network(nn.Module):
    """Everything that a conversion can trip over."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4))
        self.point = nn.Conv2d(8, 8, 1)
        self.valid = nn.Conv2d(8, 8, 3, stride=2)
        self.wide = Renamed(8, 8, 3, padding=3, padding_mode="circular", dilation=2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.ModuleDict({"same": self.shared})
        self.tied = nn.Conv2d(8, 8, 3, padding=1)
        self.twin = nn.Conv2d(8, 8, 3, padding=1)
        self.twin.weight = self.tied.weight
        self.hooked = nn.Conv2d(8, 8, 3, padding=1)
        self.hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.own = Doubled(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)

    def forward(self, x):
        x = self.valid(self.point(self.block(self.stem(x))))
        x = self.again["same"](self.shared(self.wide(x)))
        x = self.hooked(self.twin(self.tied(x)))
        return self.up(self.own(self.normed(x)))


REPLACED = {"stem", "block.2", "valid", "wide", "shared"}
REASONS = {
    "point": "one point",
    "tied": "shared with twin",
    "twin": "shared with tied",
    "hooked": "hooks",
    "normed": "parametrizations",
    "own": "forward of its own",
    "up": "none of the three",
}


@pytest.mark.parametrize("generators", ["shifts", shifts()])
def test_exact_and_undone_to_the_bit(generators):
    model, x = Network(), torch.randn(2, 3, 24, 21)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    y, state, modules = model(x), copy.deepcopy(model.state_dict()), dict(model.named_modules())
    kept = copy.deepcopy(optimizer.state_dict())
    report = lc.convert.swap(model, generators)
    exact = REPLACED if generators == "shifts" else REPLACED - {"wide"}  # dilation 2 is not in the ring
    assert {entry.path for entry in report.replaced} == REPLACED
    assert all(entry.distance < 1e-7 for entry in report.replaced if entry.path in exact)
    reasons = {entry.path: entry.reason for entry in report.left}
    assert set(reasons) == set(REASONS) and all(words in reasons[path] for path, words in REASONS.items())
    assert isinstance(model.shared, lc.LConv2d) and model.again["same"] is model.shared
    z = model(x)
    assert z.shape == y.shape
    if generators == "shifts":
        # Batch statistics are updated in training mode: the second call sees the same batch.
        assert relative_rms(z, y) < 1e-6
    assert "distance" in str(report) and "weight_norm" not in str(report)

    assert report.undo() is model
    report.undo()
    assert dict(model.named_modules()) == modules
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]) or "running" in name or "tracked" in name
    for p, q in zip(kept["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(p[key], q[key]) for key in p)


def test_fit_is_the_least_squares_solution():
    """Against dense matrices on a grid without boundaries."""
    for generators in (
        lc.StencilGenerators(torch.randn(3, 8), RING, padding_mode="circular"),
        lc.StencilGenerators(torch.randn(2, 8, 7, 7), RING, padding_mode="circular"),
        lc.DenseGenerators(torch.randn(2, 121, 121)),  # 9 + 2 points per axis, where no grid is given
    ):
        size = 11 if isinstance(generators, lc.DenseGenerators) else 7
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
        kernel = model[0].weight.detach().double()
        entry = lc.convert.swap(model, generators).replaced[0]
        taps = lc.StencilGenerators(torch.eye(9), [[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        taps.padding_mode = "circular"
        points = torch.arange(size * size).reshape(size, size)
        rows = points[1:-1, 1:-1].flatten() if size == 11 else points.flatten()
        basis = torch.cat([torch.eye(size**2).unsqueeze(0), generators.to_dense((size, size))])[:, rows].double()
        target = torch.einsum("ock,kxy->ocxy", kernel.flatten(2), taps.to_dense((size, size))[:, rows].double())
        wanted = torch.linalg.lstsq(basis.flatten(1).T, target.flatten(2).flatten(0, 1).T)
        found = entry.layer.weight.detach().double().flatten(1)
        assert relative_rms(found, wanted.solution) < 1e-5
        rest = target.flatten(2).flatten(0, 1).T - basis.flatten(1).T @ wanted.solution
        assert abs(entry.distance - (rest.norm() / target.norm()).item()) < 1e-5


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_exact_at_boundaries_that_the_generators_do_not_have(mode):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Conv2d(3, 3, 3, 2, 1, padding_mode=mode))
    x = torch.randn(2, 2, 8, 9)
    y = model(x)
    assert len(lc.convert.swap(model, shifts()).replaced) == 2
    assert relative_rms(model(x), y) < 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_exact_for_any_padding_and_stride(seed):
    """Generators at the taps of the kernel seen from its middle."""
    rng = random.Random(seed)
    size, stride, padding = rng.choice([3, 5, 7]), rng.choice([1, 2, 3]), rng.randint(0, 6)
    mode = rng.choice(["zeros", "circular", "reflect", "replicate"])
    model = nn.Sequential(nn.Conv1d(2, 3, size, stride, padding, padding_mode=mode))
    reach = size // 2
    taps = [[k] for k in range(-reach, reach + 1) if k]
    generators = lc.StencilGenerators(torch.eye(2 * reach), taps, padding_mode=rng.choice(["zeros", "circular"]))
    for length in (9, 10, 14):
        x = torch.randn(2, 2, length)
        y = model(x)
        report = lc.convert.swap(model, generators)
        assert report.replaced[0].distance < 1e-7
        assert relative_rms(model(x), y) < 1e-6
        report.undo()


def test_where_and_init():
    model = Network()
    report = lc.convert.swap(model, where="block.*")
    assert [entry.path for entry in report.replaced] == ["block.2"]
    assert ("stem", "not chosen by where") in {(entry.path, entry.reason) for entry in report.left}
    report.undo()
    report = lc.convert.swap(model, where=lambda path, module: module.stride == (2, 2), init="fresh")
    assert [entry.path for entry in report.replaced] == ["block.2", "valid"]
    assert all(entry.distance is None for entry in report.replaced)
    assert torch.equal(report.replaced[0].layer.bias, report.replaced[0].conv.bias)
    pair = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    lc.convert.swap(pair, init="fresh")
    assert not torch.equal(pair[0].weight, pair[1].weight)


@pytest.mark.parametrize(
    "keywords, error, words",
    [
        ({"generators": "rotate"}, ValueError, "expected one of translation"),
        ({"generators": 3}, TypeError, "a name or a Generators object"),
        ({"init": "best"}, ValueError, "expected one of fit, fresh"),
        ({"where": 3}, TypeError, "patterns of paths"),
        ({"where": [3]}, TypeError, "patterns of paths"),
        ({"accuracy": 3}, ValueError, "expected one of 2, 4, 6, 8"),
        ({"generators": "shifts", "accuracy": 2}, TypeError, "these go with the name"),
        ({"factorized": True}, ValueError, "init='fresh'"),
        ({"where": lambda path, module: 1 / 0}, ZeroDivisionError, "division"),
        ({"generators": shifts().transpose()}, ValueError, "not transposed"),
    ],
)
def test_failures_leave_the_model_alone(keywords, error, words):
    model = Network()
    modules = dict(model.named_modules())
    with pytest.raises(error, match=words):
        lc.convert.swap(model, **keywords)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize(
    "conv, words",
    [
        (nn.LazyConv2d(3, 3), "first input"),
        (nn.Conv2d(3, 3, 3, device="meta"), "meta device"),
        (nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), "hooks"),
        (nn.utils.parametrizations.orthogonal(nn.Conv2d(3, 3, 3)), "parametrizations"),
    ],
)
def test_what_is_left(conv, words):
    model = nn.Sequential(conv)
    report = lc.convert.swap(model)
    assert model[0] is conv and not report.replaced and words in report.left[0].reason


def test_the_model_itself():
    report = lc.convert.swap(nn.Conv2d(3, 3, 3))
    assert "from_conv" in report.left[0].reason and "(the model)" in str(report)


def test_undo_of_a_changed_model_changes_nothing():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    report = lc.convert.swap(model)
    model[1] = nn.Identity()
    with pytest.raises(RuntimeError, match=r"^1: holds another module"):
        report.undo()
    assert isinstance(model[0], lc.LConv2d)


def test_mixed_dimensions_and_dtypes():
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3, dtype=torch.float64), nn.Conv3d(2, 2, 3))
    generators = shifts()
    report = lc.convert.swap(model, generators)
    assert [entry.path for entry in report.replaced] == ["1"]
    assert generators.coefficients().dtype == torch.float32  # the user's own object is not moved
    assert "expected 1 axes" in report.left[0].reason
    report.undo()
    assert [entry.path for entry in lc.convert.swap(model, "rotation").replaced] == ["1", "2"]


def test_one_learnable_object_for_all_layers():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    generators = lc.StencilGenerators(torch.eye(8), RING, learnable=True)
    lc.convert.swap(model, generators)
    assert model[0].generators is model[1].generators is generators


def test_check(capsys):
    model, x = Network(), torch.randn(2, 3, 24, 21)
    with pytest.raises(ValueError, match="swap"):
        lc.convert.check(model, x)
    lc.convert.swap(model, "shifts")
    state, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    found = lc.convert.check(model, x, repeats=1)
    assert found.output_error < 1e-6 and found.gradient_error < 1e-6 and found.layers == 5
    assert min(found.forward + found.step) > 0 and min(found.forward_memory + found.step_memory) > 0
    assert "after / before" in capsys.readouterr().out
    assert model.training and dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model.stem.weight += 0.1
    assert lc.convert.check(model, {"x": x}, repeats=1).output_error > 1e-3
    with pytest.raises((ValueError, RuntimeError)):  # PyTorch's own
        lc.convert.check(model, torch.randn(2, 4, 24, 21))
    assert dict(model.named_modules()) == modules


def test_project():
    """K <- (1 - s) K + s P K, and with strength 1 the generators alone."""
    ring = lc.StencilGenerators(torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1.0, 1, 1, 1]]), RINGS)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, stride=2), nn.Conv2d(3, 2, 1))
    x = torch.randn(2, 2, 9, 9)
    kernel = model[0].weight.detach().clone()
    turned = sum(kernel.rot90(k, (2, 3)) for k in range(4)) / 4
    wanted = (turned + turned.flip(2)) / 2  # the mean over the symmetries of the square: the span of I and the rings
    lc.convert.swap(model, "shifts")
    y = model(x)
    lc.convert.project(model, ring, 0.0)
    assert relative_rms(model(x), y) < 1e-6
    for step in (0.25, 0.5):
        moved = lc.convert.project(model, ring, step)
        assert [entry.path for entry in moved] == ["0", "2"]
    f = torch.randn(1, 2, 7, 7)
    factor = 0.75 * 0.5
    mixed = factor * kernel + (1 - factor) * wanted
    bias = model[0].source.bias
    assert relative_rms(model[0](f), nn.functional.conv2d(f, mixed, bias, padding=1)) < 1e-6
    moved = lc.convert.project(model, ring, 1.0)
    assert all(entry.outside is None for entry in moved) and isinstance(model[0], lc.LConv2d)
    assert model[0].bias is bias
    assert relative_rms(model[0](f), nn.functional.conv2d(f, wanted, bias, padding=1)) < 1e-6
    with pytest.raises(ValueError, match="0 to 1"):
        lc.convert.project(model, ring, 1.5)
    with pytest.raises(ValueError, match="no L-conv"):
        lc.convert.project(nn.Sequential(nn.ReLU()), ring, 0.5)


class Interrupted(dict):
    """The modules of a model, whose second change is followed by an interrupt."""

    changes = 0

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.changes += 1
        if self.changes == 2:
            raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_half_done():
    ring = lc.StencilGenerators(torch.tensor([[1.0, 1, 1, 1]]), RINGS[:4])
    model = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)))
    report = None

    def swap():
        nonlocal report
        report = lc.convert.swap(model, "shifts")

    def project(strength):
        return lambda: lc.convert.project(model, ring, strength)

    for step in (swap, lambda: report.undo(), swap, project(0.5), project(1.0)):
        modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
        plain = model._modules
        model.__dict__["_modules"] = Interrupted(plain)
        with pytest.raises(KeyboardInterrupt):
            step()
        assert dict(model.named_modules()) == modules
        now = model.state_dict()
        assert list(now) == list(state) and all(torch.equal(now[name], state[name]) for name in state)
        model.__dict__["_modules"] = plain
        step()
        assert dict(model.named_modules()) != modules


RINGS = [[0, 1], [0, -1], [1, 0], [-1, 0], [1, 1], [1, -1], [-1, 1], [-1, -1]]


@pytest.mark.parametrize("name", ["BasicUNet", "UNet", "SegResNet"])
def test_monai(name):
    nets = pytest.importorskip("monai.networks.nets", reason="converts models of MONAI, where that is installed")
    keywords = {
        "BasicUNet": {"spatial_dims": 3, "features": (4, 4, 8, 8, 8, 4)},
        "UNet": {"spatial_dims": 3, "channels": (4, 8), "strides": (2,), "num_res_units": 1},
        "SegResNet": {"spatial_dims": 3, "init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    }[name]
    model = getattr(nets, name)(in_channels=1, out_channels=2, **keywords).eval()
    x = torch.randn(1, 1, *[32 if name == "BasicUNet" else 16] * 3)
    with torch.no_grad():
        y = model(x)
        report = lc.convert.swap(model, "shifts")
        assert len(report.replaced) > 3
        assert relative_rms(model(x), y) < 3e-6
        report.undo()
        assert torch.equal(model(x), y)
