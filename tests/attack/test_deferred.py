"""Layers made without memory: named bases get their numbers back, and others raise until something fills them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import lconv_fast as lc
from lconv_fast.generators import BASES, named, normalise

GRID = (6, 7)
GENERATORS = {
    "affine": lambda: lc.AffineGenerators(torch.randn(2, 2, 2), torch.randn(2, 2)),
    "affine, learnable": lambda: lc.AffineGenerators(torch.randn(2, 2, 2), torch.randn(2, 2), learnable=True),
    "field": lambda: lc.FieldGenerators(torch.randn(2, 2, *GRID)),
    "stencil": lambda: lc.StencilGenerators(torch.randn(2, 2), [[0, 1], [1, -1]]),
    "differential": lambda: lc.DifferentialGenerators(torch.randn(2, 2), [[1, 1], [2, 0]]),
    "spectral": lambda: lc.AffineGenerators(
        torch.randn(1, 2, 2), torch.randn(1, 2), accuracy="spectral", padding_mode="circular"
    ),
    "dense": lambda: lc.DenseGenerators(torch.randn(1, 42, 42)),
    "low rank": lambda: lc.LowRankGenerators(torch.randn(1, 42, 2), torch.randn(1, 2, 42)),
    "product": lambda: lc.ProductGenerators(lc.AffineGenerators(torch.randn(2, 2, 2), torch.randn(2, 2)), spatial=GRID),
}
RAW = "came from the meta device and were never filled"


def deferred(make):
    with torch.device("meta"):
        return make()


def by_modules(layer: nn.Module, modules) -> nn.Module:
    """As sharding libraries do it: each module with tensors of its own by itself."""
    for module in modules:
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
    return layer


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


FILLED = {
    "to_empty": lambda layer: layer.to_empty(device="cpu"),
    "parents first": lambda layer: by_modules(layer, layer.modules()),
    "children first": lambda layer: by_modules(layer, reversed(list(layer.modules()))),
    "a copy": lambda layer: copy.deepcopy(layer).to_empty(device="cpu"),
    "a pickle": lambda layer: pickle.loads(pickle.dumps(layer)).to_empty(device="cpu"),
    "to the meta device and back": lambda layer: layer.to_empty(device="cpu").to("meta").to_empty(device="cpu"),
    "in float64 and back": lambda layer: layer.double().to_empty(device="cpu").float(),
}


@pytest.mark.parametrize("keywords", [{}, {"learnable": True, "accuracy": 4}, {"padding_mode": "circular"}], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_named_bases_get_their_numbers_back(name, keywords):
    for ndim, kind in ((2, lc.LConv2d), (3, lc.LConv3d)):
        expected = kind(2, 3, name, **keywords)
        for fill in FILLED.values():
            layer = fill(deferred(lambda: kind(2, 3, name, **keywords)))  # noqa: B023
            assert equal(layer.generators, expected.generators)
            layer.reset_parameters()
            x = torch.randn(1, 2, *[6] * ndim)
            # Uniform weights: as wide as those of a layer that was never without memory.
            assert (layer.bias == 0).all()
            for one, other in zip(layer.weight, expected.weight, strict=True):
                assert 0 < one.abs().max() < 3 * other.abs().max()
            assert layer(x).isfinite().all()


@pytest.mark.parametrize("order", ["parents first", "children first"])
@pytest.mark.parametrize("factorized", [False, True])
def test_filled_module_by_module_weights_have_their_variance(order, factorized):
    """Also where a layer starts before its generators are there."""
    options = {"generators": "second", "factorized": factorized, "bias": False}
    layer = FILLED[order](deferred(lambda: lc.LConv2d(64, 64, **options)))
    expected = lc.LConv2d(64, 64, **options)
    for one, other in zip(layer.weight, expected.weight, strict=True):
        assert abs(one.std() / other.std() - 1) < 0.1


def test_skip_init():
    assert equal(nn.utils.skip_init(lc.LConv2d, 3, 4, "gl").generators, lc.LConv2d(3, 4, "gl").generators)


def test_normalised_bases_come_back_normalised():
    expected = normalise(named("affine"))
    assert equal(normalise(deferred(lambda: named("affine"))).to_empty(device="cpu"), expected)
    assert equal(copy.deepcopy(expected).to("meta").to_empty(device="cpu"), expected)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", GENERATORS)
def test_other_numbers_raise_until_they_are_filled(kind, swap):
    make, x = GENERATORS[kind], torch.randn(2, 3, *GRID)
    truth = lc.LConv2d(3, 4, make())
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer = deferred(lambda: lc.LConv2d(3, 4, make())).to_empty(device="cpu")
        assert layer.to(torch.float64).float() is layer
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    copies = [layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for one in copies:
        for call in (
            lambda: one(x),  # noqa: B023
            lambda: one.generators(x),  # noqa: B023
            lambda: one.generators.to_dense(GRID),  # noqa: B023
            lambda: lc.LConv2d(1, 1, one.generators),  # noqa: B023
            one.reset_parameters,
        ):
            with pytest.raises(RuntimeError, match=RAW):
                call()
    expected = truth(x)
    assert torch.equal(functional_call(layer, truth.state_dict(), x), expected)
    layer.load_state_dict(truth.state_dict())
    copies[1].load_state_dict(truth.state_dict(), assign=True)
    for one in (layer, copies[1], copy.deepcopy(layer), layer.generators and layer):
        assert torch.equal(one(x), expected)
    layer.generators.reset_parameters()  # nothing is asked for, nothing changes
    assert torch.equal(layer(x), expected)


def test_filled_by_hand():
    layer = deferred(lambda: lc.LConv2d(3, 4, GENERATORS["affine"]())).to_empty(device="cpu")
    nn.init.normal_(layer.generators.matrix)
    with pytest.raises(RuntimeError, match="generators: shift of AffineGenerators " + "came"):
        layer.reset_parameters()
    nn.init.zeros_(layer.generators.shift)
    layer.reset_parameters()
    assert layer(torch.randn(1, 3, *GRID)).isfinite().all()


def test_on_the_meta_device_itself():
    """Shapes alone, as in nn.Conv2d, and with numbers lent for one call."""
    layer, truth, x = deferred(lambda: lc.LConv2d(3, 4)), lc.LConv2d(3, 4), torch.randn(2, 3, *GRID)
    assert copy.deepcopy(layer)(x.to("meta")).shape == (2, 4, *GRID)
    assert torch.equal(functional_call(layer, truth.state_dict(), x), truth(x))
    stacked = torch.func.stack_module_state([lc.LConv2d(3, 4), truth])
    outputs = torch.vmap(lambda p, b: functional_call(layer, (p, b), x))(*stacked)
    assert torch.allclose(outputs[1], truth(x), atol=1e-6)


def test_raw_numbers_do_not_pass_a_save():
    file = io.BytesIO()
    torch.save(deferred(lambda: lc.LConv2d(3, 4, GENERATORS["dense"]())).to_empty(device="cpu"), file)
    file.seek(0)
    with pytest.raises(RuntimeError, match=RAW):
        torch.load(file, weights_only=False)(torch.randn(1, 3, *GRID))


@pytest.mark.parametrize("learnable", [False, True])
def test_under_fake_tensors(learnable):
    with FakeTensorMode():
        assert lc.LConv2d(3, 4, learnable=learnable)(torch.empty(2, 3, *GRID)).shape == (2, 4, *GRID)


def test_compiled_after_it_is_filled():
    layer = deferred(lambda: lc.LConv2d(3, 4, GENERATORS["affine"]())).to_empty(device="cpu")
    layer.load_state_dict(lc.LConv2d(3, 4, GENERATORS["affine"]()).state_dict())
    x = torch.randn(1, 3, *GRID)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_graphs():
    def make():
        return lc.LConvGraph(2, 3, lc.GraphGenerators(torch.tensor([[0, 1], [1, 2]]), torch.ones(2), 3))

    layer, f = deferred(make).to_empty(device="cpu"), torch.randn(3, 2)
    with pytest.raises(RuntimeError, match=RAW):
        layer(f)
    truth = make()
    layer.load_state_dict(truth.state_dict())
    assert torch.equal(layer(f), truth(f))
