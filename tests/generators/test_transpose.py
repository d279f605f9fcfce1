"""transpose() of every kind: of parametrized generators too, as a module of its own."""

import copy

import pytest
import torch
from problems import other_problems, problems, relative_rms
from torch import nn
from torch.nn.utils import parametrize

import lconv_fast as lc

KINDS = {p.kind: p for p in [*other_problems(), *problems()] if p.ndim < 3}


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def parametrized(kind):
    problem = KINDS[kind]
    generators = problem.make(problem.numbers(), learnable=True)
    owner = generators.generators if kind == "product" else generators
    name = next(iter(dict(owner.named_parameters())))
    parametrize.register_parametrization(owner, name, Doubled())
    return problem, generators, owner, name


@pytest.mark.parametrize("kind", KINDS)
def test_parametrized(kind):
    problem, generators, owner, name = parametrized(kind)
    truth = problem.dense(problem.numbers())
    turned = generators.transpose()
    assert isinstance(turned, type(problem.make(problem.numbers())))
    assert relative_rms(generators.to_dense(problem.grid), truth) < 1e-14
    assert relative_rms(turned.to_dense(problem.grid), truth.transpose(1, 2)) < 1e-14
    assert relative_rms(turned.transpose().to_dense(problem.grid), truth) < 1e-14
    # One parameter for both.
    assert list(map(id, turned.parameters())) == list(map(id, generators.parameters()))
    turned.to_dense(problem.grid).square().sum().backward()
    original = getattr(owner.parametrizations, name).original
    assert original.grad.abs().max() > 0


# Those whose numbers are one tensor.
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("product", "affine", "affine differential")])
def test_parametrization_removed_from_one_of_both(kind):
    problem, generators, _, name = parametrized(kind)
    truth = problem.dense(problem.numbers())
    turned = generators.transpose()
    parametrize.remove_parametrizations(generators, name)  # which writes 2 x into the parameter that both share
    assert parametrize.is_parametrized(turned)
    assert relative_rms(turned.to_dense(problem.grid), 2 * truth.transpose(1, 2)) < 1e-14
    again = generators.transpose()
    assert not parametrize.is_parametrized(again)
    assert relative_rms(again.to_dense(problem.grid), truth.transpose(1, 2)) < 1e-14


def test_in_a_layer_and_copied():
    generators = lc.AffineGenerators.named("gl", 2, learnable=True)
    parametrize.register_parametrization(generators, "matrix", Doubled())
    layer = lc.LConv2d(2, 3, generators.transpose())
    x = torch.randn(1, 2, 6, 7)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer(x).sum().backward()
    assert generators.parametrizations.matrix.original.grad.abs().max() > 0


def test_hooks_and_buffers_are_each_ones_own():
    generators = lc.AffineGenerators.named("se", 2)
    turned, calls = generators.transpose(), []
    turned.register_forward_hook(lambda *_: calls.append(1))
    turned.double()
    generators(torch.randn(1, 1, 4, 4))
    assert not calls and generators.matrix.dtype == torch.float32
