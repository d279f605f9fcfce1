"""Derivatives of every order in the generators' own numbers, the data, the weight and the bias, kind by kind."""

import pytest
import torch
from problems import Problem, other_problems
from torch.func import functional_call

TAPS = [
    Problem("differential", 2, "reflect"),
    Problem("differential", 1, "circular", 4),
    Problem("differential sampled", 2, "replicate"),
    Problem("product", 2, "zeros"),
    Problem("product", 1, "circular"),
]
OTHER = [p for p in other_problems() if p.ndim < 3]


class Layer(torch.nn.Module):
    def __init__(self, problem, generators, stride, groups):
        super().__init__()
        self.problem, self.generators, self.stride, self.groups = problem, generators, stride, groups

    def forward(self, f, weight, bias):
        return self.problem.layer(f, weight, self.generators, bias, self.stride, self.groups)


def function_and_arguments(problem, transposed, stride=1, groups=1, ins=2, outs=3):
    generators = problem.make(problem.numbers(), learnable=True)
    layer = Layer(problem, generators.transpose() if transposed else generators, stride, groups)
    names = list(dict(layer.named_parameters()))

    def function(*arguments):
        numbers = dict(zip(names, arguments, strict=False))
        return functional_call(layer, numbers, arguments[len(names) :])

    arguments = [p.detach().clone() for p in layer.parameters()]
    arguments.append(torch.randn(2, ins * groups, *problem.grid, dtype=torch.float64))
    arguments.append(torch.randn(problem.count + 1, outs * groups, ins, dtype=torch.float64))
    arguments.append(torch.randn(outs * groups, dtype=torch.float64))
    return function, [t.requires_grad_() for t in arguments]


@pytest.mark.parametrize("transposed", [False, True], ids=["L", "L^T"])
@pytest.mark.parametrize("problem", TAPS + OTHER, ids=str)
def test_gradcheck(problem, transposed):
    function, arguments = function_and_arguments(problem, transposed, stride=2, groups=2, ins=3, outs=2)
    torch.autograd.gradcheck(function, arguments, fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("transposed", [False, True], ids=["L", "L^T"])
@pytest.mark.parametrize("problem", TAPS + OTHER, ids=str)
def test_gradgradcheck(problem, transposed):
    function, arguments = function_and_arguments(problem, transposed)
    torch.autograd.gradgradcheck(function, arguments, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("problem", OTHER, ids=str)
def test_mapped_over_examples(problem):
    """torch.vmap over the data, and over data and weight."""
    function, arguments = function_and_arguments(problem, False)
    *numbers, f, weight, bias = (t.detach() for t in arguments)
    stacked, weights = torch.stack([f, -2 * f]), torch.stack([weight, weight.flip(0)])
    found = torch.vmap(lambda f, w: function(*numbers, f, w, bias))(stacked, weights)
    for k in range(2):
        assert torch.allclose(found[k], function(*numbers, stacked[k], weights[k], bias), rtol=1e-12, atol=1e-12)
