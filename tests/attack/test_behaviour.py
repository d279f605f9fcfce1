"""What nn.Conv2d can do, the layers can: each wrapper, copy and process."""

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parametrizations, parametrize, prune

import lconv_fast as lc

KINDS = {
    "affine": lambda **o: lc.LConv2d(3, 4, "affine", **o),
    "learnable": lambda **o: lc.LConv2d(3, 4, "gl", learnable=True, **o),
    "second": lambda **o: lc.LConv2d(3, 4, "second", **o),
    "factorized": lambda **o: lc.LConv2d(3, 4, "se", factorized=True, **o),
    "spectral": lambda **o: lc.LConv2d(3, 4, "se", accuracy="spectral", padding_mode="circular", **o),
    "sampled": lambda **o: lc.LConv2d(3, 4, lc.FieldGenerators(torch.randn(2, 2, 6, 7), learnable=True), **o),
    "low rank": lambda **o: lc.LConv2d(
        3, 4, lc.LowRankGenerators(torch.randn(1, 42, 2), torch.randn(1, 2, 42), learnable=True), **o
    ),
    "product": lambda **o: lc.LConv2d(3, 4, lc.ProductGenerators(lc.AffineGenerators.named("se"), spatial=(6, 7)), **o),
}
X = torch.randn(2, 3, 6, 7)


class Wide(nn.Module):
    def forward(self, t):
        return t.tanh() * 2


def through_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state_dict(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(layer)
    for t in other.state_dict().values():
        t.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def converted(layer, flag):
    flag(True)
    try:
        return copy.deepcopy(layer).double().float()
    finally:
        flag(False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": through_torch_save,
    "state dict": through_state_dict,
    "swapped tensors": lambda layer: converted(layer, torch.__future__.set_swap_module_params_on_conversion),
    "overwritten": lambda layer: converted(layer, torch.__future__.set_overwrite_module_params_on_conversion),
    "functional_call": lambda layer: (
        lambda x: functional_call(copy.deepcopy(layer).to("meta"), layer.state_dict(keep_vars=True), x)
    ),
    "shared memory": lambda layer: copy.deepcopy(layer).share_memory(),
    "channels last": lambda layer: copy.deepcopy(layer).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind, how):
    layer = KINDS[kind]()
    x = X.clone().requires_grad_()
    y, other = layer(x), COPIES[how](layer)(x)
    assert torch.equal(other, y)
    (expected,), (found,) = (torch.autograd.grad(t.square().sum(), x) for t in (y, other))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "factorized"])
def test_parametrized_weights(kind):
    layer = KINDS[kind]()
    plain = copy.deepcopy(layer)
    parametrize.register_parametrization(layer, "weight", Wide())
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
    assert torch.equal(layer(X), plain(X)) and torch.equal(copy.deepcopy(layer)(X), plain(X))
    layer(X).sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer(X), plain(X))


@pytest.mark.parametrize("name", ["generators.matrix", "generators.shift"])
def test_parametrized_generators(name):
    layer = KINDS["learnable"]()
    parametrize.register_parametrization(layer.generators, name.split(".")[1], Wide())
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))
    for g in (layer.generators, layer.generators.transpose()):
        dense = g.to_dense((6, 7))
        assert torch.allclose(g(X).flatten(3), torch.einsum("ixy,ncy->nicx", dense, X.flatten(2)), atol=1e-5)


WRAPPERS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned at random": lambda layer: prune.random_unstructured(layer, "weight", amount=0.5),
    "pruned by size": lambda layer: prune.l1_unstructured(layer, "weight", amount=7),
    "pruned by channels": lambda layer: prune.ln_structured(layer, "weight", amount=2, n=2, dim=1),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_weights(wrapper):
    layer = WRAPPERS[wrapper](lc.LConv2d(3, 4, "se")).eval()
    assert torch.equal(layer(X), lc.functional.lconv(X, layer.weight, layer.generators, layer.bias))
    other = WRAPPERS[wrapper](lc.LConv2d(3, 4, "se")).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X))
    layer.train()(X).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("kind", ["affine", "learnable", "second", "sampled", "low rank"])
def test_function_transforms(kind):
    """Gradients of single examples, by vmap, as they come one by one."""
    layer = KINDS[kind]()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x.unsqueeze(0),)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, X)
    for k, x in enumerate(X):
        for name, one in grad(loss)(parameters, x).items():
            torch.testing.assert_close(found[name][k], one, rtol=1e-4, atol=1e-4)
    assert jacrev(layer)(X[0]).shape == (4, 6, 7, 3, 6, 7)


def test_gradients_of_changed_inputs_are_refused():
    """Autograd sees a write to what backward needs."""
    layer, x = lc.LConv2d(3, 4, "se"), X.clone()
    y = layer(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_pickles_reach_other_processes(tmp_path):
    layers = {kind: make() for kind, make in KINDS.items()}
    torch.save((layers, X, {kind: layer(X) for kind, layer in layers.items()}), tmp_path / "layers.pt")
    code = """
import sys, torch
layers, x, expected = torch.load(sys.argv[1], weights_only=False)
assert all(torch.equal(layer(x), expected[kind]) for kind, layer in layers.items())
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "layers.pt")], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def _work(layer, x, queue):
    torch.set_num_threads(1)  # as in workers of a DataLoader: the threads of the parent are not there after a fork
    y = layer(x.requires_grad_())
    queue.put((y.detach().numpy(), torch.autograd.grad(y.sum(), x)[0].numpy()))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(start):
    """A layer that has run here runs in a child, forwards and backwards."""
    layer, x = lc.LConv2d(3, 4, "affine"), torch.randn(2, 3, 40, 41, requires_grad=True)
    y = layer(x)
    expected = (y.detach(), torch.autograd.grad(y.sum(), x)[0])
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    worker = context.Process(target=_work, args=(layer, x.detach(), queue))
    worker.start()
    found = queue.get(timeout=60)
    worker.join(timeout=60)
    assert worker.exitcode == 0
    assert all(torch.equal(torch.from_numpy(one), other) for one, other in zip(found, expected, strict=True))
