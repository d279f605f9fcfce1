"""A U-Net of L-conv layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import boolean, choice
from lconv_fast.nets.blocks import CONVS, Factory, LBlock
from lconv_fast.nets.euclidean import EuclideanInvariants
from lconv_fast.nets.options import (
    Bases,
    channels_last,
    check_depths,
    check_input,
    check_options,
    check_widths,
    generators_of_level,
    run,
)
from lconv_fast.nets.resample import POOLS, double, halve


class LUNet(nn.Module):
    """A value for each point, from its surroundings at several scales: segmentation, restoration, one step of a PDE.

    Level l has grid size / 2^l and widths[l] channels: blocks of L-conv, norm and activation on the way down, the
    largest value of each 2^n cell (or their mean) to the next level; on the way up, channels are mixed on the coarse
    grid, copied to the fine one, and joined with what that level had. A last mixing gives out_channels (no activation).
    Any image size; nothing is padded.

    Args:
        in_channels, out_channels: of the input and of the result.
        generators: the basis of all layers: a name (then each generator is normalised, see
            `generators.normalise`), a Generators object, or a function of the level 0, 1, ... that returns either
            (bases that differ by level, or that fit one grid). The layers of a level share one object.
        ndim: 1, 2 or 3 axes.
        widths: channels of each level, finest first.
        layers: blocks in each half of a level; one number, or one for each level.
        norm: a name in NORMS (group, instance, batch, channel, none), or a function: channels -> module.
        activation: a name in ACTIVATIONS (relu, leaky_relu, gelu, silu, tanh, none), or a function: channels -> module.
        pool: the value of a cell of 2^n points on the next grid: "max" the largest, "mean" their mean.
        invariants: `EuclideanInvariants` at the end of each level on the way down. With `nets.isotropic` generators and
            pool="mean": a network that commutes with SE(n) and sees directions.
        checkpoint: keeps the inputs of the halves of levels alone for backward, and computes the rest again.
        **generator_keywords: with a name: padding_mode, accuracy, ...

    Shape: (N, in_channels, *spatial) -> (N, out_channels, *spatial), channels-last inside and out.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected, before anything is computed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        generators: Bases = "laplacian",
        *,
        ndim: int = 2,
        widths: Sequence[int] = (16, 32, 64),
        layers: int | Sequence[int] = 2,
        norm: str | Factory = "group",
        activation: str | Factory = "relu",
        pool: str = "max",
        invariants: bool = False,
        checkpoint: bool = False,
        **generator_keywords: Any,
    ) -> None:
        super().__init__()
        choice("pool", pool, POOLS)
        invariants = boolean("invariants", invariants)
        check_options(in_channels, out_channels, ndim, norm, activation, checkpoint)
        widths = check_widths(widths)
        depths = check_depths("layers", layers, len(widths))
        bases = [generators_of_level(generators, level, ndim, generator_keywords) for level in range(len(widths))]
        self.in_channels, self.ndim, self.pool, self.checkpoint = in_channels, ndim, pool, checkpoint

        def half(level: int, ins: int) -> nn.Sequential:
            channels = [ins] + [widths[level]] * depths[level]
            return nn.Sequential(*(LBlock(ndim, i, o, bases[level], norm, activation) for i, o in pairwise(channels)))

        down = [half(level, ins) for level, ins in enumerate([in_channels, *widths[:-1]])]
        if invariants:
            for block, width in zip(down, widths, strict=True):
                block.append(EuclideanInvariants(width, ndim))
        self.down = nn.ModuleList(down)
        self.mix = nn.ModuleList(CONVS[ndim](coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(half(level, 2 * width) for level, width in enumerate(widths[:-1]))
        self.head = CONVS[ndim](widths[0], out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        check_input(type(self).__name__, input, self.in_channels, self.ndim)
        f = run(self.down[0], channels_last(input), self.checkpoint)
        kept = []
        for block in self.down[1:]:
            kept.append(f)
            f = run(block, halve(f, self.pool), self.checkpoint)
        for mix, block, fine in zip(reversed(self.mix), reversed(self.up), reversed(kept), strict=True):
            f = torch.cat([fine, double(channels_last(mix(f)), tuple(fine.shape[2:]))], 1)
            f = run(block, f, self.checkpoint)
        return self.head(f)
