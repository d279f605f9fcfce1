"""Networks of the kinds that torchvision and timm hold, written here: exact conversion, gradients, plain form, undo."""

import copy

import pytest
import torch
from problems import relative_rms
from torch import nn
from torch.nn import functional as F

import lconv_fast as lc


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, ins, outs, stride):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(ins, outs, 3, stride, 1, bias=False),
            nn.Conv2d(outs, outs, 3, 1, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outs) for _ in range(2))
        self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x):
        y = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(y)) + self.shortcut(x)).relu()


class Depthwise(nn.Module):
    """A 7 x 7 convolution of each channel and two products, as in ConvNeXt."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        y = self.norm(self.conv(x).movedim(1, -1))
        return x + self.narrow(F.gelu(self.wide(y))).movedim(-1, 1)


def head(channels):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def resnet():
    stem = (nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, Residual(8, 8, 1), Residual(8, 16, 2), *head(16))


def convnext():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Depthwise(8), nn.Conv2d(8, 16, 2, 2), Depthwise(16), *head(16))


@pytest.mark.parametrize("make, replaced", [(resnet, 5), (convnext, 4)])
def test_exact_and_back(make, replaced):
    model, x = make(), torch.randn(2, 3, 40, 33, requires_grad=True)
    model(x)  # batch statistics
    model.eval()
    y, state, modules = model(x), copy.deepcopy(model.state_dict()), dict(model.named_modules())
    g = torch.randn_like(y)
    wanted = torch.autograd.grad(y, x, g)[0]
    report = lc.convert.swap(model, "shifts")
    assert len(report.replaced) == replaced
    z = model(x)
    assert relative_rms(z, y) < 1e-6
    assert relative_rms(torch.autograd.grad(z, x, g)[0], wanted) < 1e-6
    assert relative_rms(lc.convert.lower(model)(x), y) < 1e-6
    report.undo()
    assert dict(model.named_modules()) == modules and torch.equal(model(x), y)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
