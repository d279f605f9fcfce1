"""Operators that move a window over the grid: convolutions, transposed convolutions, pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lconv_fast.regions.intervals import AxisMap, Box, slide, spread
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, by_axis, numbers, spatial_last

CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Windowed(Rule):
    """Keeps batch and channels before the axes of space."""

    def dims(self, op: Value) -> Dims:
        operand = op.fields[0]
        spatial_last(op, operand)
        self.maps(op, operand)
        return operand.dims


class Conv(Windowed):
    """y(o) = sum_k w(k) x(stride o + dilation k - padding); outside there are zeros."""

    bilinear = True

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        n = len(operand.places)
        if len(op.fields) != 1 or operand.node is not op.node.args[0]:
            raise NotLocal("convolves with a weight that depends on space")
        kernel = self.kernel(op)[-n:]
        if len(kernel) != n or op["weight"].meta["val"].dim() != n + 2:
            raise NotLocal(f"convolves other axes than the {n} of space")
        stride, dilation = numbers(op["stride"], n), numbers(op["dilation"], n)
        padding = op["padding"]
        if isinstance(padding, str):
            padding = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return by_axis(
            spatial_last(op, operand),
            [slide(k, s, d, p) for k, s, d, p in zip(kernel, stride, dilation, numbers(padding, n), strict=True)],
        )

    @staticmethod
    def kernel(op: Value) -> tuple[int, ...]:
        return tuple(op["weight"].meta["val"].shape)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        x = self.operand(op, op.fields[0], box, tile)
        n = len(box)
        weight, bias = tile.small(op["weight"]), tile.small(op["bias"])
        stride, dilation = numbers(op["stride"], n), numbers(op["dilation"], n)
        return CONVS[n](x, weight, bias, stride, 0, dilation, op["groups"])


class ConvTransposed(Conv):
    """The transpose of `Conv`: y(stride i + dilation k - padding) += w(k) x(i)."""

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        n = len(operand.places)
        if len(op.fields) != 1 or operand.node is not op.node.args[0]:
            raise NotLocal("convolves with a weight that depends on space")
        kernel = self.kernel(op)[-n:]
        if op["weight"].meta["val"].dim() != n + 2:
            raise NotLocal(f"convolves other axes than the {n} of space")
        rows = zip(kernel, *(numbers(op[name], n) for name in ("stride", "dilation", "padding")), strict=True)
        return by_axis(spatial_last(op, operand), [spread(*row) for row in rows])

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        n = len(box)
        x = self.operand(op, operand, box, tile)
        weight, bias = tile.small(op["weight"]), tile.small(op["bias"])
        stride, dilation, padding = (numbers(op[name], n) for name in ("stride", "dilation", "padding"))
        if 0 in x.shape:
            x = F.pad(x, [side for size in reversed(x.shape[-n:]) for side in (0, int(size == 0))])
        y = TRANSPOSED[n](x, weight, None, stride, 0, 0, op["groups"], dilation)
        maps, sides = self.maps(op, operand), []
        for k, axis in enumerate(spatial_last(op, operand)):
            place = y.dim() - n + k
            first = maps[axis].span(box[axis])[0] * stride[k] - padding[k]  # where y starts
            low = first - box[axis][0]
            sides.append((low, box[axis][1] - first - y.shape[place]))
        # Negative sides cut; positive ones are points that no input reaches.
        y = F.pad(y, [side for pair in reversed(sides) for side in pair])
        return y if bias is None else y + bias.reshape(-1, *[1] * n)


class Convolution(Rule):
    """aten.convolution, of either kind."""

    bilinear = True
    kinds: dict[bool, Conv] = {False: Conv(), True: ConvTransposed()}  # noqa: RUF012 - a table

    def dims(self, op: Value) -> Dims:
        return self.kinds[op["transposed"]].dims(op)

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        return self.kinds[op["transposed"]].maps(op, operand)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        return self.kinds[op["transposed"]].run(op, box, tile)


class MaxPool(Windowed):
    fill = -math.inf

    def maps(self, op: Value, operand: Value) -> tuple[AxisMap, ...]:
        return by_axis(spatial_last(op, operand), [slide(*row) for row in zip(*self.numbers(op, operand), strict=True)])

    def numbers(self, op: Value, operand: Value) -> tuple[list[int], ...]:
        """Kernel, stride, dilation and padding for each axis."""
        n = len(operand.places)
        kernel = numbers(op["kernel_size"], n)
        if len(kernel) != n:
            raise NotLocal(f"pools other axes than the {n} of space")
        stride = numbers(op["stride"], n) if op["stride"] else kernel
        return kernel, stride, numbers(op.arguments.get("dilation", 1), n), numbers(op["padding"], n)

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        kernel, stride, dilation, _ = self.numbers(op, operand)
        return MAX_POOLS[len(box)](self.operand(op, operand, box, tile), kernel, stride, 0, dilation)


class AveragePool(MaxPool):
    """The mean over a window, of as many points as PyTorch counts at the border."""

    fill = 0.0

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        kernel, stride, _, padding = self.numbers(op, operand)
        y = AVERAGE_POOLS[len(box)](self.operand(op, operand, box, tile), kernel, stride)
        points = math.prod(kernel)
        if op.arguments.get("divisor_override"):
            return y * (points / op["divisor_override"])
        for k, axis in enumerate(spatial_last(op, operand)):
            size, extra = operand.extents[axis], padding[k]
            counts = []
            for o in range(*box[axis]):
                first = o * stride[k] - extra
                stop = min(first + kernel[k], size + extra)
                counts.append(stop - first if op["count_include_pad"] else min(stop, size) - max(first, 0))
            if set(counts) != {kernel[k]}:
                share = torch.tensor([kernel[k] / c for c in counts], dtype=y.dtype, device=y.device)
                y = y * share.reshape(-1, *[1] * (len(box) - 1 - k))
        return y


class AdaptivePool(MaxPool):
    """Pooling to a given size; local where that divides the input's."""

    def __init__(self, average: bool) -> None:
        self.average = average

    def numbers(self, op: Value, operand: Value) -> tuple[list[int], ...]:
        n = len(operand.places)
        ins, outs = operand.shape[-n:], op.shape[-n:]
        if set(outs) == {1} and max(ins) > 1:
            raise NotLocal("pools over all points of space")
        if any(i % o for i, o in zip(ins, outs, strict=True)):
            raise NotLocal(f"pools windows of unequal size, from {tuple(ins)} to {tuple(outs)} points")
        kernel = [i // o for i, o in zip(ins, outs, strict=True)]
        return kernel, kernel, [1] * n, [0] * n

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        (operand,) = op.fields
        kernel, *_ = self.numbers(op, operand)
        pool = AVERAGE_POOLS if self.average else MAX_POOLS
        return pool[len(box)](self.operand(op, operand, box, tile), kernel)


WINDOWS: dict[str, Rule] = {
    "aten.convolution": Convolution(),
    **{f"aten.conv{n}d": Conv() for n in CONVS},
    **{f"aten.conv_transpose{n}d": ConvTransposed() for n in CONVS},
    **{f"aten.max_pool{n}d": MaxPool() for n in CONVS},
    **{f"aten.avg_pool{n}d": AveragePool() for n in CONVS},
    **{f"aten.adaptive_avg_pool{n}d": AdaptivePool(True) for n in CONVS},
    **{f"aten.adaptive_max_pool{n}d": AdaptivePool(False) for n in CONVS},
}
