"""The modules behave as nn.Conv2d does."""

import copy
import io
import pickle

import pytest
import torch
from problems import relative_rms
from torch import nn
from torch.nn.utils import parametrize

import lconv_fast as lc
from lconv_fast.generators import algebras

MODULES = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}
SIZES = {1: (4096,), 2: (64, 64), 3: (40, 40, 40)}


@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", algebras.ALGEBRAS)
def test_initialisation_keeps_the_variance_of_white_noise(name, ndim, factorized):
    if not algebras.ALGEBRAS[name](ndim):
        return  # no such basis on one axis: an error, tested elsewhere
    variances = []
    for _ in range(10):
        layer = MODULES[ndim](16, 16, name, padding_mode="circular", factorized=factorized)
        with torch.no_grad():
            variances.append(layer(torch.randn(1, 16, *SIZES[ndim])).var().item())
    mean = sum(variances) / len(variances)
    assert 0.9 < mean < 1.1, variances  # 10 draws of 16 x 16 weights; a finite grid adds up to 4 %


def test_unbatched_input():
    layer = lc.LConv2d(3, 4, stride=(1, 2))
    x = torch.randn(3, 6, 7)
    assert torch.equal(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_stride_takes_every_sth_point(ndim):
    full = MODULES[ndim](4, 6, groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, *(11, 10, 9)[:ndim], dtype=torch.float64)
    for stride in (2, 3, (3, 1, 2)[:ndim]):
        layer = MODULES[ndim](4, 6, full.generators, groups=2, stride=stride, dtype=torch.float64)
        layer.load_state_dict(full.state_dict())
        steps = (stride,) * ndim if isinstance(stride, int) else stride
        assert relative_rms(layer(x), full(x)[(..., *[slice(None, None, s) for s in steps])]) < 1e-14


def test_copy_pickle_and_state_dict():
    layer = lc.LConv2d(3, 4, "similitude", learnable=True, accuracy=4, padding_mode="reflect", stride=2)
    x = torch.randn(2, 3, 9, 9)
    other = lc.LConv2d(3, 4, "similitude", learnable=True, accuracy=4, padding_mode="reflect", stride=2)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin(x), layer(x))
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in layer.parameters()}
    assert set(layer.state_dict()) == {"weight", "bias", "generators.matrix", "generators.shift"}


def test_copy_of_a_transposed_basis():
    layer = lc.LConv2d(2, 2, lc.AffineGenerators.named("gl", learnable=True).transpose())
    x = torch.randn(1, 2, 6, 6)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.generators.transposed and torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("factorized", [False, True])
def test_factorized_weight(factorized):
    layer = lc.LConv2d(4, 6, "se", groups=2, factorized=factorized, dtype=torch.float64)
    names = set(dict(layer.named_parameters()))
    assert names == ({"weight0", "epsilon", "bias"} if factorized else {"weight", "bias"})
    if factorized:
        for i, g in ((1, 0), (3, 1)):
            out, ins = slice(3 * g, 3 * g + 3), slice(2 * g, 2 * g + 2)
            expected = layer.weight0[out] @ layer.epsilon[i - 1, ins]
            assert relative_rms(layer.weight[i, out], expected) < 1e-14
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_parametrize():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w + w.transpose(1, 2)

    layer = lc.LConv2d(3, 3)
    x = torch.randn(1, 3, 5, 5)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    expected = lc.functional.lconv(x, before + before.transpose(1, 2), layer.generators, layer.bias)
    assert torch.allclose(layer(x), expected)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.allclose(layer(x), expected)
    normed = nn.utils.parametrizations.weight_norm(lc.LConv2d(3, 3), dim=None)
    assert normed(x).shape == x.shape


def test_dtype_device_and_memory_format():
    layer = lc.LConv2d(3, 4, dtype=torch.float64)
    assert layer.generators.weights.dtype == torch.float64
    assert lc.LConv2d(3, 4).to(torch.bfloat16)(torch.randn(1, 3, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert lc.LConv2d(3, 4).half()(torch.randn(1, 3, 5, 5).half()).dtype == torch.float16
    meta = lc.LConv2d(3, 4, "se", device="meta")
    assert all(p.is_meta for p in meta.parameters()) and meta(torch.empty(2, 3, 5, 6, device="meta")).shape == (
        2,
        4,
        5,
        6,
    )
    field = lc.LConv2d(3, 4, lc.FieldGenerators(torch.randn(2, 2, 5, 6))).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 5, 6)
    assert torch.allclose(field(x), field.to(memory_format=torch.contiguous_format)(x), atol=1e-6)
    with torch.device("meta"):
        assert lc.LConv2d(3, 4).weight.is_meta


def test_stands_where_conv2d_stood():
    model = nn.Sequential(
        lc.LConv2d(1, 8, padding_mode="circular"), nn.BatchNorm2d(8), nn.ReLU(), lc.LConv2d(8, 2, stride=2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x = torch.randn(8, 1, 10, 10)
    target = model(x).detach() * 0 + x[:, :, ::2, ::2].abs()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_learned_generators_move_towards_the_true_ones():
    """One step of least squares on L alone: f + L f for the derivative along x has a unique affine answer."""
    true = lc.AffineGenerators.named("rotation", padding_mode="circular").double()
    learned = lc.AffineGenerators(
        torch.zeros(1, 2, 2), torch.zeros(1, 2), padding_mode="circular", learnable=True
    ).double()
    f = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(learned.parameters(), tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = (learned(f) - true(f)).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert (learned.matrix - true.matrix).abs().max() < 1e-6 and learned.shift.abs().max() < 1e-6


def test_repr():
    text = repr(lc.LConv2d(3, 8, "se", stride=2, bias=False, accuracy=4, padding_mode="circular"))
    for part in ("3, 8", "stride=(2, 2)", "bias=False", "num_generators=3", "accuracy=4", "'circular'"):
        assert part in text
