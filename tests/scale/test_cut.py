"""A part of a tensor and its gradient: values, all strides, nothing where all is taken."""

import pytest
import torch

from lconv_fast.regions.cut import cut

PARTS = [{2: (1, 3)}, {2: (1, 3), 4: (2, 6), 3: (0, 5)}, {1: (2, 3), 4: (0, 0)}, {}]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_is_slices_with_one_gradient(memory_format, parts):
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    expected = x
    for dim, (first, stop) in parts.items():
        expected = expected.narrow(dim, first, stop - first)
    y = cut(x, parts)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    (ours,), (theirs,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g)
    assert torch.equal(ours, theirs)
    assert ours.stride() == x.stride() or y is x


def test_all_of_it_is_the_tensor_itself():
    x = torch.randn(2, 3, 4)
    assert cut(x, {0: (0, 2), 2: (0, 4)}) is x


def test_of_an_expanded_tensor():
    x = torch.randn(1, 3, 1, dtype=torch.float64).expand(2, 3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(cut(x, {2: (1, 3)}).sum(), x)
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    expected[..., 1:3] = 1
    assert torch.equal(gradient, expected)
