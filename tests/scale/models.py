"""Models that the tests of regions and of streaming share, drawn and by hand."""

import random

import torch
from torch import nn

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.ops.boundary import PADDING_MODES

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
LCONVS = {2: lc.LConv2d, 3: lc.LConv3d}
UPS = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEAN_POOLS = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_POOLS = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
BATCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MODES = tuple(PADDING_MODES)
LINEAR = {2: "bilinear", 3: "trilinear"}


class Excite(nn.Module):
    """Channels weighted by their global means."""

    def __init__(self, ndim, channels):
        super().__init__()
        self.pool, self.mix = GLOBAL_POOLS[ndim](1), nn.Linear(channels, channels)

    def forward(self, f):
        weight = self.mix(self.pool(f).flatten(1)).sigmoid()
        return f * weight.reshape(*weight.shape, *[1] * (f.dim() - 2)).expand_as(f)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, f):
        return f + self.block(f)


class Hourglass(nn.Module):
    """One level down and up again, with a skip; sizes need not be even."""

    def __init__(self, down, inside, up, ndim):
        super().__init__()
        self.down, self.inside, self.up, self.ndim = down, inside, up, ndim

    def forward(self, f):
        g = self.up(self.inside(self.down(f)))
        space = f.shape[2:]
        g = nn.functional.pad(
            g, [side for n, m in zip(reversed(space), reversed(g.shape[2:]), strict=True) for side in (0, n - m)]
        )
        return torch.cat([f, g], 1)


def conv(draw, ndim, ins, outs, stride=1):
    mode = draw.choice(MODES)
    if draw.random() < 0.5:
        basis = draw.choice(["affine", "laplacian", "second"])
        return LCONVS[ndim](ins, outs, basis, stride=stride, padding_mode=mode, accuracy=draw.choice([2, 4]))
    kernel, dilation = draw.choice([(1, 1), (3, 1), (3, 2)])
    return CONVS[ndim](
        ins, outs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, padding_mode=mode
    )


def norm(draw, ndim, channels):
    return draw.choice(
        [
            lambda: BATCH[ndim](channels),
            lambda: BATCH[ndim](channels, momentum=None),
            lambda: INSTANCE[ndim](channels, affine=True),
            lambda: INSTANCE[ndim](channels, track_running_stats=True),
            lambda: nn.GroupNorm(2, channels),
            lambda: nets.blocks.ChannelNorm(channels),
            lambda: Excite(ndim, channels),
            nn.Identity,
        ]
    )()


def block(draw, ndim, ins, outs, stride=1):
    act = draw.choice([nn.ReLU(inplace=True), nn.GELU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.SiLU()])
    return nn.Sequential(conv(draw, ndim, ins, outs, stride), norm(draw, ndim, outs), act)


def hourglass(draw, ndim, channels):
    down = draw.choice(
        [
            lambda: MAX_POOLS[ndim](2, ceil_mode=draw.random() < 0.5),
            lambda: MEAN_POOLS[ndim](3, 2, padding=1, count_include_pad=draw.random() < 0.5),
            lambda: conv(draw, ndim, channels, channels, stride=2),
        ]
    )()
    up = draw.choice(
        [
            lambda: UPS[ndim](channels, channels, 2, stride=2),
            lambda: UPS[ndim](channels, channels, 3, stride=2, padding=1, output_padding=1),
            lambda: nn.Upsample(scale_factor=2, mode="nearest"),
            lambda: nn.Upsample(scale_factor=2, mode=LINEAR[ndim]),
            lambda: nn.Upsample(scale_factor=2, mode=LINEAR[ndim], align_corners=True),
        ]
    )()
    return Hourglass(down, block(draw, ndim, channels, channels), up, ndim)


def drawn(seed, ndim):
    """A model of 1 channel to 2, in float64."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers = [block(draw, ndim, 1, 4)]
    if draw.random() < 0.7:
        layers += [hourglass(draw, ndim, 4), block(draw, ndim, 8, 4)]
    if draw.random() < 0.7:
        layers.append(Residual(*block(draw, ndim, 4, 4)))
    return nn.Sequential(*layers, CONVS[ndim](4, 2, 1)).double()


def residual_lconv():
    """A residual net of L-convs without norms."""
    layers = [Residual(lc.LConv3d(4, 4, "affine"), nn.GELU(), lc.LConv3d(4, 4, "laplacian")) for _ in range(2)]
    return nn.Sequential(lc.LConv3d(1, 4), *layers, nn.Conv3d(4, 2, 1)).double()


def unet(**keywords):
    """A U-Net with instance norm."""
    return nets.LUNet(1, 2, "affine", ndim=3, widths=(4, 6, 8), layers=1, norm="instance", **keywords).double()
