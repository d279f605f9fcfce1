"""Sums over space: the statistics of normalisation, and global means.

    moments     mean = sum x / n,  var = sum (x - mean)^2 / n          over the points, and channels of a group
    backward    dx  += dmean / n + 2 (x - mean) dvar / n

A sum over space is gathered tile by tile in float64 and merged in the order of the tiles; what a tile then needs is
a few numbers. `part` is what one tile adds, `merge` joins two, `finish` makes the numbers, `pull` is the backward sum's
share of a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lconv_fast.regions.intervals import Box
from lconv_fast.regions.rules.base import Dims, NotLocal, Rule, Tile, Value, spatial_last

State = tuple[Any, ...]


class Moments:
    """Mean and biased variance of each (sample, group of channels); batch norm joins the samples too."""

    def __init__(self, groups: int, joined: bool) -> None:
        self.groups, self.joined = groups, joined  # groups: of channels

    def rows(self, x: Tensor) -> Tensor:
        """(samples, groups, points): a view where that is possible."""
        if self.joined:
            return x.transpose(0, 1).reshape(1, self.groups, -1)
        return x.reshape(x.shape[0], self.groups, -1)

    def part(self, x: Tensor) -> State:
        rows = self.rows(x)
        # A group at a time: float64 copies of whole tiles would be the largest thing in memory. The mean, then the
        # squares: var_mean updates both with each number, which takes three times as long.
        mean, square = rows.new_empty(2, *rows.shape[:2], dtype=torch.float64)
        for sample in range(rows.shape[0]):
            for group in range(rows.shape[1]):
                row = rows[sample, group].to(torch.float64, copy=True)
                mean[sample, group] = row.mean()
                square[sample, group] = row.sub_(mean[sample, group]).square_().sum()
        return rows.shape[2], mean, square

    @staticmethod
    def merge(one: State, other: State) -> State:
        """Of two disjoint sets of points (Chan, Golub and LeVeque 1979): no cancellation however large the mean."""
        (n, mean, square), (m, middle, rest) = one, other
        total, step = n + m, middle - mean
        return total, mean + step * (m / total), square + rest + step**2 * (n * m / total)

    @staticmethod
    def finish(state: State) -> tuple[Tensor, ...]:
        count, mean, square = state
        return mean, square / count

    def pull(self, x: Tensor, count: int, results: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Tensor:
        mean, _ = results
        dmean, dvar = cotangents

        def spread(t: Tensor) -> Tensor:  # (samples or 1, groups) -> (samples or 1, channels, 1, ..), as x
            every = t.repeat_interleave(x.shape[1] // self.groups, 1)
            return every.reshape(t.shape[0], x.shape[1], *[1] * (x.dim() - 2)).to(x.dtype)

        return (x - spread(mean)).mul_(spread(2 * dvar / count)).add_(spread(dmean / count))


class Sum:
    """The mean over space, perhaps over further dimensions."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool, dtype: torch.dtype, mean: bool) -> None:
        self.over, self.keepdim, self.dtype, self.mean = dims, keepdim, dtype, mean

    def part(self, x: Tensor) -> State:
        count = math.prod(x.shape[d] for d in self.over)
        return count, x.sum(self.over, keepdim=True, dtype=torch.float64)

    @staticmethod
    def merge(one: State, other: State) -> State:
        return one[0] + other[0], one[1] + other[1]

    def finish(self, state: State) -> tuple[Tensor, ...]:
        result = (state[1] / state[0] if self.mean else state[1]).to(self.dtype)
        return ((result if self.keepdim else result.squeeze(self.over)),)

    def pull(self, x: Tensor, count: int, results: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Tensor:
        (cotangent,) = cotangents
        if not self.keepdim:
            for d in sorted(self.over):
                cotangent = cotangent.unsqueeze(d)
        share = (cotangent.double() / count if self.mean else cotangent).to(x.dtype)
        return share.expand(x.shape)


class Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) w + b, differentiable in x, mean, var, w and b; mean and var are float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean_, var_ = mean.to(weight.dtype), var.to(weight.dtype)
        y = torch.ops.aten.native_batch_norm(x, weight, bias, mean_, var_, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean_, var_)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        rate = (var.double() + ctx.eps).rsqrt() * weight.double()
        dmean = -rate * dbias.double()
        dvar = -0.5 * rate * dweight.double() * (var.double() + ctx.eps).rsqrt()
        return dx, dmean, dvar, dweight, dbias, None


class Norm(Rule):
    """Instance, group and batch norm, by statistics of the whole grid or by running ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def uses_space(self, op: Value) -> bool:
        names = {"instance": "use_input_stats", "batch": "training"}
        return bool(op[names[self.kind]]) if self.kind in names else True

    def dims(self, op: Value) -> Dims:
        (operand,) = op.fields
        spatial_last(op, operand)
        if len(operand.dims) != len(operand.places) + 2:
            raise NotLocal("normalises over channels that are not the second dimension")
        return operand.dims

    def reduces(self, op: Value) -> Value | None:
        return op.fields[0] if self.uses_space(op) else None

    def reduction(self, op: Value) -> Moments:
        channels = op.shape[1]
        return Moments(op["num_groups"] if self.kind == "group" else channels, self.kind == "batch")

    def run(self, op: Value, box: Box, tile: Tile) -> Tensor:
        x = self.operand(op, op.fields[0], box, tile)
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        samples, channels = x.shape[:2]
        weight, bias = (tile.small(op[name]) for name in ("weight", "bias"))
        weight = torch.ones(channels, dtype=dtype, device=x.device) if weight is None else weight.to(dtype)
        bias = torch.zeros(channels, dtype=dtype, device=x.device) if bias is None else bias.to(dtype)
        if self.uses_space(op):
            mean, var = tile.stats(op)
        else:
            mean, var = (tile.small(op[name]).double().reshape(1, -1) for name in ("running_mean", "running_var"))
        if mean.shape[1] != channels:
            mean, var = (t.repeat_interleave(channels // t.shape[1], 1) for t in (mean, var))
        if mean.shape[0] != 1:  # samples as further channels
            shape = x.shape
            weight, bias = weight.repeat(samples), bias.repeat(samples)
            flat = x.to(dtype).reshape(1, samples * channels, *shape[2:])
            y = Normalise.apply(flat, mean.flatten(), var.flatten(), weight, bias, op["eps"])  # type: ignore[no-untyped-call]
            return y.reshape(shape).to(x.dtype)
        return Normalise.apply(x.to(dtype), mean.flatten(), var.flatten(), weight, bias, op["eps"]).to(x.dtype)  # type: ignore[no-untyped-call]


class Mean(Rule):
    """A mean or a sum over all axes of space: a few numbers, that all points may then depend on."""

    def __init__(self, mean: bool = True, adaptive: bool = False) -> None:
        self.mean, self.adaptive = mean, adaptive

    def over(self, op: Value) -> tuple[int, ...]:
        (operand,) = op.fields
        if self.adaptive:
            return operand.places
        chosen = op.arguments.get("dim")
        every = range(len(operand.shape)) if chosen is None or list(chosen) == [] else chosen
        return tuple(sorted(d % len(operand.shape) for d in every))

    def reduces(self, op: Value) -> Value | None:
        (operand,) = op.fields
        if self.adaptive and set(op.shape[-len(operand.places) :]) != {1}:
            return None
        return operand if set(operand.places) <= set(self.over(op)) else None

    def dims(self, op: Value) -> Dims:
        raise NotLocal("sums over some of the axes of space")

    def reduction(self, op: Value) -> Sum:
        keepdim = self.adaptive or bool(op.arguments.get("keepdim"))
        return Sum(self.over(op), keepdim, op.dtype, self.mean)
