"""Streamed gradients and predictions against one piece, in float64."""

import copy
import functools

import pytest
import torch
from models import MODES, drawn, residual_lconv, unet
from torch import nn

import lconv_fast as lc


def contiguous_gradients(model):
    """Of instance norms: on the CPU PyTorch 2.13 differentiates those of one sample wrongly where gradients are
    channels-last."""

    def contiguous(module, inputs, output):
        if output.requires_grad:
            output.register_hook(torch.Tensor.contiguous)

    for module in model.modules():
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            module.register_forward_hook(contiguous)


def differences(model, shape, tile, spill, seed=0, loss=None, **keywords):
    """The largest relative differences of loss and gradients, buffers, and prediction; and the streamed gradients."""
    torch.manual_seed(seed)
    x = 1 + 2 * torch.randn(shape, dtype=torch.float64)
    piece, whole = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        y = copy.deepcopy(model)(x)
    target = torch.randn_like(y)
    loss = nn.MSELoss() if loss is None else loss
    contiguous_gradients(whole)
    expected = loss(whole(x), target)
    expected.backward()
    streamed = lc.stream(piece, tile, spill, progress=False, **keywords)
    prediction = streamed.predict(x)
    found = streamed.forward_backward(x, target, loss)
    # A bias before a norm has gradient zero, and both sides its rounding: the scale is that of the layer's gradient.
    largest = max(p.grad.abs().max() for p in whole.parameters())
    worst = abs(found - expected.item()) / expected.item()
    for p, (name, q) in zip(piece.parameters(), whole.named_parameters(), strict=True):
        layer = whole.get_submodule(name.rpartition(".")[0]).parameters()
        scale = max(1e-2 * largest, *(one.grad.abs().max() for one in layer if one.grad is not None))
        worst = max(worst, (p.grad - q.grad).abs().max() / scale)
    for b, c in zip(piece.buffers(), whole.buffers(), strict=True):
        worst = max(worst, (b.double() - c.double()).abs().max() / (1 + c.double().abs().max()))
    assert list(spill.iterdir()) == []
    return (
        float(worst),
        float((prediction - y.detach()).abs().max() / y.detach().abs().max()),
        [p.grad for p in piece.parameters()],
    )


@pytest.mark.parametrize(
    ("make", "shape", "tile"), [(unet, (1, 1, 24, 28, 24), 12), (residual_lconv, (1, 1, 24, 24, 24), 12)]
)
def test_gradients_are_those_of_one_piece(make, shape, tile, tmp_path):
    """And the order in which tiles are visited does not change a bit of them."""
    torch.manual_seed(0)
    model = make()
    worst, prediction, gradients = differences(model, shape, (tile,) * 3, tmp_path)
    assert worst < 1e-12 and prediction < 1e-13
    *_, shuffled = differences(model, shape, (tile,) * 3, tmp_path, order=5)
    assert all(torch.equal(a, b) for a, b in zip(gradients, shuffled, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("make", [unet, residual_lconv])
@pytest.mark.parametrize("tile", [32, 48, 64])
def test_gradients_of_a_large_volume(make, tile, tmp_path):
    torch.manual_seed(0)
    worst, prediction, _ = differences(make(), (1, 1, 96, 96, 96), (tile,) * 3, tmp_path)
    print(f"{make.__name__}, tiles {tile}: gradients {worst:.2e}, prediction {prediction:.2e}")
    assert worst < 1e-12 and prediction < 1e-12


@pytest.mark.parametrize("seed", range(18))
def test_drawn_models(seed, tmp_path):
    ndim = 2 + seed % 4 // 3
    shape = (1 + seed % 2, 1, *((17, 20, 13)[:ndim]))
    worst, prediction, _ = differences(drawn(seed, ndim), shape, (7, 8, 9)[:ndim], tmp_path, seed)
    assert worst < 1e-12 and prediction < 1e-12


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_drawn_models(seed, tmp_path):
    test_drawn_models(seed, tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_channels_last_and_learned_fields(mode, tmp_path):
    field = lc.FieldGenerators(torch.randn(2, 2, 16, 12).double(), padding_mode=mode, learnable=True)
    model = nn.Sequential(lc.LConv2d(1, 4, field, factorized=True), nn.GroupNorm(2, 4), lc.LConv2d(4, 2, "se"))
    model = model.double().to(memory_format=torch.channels_last)
    worst, prediction, _ = differences(model, (1, 1, 16, 12), (5, 7), tmp_path)
    assert worst < 1e-12 and prediction < 1e-13


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("kind", ["affine", "field"])
def test_transposed_generators(mode, kind, tmp_path):
    basis = lc.AffineGenerators.named("affine", 2, padding_mode=mode)
    if kind == "field":
        basis = lc.FieldGenerators(torch.randn(2, 2, 16, 12).double(), padding_mode=mode, learnable=True)
    model = nn.Sequential(lc.LConv2d(1, 3, basis.double().transpose()), nn.ReLU(), nn.Conv2d(3, 1, 3)).double()
    worst, prediction, _ = differences(model, (1, 1, 16, 12), (5, 7), tmp_path)
    assert worst < 1e-12 and prediction < 1e-13


def test_a_large_mean_does_not_cancel(tmp_path):
    """Statistics of values around 1e6: merged by tiles they lose no more than one piece does."""
    model = nn.Sequential(nn.InstanceNorm2d(1, affine=True), nn.Conv2d(1, 2, 3)).double()
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64) + 1e6
    y = lc.stream(model, (5, 5), tmp_path, progress=False).predict(x)
    exact = nn.functional.conv2d((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt(), model[1].weight, model[1].bias)
    assert (y - exact).abs().max() < 1e-8


def test_dropout_does_not_depend_on_the_tiles(tmp_path):
    """A mask by the place in the whole grid: the same step for all tiles, and the right share of zeros."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.3), nn.Dropout2d(0.3), nn.Conv2d(4, 1, 3)
    ).double()
    x, t = torch.randn(1, 1, 20, 20).double(), torch.randn(1, 1, 18, 18).double()
    gradients = []
    for tile in ((20, 20), (7, 9)):
        model.zero_grad()
        torch.manual_seed(1)
        lc.stream(model, tile, tmp_path, progress=False).forward_backward(x, t, nn.MSELoss())
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 1e-12
    ones = lc.stream(nn.Dropout(0.3), (32, 32), tmp_path, progress=False).predict(torch.ones(1, 1, 64, 64))
    assert abs((ones == 0).float().mean() - 0.3) < 0.03 and ones.max() == pytest.approx(1 / 0.7)


class Rolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f):
        return 2 * f

    @staticmethod
    def backward(ctx, g):
        return 2 * g.roll(1, -1)


class Custom(nn.Module):
    function = Rolled.apply  # as models hold it, from before they are traced

    def forward(self, f):
        return self.function(f)


def test_backward_passes_that_a_trace_does_not_hold(tmp_path):
    """Functions of one's own and autocast are refused; predictions need no backward pass."""
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(Custom())), torch.randn(1, 1, 12, 12)
    streamed = lc.stream(model, (6, 6), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"stream: 1\.0: Rolled is a torch\.autograd\.Function"):
        streamed.forward_backward(x, torch.zeros(1, 2, 10, 10), nn.MSELoss())
    with torch.no_grad():
        assert torch.allclose(streamed.predict(x), model(x), atol=1e-6)
    with pytest.raises(RuntimeError, match="no autocast"), torch.autocast("cpu", torch.bfloat16):
        streamed.predict(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.BatchNorm2d, nn.Identity])
def test_half_types_are_as_accurate_as_one_piece(dtype, norm, tmp_path):
    torch.manual_seed(0)
    layers = [
        lc.LConv2d(1, 4, "affine"),
        norm(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        norm(4),
        nn.Conv2d(4, 1, 1),
    ]
    tiles = nn.Sequential(*layers).to(dtype)
    piece, exact = copy.deepcopy(tiles), copy.deepcopy(tiles).double()
    x, t = torch.randn(2, 1, 1, 32, 32).to(dtype)
    nn.MSELoss()(exact(x.double()), t.double()).backward()
    nn.MSELoss()(piece(x), t).backward()
    lc.stream(tiles, (12, 16), tmp_path, progress=False).forward_backward(x, t, nn.MSELoss())
    truth = torch.cat([p.grad.flatten() for p in exact.parameters()])

    def error(model):
        return (torch.cat([p.grad.flatten().double() for p in model.parameters()]) - truth).norm() / truth.norm()

    assert 0 < error(tiles) < 2 * error(piece)


LOSSES = {
    "sum": nn.L1Loss(reduction="sum"),
    "plain function": lambda p, t: (p - t[:, None]).square(),
    "cross entropy": nn.CrossEntropyLoss(),
    "weighted, with labels to ignore": nn.CrossEntropyLoss(weight=torch.tensor([0.3, 2.0]).double(), ignore_index=0),
    "partial": functools.partial(nn.functional.cross_entropy, reduction="mean"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2)).double()
    x, labels = torch.randn(1, 1, 14, 15).double(), torch.randint(0, 2, (1, 14, 15))
    target = labels if "entropy" in name or "weighted" in name or name == "partial" else labels.double()
    if name == "sum":
        target = torch.randn(1, 2, 14, 15).double()
    loss = LOSSES[name]
    expected = loss(model(x), target)
    (expected.mean() if expected.dim() else expected).backward()
    truth = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    narrow = target.to(torch.uint8) if target.dtype == torch.int64 else target  # as label volumes are stored
    found = lc.stream(model, (5, 6), tmp_path, progress=False).forward_backward(x, narrow, loss)
    assert found.item() == pytest.approx(expected.mean().item(), rel=1e-12)
    for a, p in zip(truth, model.parameters(), strict=True):
        assert (a - p.grad).abs().max() < 1e-12 * max(1, truth[0].abs().max())


def test_a_tile_from_memory(tmp_path):
    """The largest cube that fits, and an error where none does."""
    model = unet()
    streamed = lc.stream(model, memory="24 MiB", spill=tmp_path, progress=False)
    explained = streamed.explain((1, 1, 96, 96, 96))
    assert explained.memory <= 24 * 2**20 and explained.tile[0] % 4 == 0 and explained.tile[0] >= 16
    assert lc.stream(model, memory="1 GiB", spill=tmp_path).explain((1, 1, 96, 96, 96)).tile[0] > explained.tile[0]
    with pytest.raises(ValueError, match="memory: expected at least"):
        lc.stream(model, memory="1 KiB", spill=tmp_path).explain((1, 1, 96, 96, 96))


def test_explain_says_what_will_happen(tmp_path, capsys):
    explained = lc.stream(unet(), (32, 32, 32), tmp_path).explain()
    text = capsys.readouterr().out
    assert explained.shape == (1, 1, 128, 128, 128)
    for word in ("forward", "backward", "read", "written", "halo", "memory", "disk", "down.0.0.0"):
        assert word in text
