"""State dicts spoiled in more than twenty ways: refused with a clear error, or loaded as nn.Conv2d loads them."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import lconv_fast as lc

X = torch.randn(2, 3, 6, 7)
RENAMED = {"generators.matrix": "generators.field", "generators.shift": "generators.other"}

# name: (what is done to the state dict of an affine layer, the error)
REFUSED = {
    "a key too few": (lambda s: s.pop("weight"), "Missing key"),
    "no basis": (lambda s: s.pop("generators.matrix"), "Missing key"),
    "a key too many": (lambda s: s.update(other=torch.ones(1)), "Unexpected key"),
    "another name": (lambda s: s.update(weights=s.pop("weight")), "Missing key"),
    "generators of another kind": (lambda s: [s.update({v: s.pop(k)}) for k, v in RENAMED.items()], "Missing key"),
    "fewer generators": (lambda s: s.update(weight=s["weight"][:-1]), "size mismatch"),
    "more generators": (lambda s: s.update(weight=torch.cat([s["weight"]] * 2)), "size mismatch"),
    "a generator's numbers too many": (
        lambda s: s.update({k: torch.cat([s[k], s[k][:1]]) for k in RENAMED}), "size mismatch"),
    "channels changed over": (lambda s: s.update(weight=s["weight"].transpose(1, 2)), "size mismatch"),
    "as in two groups": (lambda s: s.update(weight=s["weight"][:, :, :1]), "size mismatch"),
    "a basis of three axes": (lambda s: s.update({"generators.matrix": torch.zeros(6, 3, 3)}), "size mismatch"),
    "fewer shifts": (lambda s: s.update({"generators.shift": torch.zeros(5, 2)}), "size mismatch"),
    "no axes": (lambda s: s.update(weight=torch.tensor(1.0)), "size mismatch"),
    "no entries": (lambda s: s.update(weight=torch.zeros(0)), "size mismatch"),
    "a list": (lambda s: s.update(weight=[1.0]), "expected torch.Tensor"),
    "an array": (lambda s: s.update(weight=s["weight"].numpy()), "expected torch.Tensor"),
    "nothing": (lambda s: s.update(bias=None), "expected torch.Tensor"),
    "a word": (lambda s: s.update({"generators.shift": "shift"}), "expected torch.Tensor"),
}  # fmt: skip


def affine():
    return lc.LConv2d(3, 4, "affine")


def state_of(layer):
    return {key: value.detach().clone() for key, value in layer.state_dict().items()}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """With the layer as usable as before: nothing of another key was read either."""
    spoil, message = REFUSED[case]
    layer = affine()
    state, before = state_of(layer), layer(X)
    spoil(state)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(layer(X), before)


# What one tensor is made into.
CHANGES = {
    "float64": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integers": lambda t: t.round().long(),
    "booleans": lambda t: t > 0,
    "complex": lambda t: t + 1j,
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "sparse": lambda t: t.to_sparse(),
    "on the meta device": lambda t: t.to("meta"),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "transposed memory": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda t: t[:1].expand(t.shape),
    "negative view": torch._neg_view,
    "a parameter": nn.Parameter,
    "one of a larger memory": lambda t: torch.cat([t, t])[len(t) :],
}  # fmt: skip


def outcome(layer, state, assign):
    """The error's type, None where it loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            layer.load_state_dict(state, assign=assign)
            return None
        except Exception as error:
            return type(error)


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("key", ["weight", "bias"])
@pytest.mark.parametrize("case", CHANGES)
def test_loaded_as_nn_conv_loads_it(case, key, assign):
    layer, conv = affine(), nn.Conv2d(3, 4, 3)
    errors, changed = [], None
    for module in (layer, conv):
        state = state_of(module)
        changed = state[key] = CHANGES[case](state[key])
        errors.append(outcome(module, state, assign))
    assert errors[0] == errors[1]
    if errors[0] is not None:
        return
    ours, theirs = getattr(layer, key), getattr(conv, key)
    assert (ours.dtype, ours.layout, ours.device.type) == (theirs.dtype, theirs.layout, theirs.device.type)
    if assign and (changed.dtype != torch.float32 or changed.layout != torch.strided or changed.is_meta):
        # Nothing that a convolution could compute with either: the layer says so.
        with pytest.raises((TypeError, ValueError), match=f"^{key}: expected"):
            layer(X)
        return
    expected = lc.functional.lconv(X, layer.weight.clone(), layer.generators, layer.bias.clone())
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=0, equal_nan=True)


def test_numbers_of_a_basis_are_loaded():
    """A basis is what was saved, also where the name would give others; `reset_parameters` gives those again."""
    layer, x = affine(), X.clone()
    state = state_of(layer)
    state["generators.matrix"].mul_(2.0)
    layer.load_state_dict(state)
    moved = lc.AffineGenerators(state["generators.matrix"], state["generators.shift"])
    assert torch.equal(layer(x), lc.functional.lconv(x, layer.weight, moved, layer.bias))
    layer.generators.reset_parameters()
    assert torch.equal(layer.generators.matrix, affine().generators.matrix)


def test_without_strictness():
    """What is missing stays, what is too much is left, and both are named."""
    layer = affine()
    state = state_of(layer)
    state.update(weight=state["weight"] * 2, other=torch.ones(1))
    del state["bias"], state["generators.shift"]
    found = layer.load_state_dict(state, strict=False)
    assert set(found.missing_keys) == {"bias", "generators.shift"} and found.unexpected_keys == ["other"]
    assert torch.equal(layer.weight, state["weight"]) and layer(X).isfinite().all()


def test_versions_are_those_of_any_module():
    layer = affine()
    state = layer.state_dict()
    for module in state._metadata.values():
        module["version"] = 99
    layer.load_state_dict(state)
    assert layer(X).isfinite().all()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(part, tmp_path):
    layer, file = affine(), io.BytesIO()
    before = layer(X)
    torch.save(layer.state_dict(), file)
    (tmp_path / "state.pt").write_bytes(file.getvalue()[: int(part * len(file.getvalue()))])
    with pytest.raises((RuntimeError, EOFError, ValueError)):
        layer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(layer(X), before)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("weight", torch.zeros(7, 4, 3, dtype=torch.float64), "weight: expected dtype torch.float32"),
        ("bias", torch.zeros(5), r"bias: expected shape \(4,\)"),
        ("weight", torch.zeros(6, 4, 3), "weight: expected 7 matrices"),
        ("generators.matrix", torch.zeros(6, 2, 2, dtype=torch.float64), "expected"),
    ],
    ids=str,
)
def test_layers_with_wrong_tensors_refuse_to_run(key, value, error):
    """Put in past load_state_dict's checks."""
    layer = affine()
    owner, name = layer.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]
    if name in owner._parameters:
        value = nn.Parameter(value)
    setattr(owner, name, value)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=error):
        layer(X)


@pytest.mark.parametrize("node", [-1, 3, 2**40, -(2**63)])
def test_edges_beyond_the_graph(node):
    """Of a spoiled file: nothing is read beyond the nodes, forwards and backwards."""
    graph = lc.GraphGenerators(torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.ones(3), 3, learnable=True)
    layer, f = lc.LConvGraph(2, 3, graph), torch.randn(3, 2, requires_grad=True)
    before, state = layer(f), state_of(layer)
    for row in range(2):
        edges = state["generators.edge_index"].clone()
        edges[row, 1] = node
        layer.load_state_dict({**state, "generators.edge_index": edges})
        with pytest.raises((ValueError, RuntimeError), match=r"edge_index|nodes or edges"):
            layer(f)
    layer.load_state_dict(state)
    assert torch.equal(layer(f), before)


def test_factorized_spectral_and_sampled_layers():
    """Of one kind into another: refused whole."""
    layers = {
        "factorized": lc.LConv2d(3, 4, "se", factorized=True),
        "spectral": lc.LConv2d(3, 4, "se", accuracy="spectral", padding_mode="circular"),
        "sampled": lc.LConv2d(3, 4, lc.FieldGenerators(torch.randn(3, 2, 6, 7))),
        "second": lc.LConv2d(3, 4, "second"),
        "low rank": lc.LConv2d(3, 4, lc.LowRankGenerators(torch.randn(3, 42, 2), torch.randn(3, 2, 42))),
        "dense": lc.LConv2d(3, 4, lc.DenseGenerators(np.float32(1) * torch.randn(3, 42, 42))),
    }
    for one, layer in layers.items():
        before = layer(X)
        for other, source in layers.items():
            if one == other:
                continue
            with pytest.raises(RuntimeError, match=r"Missing key|size mismatch"):
                layer.load_state_dict(source.state_dict())
        layer.load_state_dict(state_of(layer))
        if one != "sampled":
            assert layer(X).shape == before.shape
