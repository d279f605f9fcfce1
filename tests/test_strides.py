"""Strided layers against every stride-th point of the layer without: values, and all gradients of both."""

import pytest
import torch
from problems import TOLERANCE, problems, relative_rms

import lconv_fast as lc

KINDS = ("affine", "constant", "stencil", "field", "differential")
GRIDDED = [p for p in problems() if p.kind in KINDS and p.accuracy == 2]
STRIDES = {1: [(2,), (3,), (5,)], 2: [(2, 2), (3, 1), (1, 4), (2, 3)], 3: [(2, 2, 2), (1, 2, 3)]}


def results(problem, stride, groups, dtype, memory_format):
    torch.manual_seed(0)
    generators = problem.make(
        problem.numbers(torch.float64 if dtype == torch.float64 else torch.float32), learnable=True
    )
    f = torch.randn(2, 5 * groups, *problem.grid, dtype=torch.float64).to(dtype)
    if memory_format == "channels_last":
        f = f.movedim(1, -1).contiguous().movedim(-1, 1)
    weight = torch.randn(problem.count + 1, 3 * groups, 5, dtype=torch.float64).to(dtype)
    f, weight = f.requires_grad_(), weight.requires_grad_()
    inputs = [f, weight, *generators.parameters()]
    every = (..., *(slice(None, None, s) for s in stride))
    for y in (
        lc.functional.lconv(f, weight, generators, stride=stride, groups=groups),
        lc.functional.lconv(f, weight, generators, groups=groups)[every],
    ):
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        yield [y, *torch.autograd.grad(y, inputs, g)]


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", GRIDDED, ids=str)
def test_is_every_stride_th_point(problem, memory_format):
    for stride in STRIDES[problem.ndim]:
        for groups in (1, 2):
            for a, b in zip(*results(problem, stride, groups, torch.float64, memory_format), strict=True):
                assert a.shape == b.shape and relative_rms(a, b) < 1e-13, (stride, groups)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("problem", [p for p in GRIDDED if p.ndim == 2 and p.mode in ("zeros", "circular")], ids=str)
def test_dtypes(problem, dtype):
    for memory_format in ("contiguous", "channels_last"):
        for a, b in zip(*results(problem, (2, 2), 1, dtype, memory_format), strict=True):
            assert relative_rms(a, b.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("accuracy", [2, 4, 8])
@pytest.mark.parametrize("name", ["affine", "second", "unit_laplacian"])
def test_halo(name, accuracy):
    """A halo of any depth beside a stride: dQ/df of the piece is the whole one's, cut."""
    torch.manual_seed(0)
    layer = lc.LConv2d(4, 3, name, stride=(2, 3), accuracy=accuracy).double()
    f = torch.randn(1, 4, 20, 21, dtype=torch.float64, requires_grad=True)
    halo = ((8, 4), (6, 7))  # origins are multiples of the stride
    y = lc.functional.lconv(f, layer.weight, layer.generators, stride=(2, 3), halo=halo, window=((8, 6), (40, 40)))
    whole = torch.zeros(1, 4, 40, 40, dtype=torch.float64)
    whole[..., :20, :21] = f.detach()
    whole.requires_grad_()
    expected = lc.functional.lconv(whole, layer.weight, layer.generators, stride=(2, 3))[..., 4:8, 2:5]
    assert relative_rms(y, expected) < 1e-13
    g = torch.randn_like(y)
    (ours,), (theirs,) = torch.autograd.grad(y, f, g), torch.autograd.grad(expected, whole, g)
    assert relative_rms(ours, theirs[..., :20, :21]) < 1e-13
