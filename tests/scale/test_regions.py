"""Regions of a model against what its output depends on, found by changing one input point at a time."""

import pytest
import torch
from models import Excite, drawn, unet
from torch import nn

import lconv_fast as lc


def dependence(model, shape):
    """For each point of the output the input points whose change changes it: (outputs, inputs)."""
    x = torch.randn(shape, dtype=torch.float64)
    y = model(x)
    rows = torch.zeros(y[0, 0].numel(), x[0, 0].numel(), dtype=torch.bool)
    for k in range(x[0, 0].numel()):
        for change in (10, -10):  # a maximum sees one of them
            other = x.clone().reshape(*shape[:2], -1)
            other[..., k] += change
            rows[:, k] |= (model(other.reshape(shape)) != y).any(1)[0].flatten()
    return rows


class LocalOnly(nn.Module):
    """A drawn model without the norms that see all of space."""

    def __init__(self, model):
        super().__init__()
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, (nn.modules.batchnorm._NormBase, nn.GroupNorm, Excite)):
                    setattr(module, name, nn.Identity())
        self.model = model

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("seed", range(8))
def test_regions_hold_what_outputs_depend_on(seed):
    """No output point depends on a point outside its region, which is no larger than the receptive field says."""
    shape = (1, 1, 13, 12)
    model = LocalOnly(drawn(seed, 2)).eval()
    plan = lc.regions(model, shape)
    rows = dependence(model, shape).reshape(*plan.output_shape[2:], *shape[2:])
    height, width = plan.output_shape[2:]
    generator = torch.Generator().manual_seed(seed)
    for box in [((0, 1), (0, 1)), ((height - 1, height), (3, 5))] + [
        tuple(
            (int(a), int(a) + int(b) + 1)
            for a, b in zip(torch.randint(0, n, (2,), generator=generator), [0, 0], strict=True)
        )
        for n in [min(height, width)] * 6
    ]:
        seen = rows[tuple(slice(*interval) for interval in box)].flatten(0, 1).any(0)
        allowed = torch.zeros(shape[2:], dtype=torch.bool)
        first, second = plan.segments(box)
        for a in first:
            for b in second:
                allowed[slice(*a), slice(*b)] = True
        assert not (seen & ~allowed).any()
        assert sum(map(lambda s: s[1] - s[0], first)) <= plan.receptive_field[0] * (box[0][1] - box[0][0] + 2)


def test_a_stack_of_convolutions_by_hand():
    """kernel 3, stride 2, then dilation 2: 1 + 2 + 2 * 4 = 11 points; halo by hand."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, 3, padding=2, dilation=2))
    plan = lc.regions(model, (1, 1, 32, 40))
    assert plan.local and plan.receptive_field == (11, 11) and plan.stride == (2, 2)
    assert plan.input_region(((4, 8), (0, 20))) == ((3, 20), (0, 40))
    assert plan.halo == ((5, 4), (5, 4))


def test_periodic_boundaries_reach_round():
    plan = lc.regions(lc.LConv2d(1, 1, padding_mode="circular"), (1, 1, 16, 16))
    assert plan.segments(((0, 4), (8, 16))) == (((0, 5), (15, 16)), ((0, 1), (7, 16)))


def test_tiles_with_the_halo_of_the_plan_read_what_the_plan_says():
    model = unet(padding_mode="zeros")
    plan = lc.regions(model, (1, 1, 64, 64, 64))
    step = plan.axes[0].step
    tile = (24, 24 + step)
    for (low, high), region in zip(plan.halo, plan.input_region([tile] * 3), strict=True):
        assert region == (max(0, tile[0] - low), min(64, tile[1] + high))


class Attention(nn.Module):
    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(t, t, t).transpose(1, 2).reshape(x.shape)


class Flat(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_operators_that_are_not_local_are_named_with_their_path():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), Excite(2, 4), Attention())
    plan = lc.regions(model, (1, 1, 16, 16))
    found = {(one.path, one.operator, one.summable) for one in plan.nonlocal_operators}
    assert ("1", "aten.instance_norm", True) in found and ("2.pool", "aten.adaptive_avg_pool2d", True) in found
    assert ("3", "aten.scaled_dot_product_attention", False) in found
    assert "mean and variance" in str(plan) and plan.input_region(((0, 2), (0, 2))) == ((0, 16), (0, 16))
    (one,) = lc.regions(nn.Sequential(nn.Conv2d(1, 4, 3), Flat()), (1, 1, 16, 16)).nonlocal_operators
    assert (one.path, one.operator) == ("1", "aten.softmax") and "axis 1" in one.needs


def test_models_that_cannot_be_traced_are_named():
    with pytest.raises(ValueError, match=r"cannot be traced.* in 1 \(Branch\).*x.sum\(\) > 0"):
        lc.regions(nn.Sequential(nn.Conv2d(1, 4, 3), Branch()), (1, 1, 16, 16))
    with pytest.raises(TypeError, match=r"model: expected an nn.Module, got int"):
        lc.regions(3, (1, 1, 16, 16))
    with pytest.raises(ValueError, match="example_shape"):
        lc.regions(nn.Conv2d(1, 1, 3), (1, 1))
    plan = lc.regions(nn.Conv2d(1, 1, 3), (1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"output: expected 2 pairs"):
        plan.input_region(((0, 9), (0, 2)))
