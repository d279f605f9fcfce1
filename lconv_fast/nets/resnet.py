"""A residual network of L-conv layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lconv_fast.checks import choice
from lconv_fast.nets.blocks import CONVS, Factory, LBlock, ResidualBlock
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
from lconv_fast.nets.resample import halve

READ_OUTS = ("mean", "points")


class LResNet(nn.Module):
    """Residual blocks, level after level on grids of half the size; then a mean over the points, or a value at each.

    A first block of L-conv, norm and activation; `blocks` residual blocks at each level; with read_out="mean", the
    mean over all points and a linear map: classification and regression. With read_out="points" all levels stay on the
    input's grid, and the linear map is applied at each point: operators from images to images.

    Args:
        in_channels, out_channels: of the input and of the result (classes, for example).
        generators, ndim, norm, activation, **generator_keywords: as for LUNet.
        widths: channels of each level.
        blocks: residual blocks in a level; one number, or one for each level.
        read_out: "mean" or "points".
        checkpoint: keeps the inputs of residual blocks alone for backward, and computes the rest again.

    Shape: (N, in_channels, *spatial) -> (N, out_channels), or (N, out_channels, *spatial) with read_out="points".

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
        blocks: int | Sequence[int] = 1,
        norm: str | Factory = "group",
        activation: str | Factory = "relu",
        read_out: str = "mean",
        checkpoint: bool = False,
        **generator_keywords: Any,
    ) -> None:
        super().__init__()
        check_options(in_channels, out_channels, ndim, norm, activation, checkpoint)
        widths = check_widths(widths)
        depths = check_depths("blocks", blocks, len(widths))
        choice("read_out", read_out, READ_OUTS)
        bases = [generators_of_level(generators, level, ndim, generator_keywords) for level in range(len(widths))]
        self.in_channels, self.ndim = in_channels, ndim
        self.read_out, self.checkpoint = read_out, checkpoint

        self.stem = LBlock(ndim, in_channels, widths[0], bases[0], norm, activation)
        self.blocks = nn.ModuleList()
        self.halved: list[bool] = []  # before each block
        ins = widths[0]
        for level, (basis, depth, width) in enumerate(zip(bases, depths, widths, strict=True)):
            for index in range(depth):
                self.blocks.append(ResidualBlock(ndim, ins, width, basis, norm, activation))
                self.halved.append(level > 0 and index == 0 and read_out == "mean")
                ins = width
        mean = read_out == "mean"
        self.head = nn.Linear(widths[-1], out_channels) if mean else CONVS[ndim](widths[-1], out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        check_input(type(self).__name__, input, self.in_channels, self.ndim)
        f = self.stem(channels_last(input))
        for block, halved in zip(self.blocks, self.halved, strict=True):
            f = run(block, halve(f) if halved else f, self.checkpoint)
        return self.head(f.flatten(2).mean(2) if self.read_out == "mean" else f)
