"""Derivatives of every order, backward and forward, in float64."""

import pytest
import torch
from problems import Problem, relative_rms

import lconv_fast as lc
from lconv_fast import form

SMALL = [
    Problem("affine", 2, "zeros"),
    Problem("affine", 1, "reflect"),
    Problem("affine", 3, "circular"),
    Problem("field", 2, "replicate"),
    Problem("field", 1, "circular", 4),
    Problem("stencil", 2, "reflect"),
    Problem("stencil", 3, "zeros"),
    Problem("constant", 2, "circular"),
    Problem("constant", 1, "replicate"),
]


def function_and_arguments(problem, transposed=False, stride=1, groups=1, channels_last=False):
    """y as a function of the coefficients, f, W and the bias, straight through form.lconv."""
    generators = problem.make(problem.numbers())
    if transposed:
        generators = generators.transpose()
    f = torch.randn(2, 2 * groups, *problem.grid, dtype=torch.float64)
    if channels_last:
        f = f.movedim(1, -1).contiguous().movedim(-1, 1)
    arguments = [
        generators.coefficients().detach().clone(),
        f,
        torch.randn(problem.count + 1, 3 * groups, 2, dtype=torch.float64),
        torch.randn(3 * groups, dtype=torch.float64),
    ]
    stencil = generators.stencil()

    def function(v, f, weight, bias):
        return form.lconv(v, f, weight, bias, stencil, (stride,) * problem.ndim, groups)

    return function, [t.requires_grad_() for t in arguments]


@pytest.mark.parametrize("transposed", [False, True], ids=["L", "L^T"])
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_gradcheck(problem, transposed):
    function, arguments = function_and_arguments(problem, transposed, stride=2, groups=2)
    torch.autograd.gradcheck(function, arguments, fast_mode=True, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("transposed", [False, True], ids=["L", "L^T"])
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_gradgradcheck(problem, transposed):
    function, arguments = function_and_arguments(problem, transposed, channels_last=True)
    torch.autograd.gradgradcheck(
        function, arguments, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("problem", SMALL[:3], ids=str)
def test_third_order(problem):
    """The layer is linear in each slot, so the derivative along (v, f, W) once each is the layer of the directions."""
    function, (v, f, weight, bias) = function_and_arguments(problem)
    dv, df, dw = (torch.randn_like(t) for t in (v, f, weight))
    u = torch.randn_like(function(v, f, weight, bias)).requires_grad_()
    (first,) = torch.autograd.grad(function(v, f, weight, bias), f, u, create_graph=True)
    (second,) = torch.autograd.grad((first * df).sum(), weight, create_graph=True)
    (third,) = torch.autograd.grad((second * dw).sum(), v, create_graph=True)
    (fourth,) = torch.autograd.grad((third * dv).sum(), u)
    identity_free = torch.cat([torch.zeros_like(dw[:1]), dw[1:]])
    assert relative_rms(fourth, function(dv, df, identity_free, torch.zeros_like(bias))) < 1e-13
    torch.autograd.gradgradcheck(
        lambda v, f, w: torch.autograd.grad(function(v, f, w, bias).pow(2).sum(), f, create_graph=True)[0],
        (v, f, weight),
        fast_mode=True,
    )


@pytest.mark.parametrize("slot", [0, 1, 2, 3])
def test_forward_mode_in_each_slot(slot):
    function, arguments = function_and_arguments(Problem("affine", 2, "replicate"))
    tangents = [torch.zeros_like(a) for a in arguments]
    tangents[slot] = torch.randn_like(arguments[slot])
    _, tangent = torch.func.jvp(function, tuple(arguments), tuple(tangents))
    reference = torch.autograd.functional.jvp(function, tuple(arguments), tuple(tangents))[1]  # twice backward
    assert relative_rms(tangent, reference) < 1e-13


def test_hessian_forward_over_reverse():
    function, (v, f, weight, bias) = function_and_arguments(Problem("affine", 1, "circular"))

    def energy(v):
        return function(v, f.detach(), weight.detach(), bias.detach()).tanh().sum()

    a = torch.func.hessian(energy)(v.detach())
    b = torch.autograd.functional.hessian(energy, v.detach())
    assert relative_rms(a, b) < 1e-12


def test_per_sample_gradients():
    layer = lc.LConv2d(3, 4, "se", learnable=True, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for k in range(3):
        one = torch.func.grad(loss)(parameters, x[k])
        for name, gradient in one.items():
            assert relative_rms(per_sample[name][k], gradient) < 1e-12


def test_vmap_over_weights_and_data():
    generators = lc.AffineGenerators.named("affine").double()
    x, w = torch.randn(4, 2, 3, 6, 7, dtype=torch.float64), torch.randn(4, 7, 5, 3, dtype=torch.float64)
    for in_dims in ((0, 0), (None, 0), (0, None)):
        a = x if in_dims[0] == 0 else x[0]
        b = w if in_dims[1] == 0 else w[0]
        result = torch.func.vmap(lambda x, w: lc.functional.lconv(x, w, generators), in_dims=in_dims)(a, b)
        for k in range(4):
            single = lc.functional.lconv(a[k] if in_dims[0] == 0 else a, b[k] if in_dims[1] == 0 else b, generators)
            assert relative_rms(result[k], single) < 1e-14


def test_derivatives_through_dual_numbers_and_batches_of_images():
    layer = lc.LConv2d(2, 2, "rotation", padding_mode="circular", dtype=torch.float64)
    x, t = torch.randn(2, 5, 2, 6, 6, dtype=torch.float64)
    _, tangent = torch.func.jvp(torch.func.vmap(layer), (x,), (t,))
    expected = layer(t) - layer(torch.zeros_like(t))
    assert relative_rms(tangent, expected) < 1e-13
