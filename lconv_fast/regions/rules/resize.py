"""Coarser and finer grids without learned numbers: interpolation and pixel shuffles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lconv_fast.regions.intervals import AxisMap, Box
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, by_axis, operand_call, spatial_last

# mode: (for n axes the name of torch's operator, points of the input on each side of the one that an output falls into)
REACH = {"nearest": 0, "linear": 1, "cubic": 2}


class Interpolate(Rule):
    """Onto a grid k times as fine: output o falls between the inputs around (o + 1/2) / k - 1/2; with corners aligned
    around o (in - 1) / (out - 1)."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def factors(self, op: Value) -> list[int]:
        operand = op.fields[0]
        n = len(operand.places)
        ins, outs = operand.shape[-n:], op.shape[-n:]
        if any(o % i for i, o in zip(ins, outs, strict=True)):
            raise NotLocal(f"interpolates by factors that are not integers, from {tuple(ins)} to {tuple(outs)} points")
        factors = [o // i for i, o in zip(ins, outs, strict=True)]
        given = op.arguments.get("scale_factors")
        if given is not None and [float(f) for f in factors] != [float(g) for g in given]:
            raise NotLocal(f"interpolates by {tuple(given)}, factors that are not integers")
        return factors

    def aligned(self, op: Value) -> bool:
        return bool(op.arguments.get("align_corners"))

    def dims(self, op: Value) -> Dims:
        spatial_last(op, op.fields[0])
        if self.aligned(op) and self.mode != "linear":
            raise NotLocal("aligns corners of a cubic interpolation")
        self.maps(op, op.fields[0])
        return op.fields[0].dims

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        axes = spatial_last(op, operand)
        if self.aligned(op):
            n = len(axes)
            pairs = zip(operand.shape[-n:], op.shape[-n:], strict=True)
            maps = [AxisMap(i - 1, max(o - 1, 1), -max(o - 2, 0), max(o - 1, 1), "replicate") for i, o in pairs]
            return by_axis(axes, maps)
        if self.mode == "nearest":
            return by_axis(axes, [AxisMap(1, k, -(k - 1), 0) for k in self.factors(op)])
        # floor((2 o + 1 - k) / 2 k) is the input to the left; reach - 1 more on each side.
        more = REACH[self.mode] - 1
        return by_axis(
            axes,
            [
                AxisMap(2, 2 * k, 1 - k - (2 * k - 1) - 2 * k * more, 1 - k + 2 * k * (1 + more), "replicate")
                for k in self.factors(op)
            ],
        )

    def anywhere(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        if not self.aligned(op):
            return self.maps(op, operand)
        # With corners aligned o (in - 1) / (out - 1) is up to (k - 1) / k below o / k.
        return by_axis(spatial_last(op, operand), [AxisMap(1, k, 2 - 2 * k, k, "replicate") for k in self.factors(op)])

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        axes = spatial_last(op, operand)
        x = self.operand(op, operand, box, tile)
        spans = [one.span(interval) for one, interval in zip(self.maps(op, operand), box, strict=True)]
        n = len(axes)
        if self.aligned(op):
            for k, axis in enumerate(axes):
                x = _between(x, x.dim() - n + k, box[axis], spans[axis][0], operand.extents[axis], op.extents[axis])
            return x
        # At the ends of the piece interpolation would repeat the last points; what is added there is cut off again.
        reach, factors = REACH[self.mode], self.factors(op)
        if reach:
            x = F.pad(x, [reach] * (2 * n), mode="replicate")
        sizes = [size * k for size, k in zip(x.shape[-n:], factors, strict=True)]
        changes: dict[str, Any] = {"output_size": sizes, "scale_factors": None}
        y = operand_call(op, box, _Given(tile, x), **changes)
        for k, axis in enumerate(axes):
            start = box[axis][0] - (spans[axis][0] - reach) * factors[k]
            y = y.narrow(y.dim() - n + k, start, box[axis][1] - box[axis][0])
        return y


class _Given:
    """A tile that has the one operand at hand."""

    def __init__(self, tile: Tile, x: Tensor) -> None:
        self.tile, self.x, self.seed = tile, x, tile.seed

    def piece(self, *arguments: object) -> Tensor:
        return self.x

    def small(self, argument: object, narrow: object = None) -> object:
        return self.tile.small(argument)

    def stats(self, op: Value) -> tuple[Tensor, ...]:
        return self.tile.stats(op)


def _between(x: Tensor, place: int, interval: tuple[int, int], first: int, ins: int, outs: int) -> Tensor:
    """Linear interpolation along one dimension with corners aligned; x starts at input `first`."""
    position = torch.arange(*interval, dtype=torch.float64) * ((ins - 1) / max(outs - 1, 1))
    left = position.floor().clamp(max=ins - 1)
    share = (position - left).to(x.dtype).to(x.device)
    index = left.long().to(x.device)
    share = share.reshape(-1, *[1] * (x.dim() - 1 - place))
    low = x.index_select(place, index - first)
    high = x.index_select(place, (index + 1).clamp(max=ins - 1) - first)
    return low + share * (high - low)


class PixelShuffle(Rule):
    """(C r^2, H, W) -> (C, r H, r W), or back."""

    def __init__(self, finer: bool) -> None:
        self.finer = finer

    def factor(self, op: Value) -> int:
        return int(op["upscale_factor" if self.finer else "downscale_factor"])

    def dims(self, op: Value) -> Dims:
        if len(spatial_last(op, op.fields[0])) != 2:
            raise NotLocal("shuffles two of the axes of space alone")
        return op.fields[0].dims

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        r = self.factor(op)
        return (AxisMap(1, r, -(r - 1), 0) if self.finer else AxisMap(r, 1, 0, r - 1),) * 2

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        y = op.node.target(self.operand(op, op.fields[0], box, tile), self.factor(op))  # type: ignore[operator]
        if self.finer:
            for place, axis in enumerate(op.dims):
                if axis is not None:
                    first, stop = box[axis]
                    y = y.narrow(place, first % self.factor(op), stop - first)
        return y


RESIZES: dict[str, Rule] = {
    **{f"aten.upsample_nearest{n}d": Interpolate("nearest") for n in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{n}d": Interpolate("nearest") for n in (1, 2, 3)},
    "aten.upsample_linear1d": Interpolate("linear"),
    "aten.upsample_bilinear2d": Interpolate("linear"),
    "aten.upsample_trilinear3d": Interpolate("linear"),
    "aten.upsample_bicubic2d": Interpolate("cubic"),
    "aten.pixel_shuffle": PixelShuffle(True),
    "aten.pixel_unshuffle": PixelShuffle(False),
}
