"""Means and sums over sharded dimensions, and norm layers with the statistics of the whole grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.ops.geometry import accumulate_type
from lconv_fast.sharding.calls import Call, bind
from lconv_fast.sharding.layout import Layout, axes_of
from lconv_fast.sharding.plan import Planner
from lconv_fast.sharding.rules.pointwise import Prepared
from lconv_fast.sharding.sums import shared, sum_over, total

REDUCTION = ("input", "dim", "keepdim")


class Reduced:
    """The sum over this rank's points, then over the ranks; divided by the points of the whole grid for a mean."""

    needs_plan = True

    def __init__(
        self,
        groups: tuple[Any, ...],
        dims: tuple[int, ...],
        keepdim: bool,
        count: int | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.groups, self.dims, self.keepdim, self.count, self.dtype = groups, dims, keepdim, count, dtype

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        x = args[0] if args else kwargs["input"]
        dtype = self.dtype or x.dtype
        wide = accumulate_type(dtype) if dtype.is_floating_point else dtype
        result = total(self.groups, torch.sum(x, self.dims, self.keepdim, dtype=wide))
        return (result if self.count is None else result / self.count).to(dtype)


def reduced(planner: Planner, call: Call) -> Any:
    """mean and sum."""
    bound = call.bound(REDUCTION, dim=None, keepdim=False, dtype=None)
    x = bound["input"]
    layout = planner.layout(x)
    dims = bound["dim"]
    every = tuple(range(x.dim()))
    dims = every if dims is None or dims == () or dims == [] else (dims,) if isinstance(dims, int) else tuple(dims)
    dims = tuple(sorted(dim % x.dim() for dim in dims))
    over = tuple(pair for pair in layout if pair[0] in dims)
    result = call.run()
    rest = _without(layout, dims, bound["keepdim"])
    if not over:
        planner.record(call, Prepared([]))
        return planner.keep(result, rest)
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    planner.count_sum(call.name, result.numel(), False)
    dtype = bound["dtype"] or (None if x.dtype.is_floating_point or call.name == "mean" else torch.int64)
    planner.record(
        call,
        Reduced(
            planner.groups(axes_of(over)), dims, bool(bound["keepdim"]), count if call.name == "mean" else None, dtype
        ),
    )
    return planner.keep(result, rest)


def _without(layout: Layout, dims: Sequence[int], keepdim: bool) -> Layout:
    if keepdim:
        return tuple(pair for pair in layout if pair[0] not in dims)
    return tuple((dim - sum(d < dim for d in dims), split) for dim, split in layout if dim not in dims)


def pooled_to_one(planner: Planner, call: Call) -> Any:
    """adaptive_avg_pool to one point: the mean over the grid."""
    bound = call.bound(("input", "output_size"))
    x, n = bound["input"], int(call.name[-2])
    size = bound["output_size"]
    layout = planner.layout(x)
    first = x.dim() - n
    if set([size] if isinstance(size, int) else size) != {1} or any(dim < first for dim, _ in layout):
        planner.refuse(call.name, f"to {size} points needs the whole grid, but for one point")
    result, dims, count = call.run(), tuple(range(first, x.dim())), 1
    for dim in dims:
        count *= x.shape[dim]
    planner.count_sum(call.name, result.numel(), False)
    planner.record(call, Reduced(planner.groups(axes_of(layout)), dims, True, count, None))
    return planner.keep(result, ())


def along(planner: Planner, call: Call) -> Any:
    """Functions along one dimension (softmax, amax, norm, cumsum, ...) that is not sharded."""
    bound = call.bound(("input", "dim"), dim=None)
    if call.name in ("norm", "renorm") or bound["dim"] is None:
        bound["dim"] = call.kwargs.get("dim")
    x, dims = call.tensors[0], bound["dim"]
    layout = planner.layout(x)
    if dims is None or len(call.tensors) != 1:
        planner.refuse(call.name, "acts on all points of a sharded tensor")
    dims = tuple(dim % x.dim() for dim in ((dims,) if isinstance(dims, int) else dims))
    if any(dim in dims for dim, _ in layout):
        planner.refuse(call.name, f"acts along a sharded dimension of {[dim for dim, _ in layout]}")
    result = call.run()
    planner.record(call, Prepared([]))
    for t in result if isinstance(result, tuple) else (result,):
        planner.keep(t, layout if t.dim() == x.dim() else _without(layout, dims, False))
    return result


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * scale + shift over dimensions and ranks, and mean and variance; keeps x, mean and
    factor alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        dims: tuple[int, ...],
        groups: tuple[Any, ...],
        count: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(accumulate_type(x.dtype))
        mean = sum_over(wide.sum(dims, keepdim=True), groups) / count
        variance = sum_over((wide - mean).square().sum(dims, keepdim=True), groups) / count
        factor = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, factor, scale)
        ctx.rest = dims, groups, count
        ctx.mark_non_differentiable(mean, variance)
        result = (wide - mean) * (factor if scale is None else factor * scale)
        return (result if shift is None else result + shift).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, _mean: Any, _variance: Any) -> tuple[Any, ...]:
        x, mean, factor, scale = ctx.saved_tensors
        dims, groups, count = ctx.rest
        g = g.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean) * factor
        scale_gradient = shift_gradient = None
        if scale is not None:
            whole = [d for d in range(g.dim()) if scale.shape[d] == 1]
            scale_gradient = (g * normal).sum(whole, keepdim=True).to(scale.dtype)
        if ctx.needs_input_grad[2]:
            shift_gradient = g.sum([0, *range(3, g.dim())], keepdim=True).to(x.dtype)
        if scale is not None:
            g = g * scale
        sums = torch.stack([g.sum(dims, keepdim=True), (g * normal).sum(dims, keepdim=True)])
        along, across = (sum_over(sums, groups) / count).unbind()
        gradient = ((g - along - normal * across) * factor).to(x.dtype)
        return gradient, scale_gradient, shift_gradient, None, None, None, None


class Norm:
    """batch_norm in training, instance_norm and group_norm: statistics over `dims` of x, viewed as (N, groups, C /
    groups, *spatial)."""

    needs_plan = True

    def __init__(
        self, kind: str, names: Sequence[str], defaults: dict[str, Any], groups: tuple[Any, ...], points: int
    ) -> None:
        self.kind, self.names, self.defaults, self.groups, self.points = kind, names, defaults, groups, points

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        bound = bind(self.names, args, kwargs, self.defaults)
        x, weight, bias = bound["input"], bound["weight"], bound["bias"]
        learned = [t for t in (weight, bias) if t is not None and t.requires_grad]
        given = list(shared(self.groups, learned))
        weight, bias = (given.pop(0) if t is not None and t.requires_grad else t for t in (weight, bias))
        if self._fixed(bound):
            return torch.nn.functional.batch_norm(
                x, bound["running_mean"], bound["running_var"], weight, bias, False, 0.0, bound["eps"]
            )
        batch, channels = x.shape[:2]
        groups = bound.get("num_groups", channels)
        view = x.reshape(batch, groups, channels // groups, *x.shape[2:])
        batched = self.kind == "batch_norm"
        dims = tuple(range(0 if batched else 2, view.dim()))
        dims = tuple([d for d in dims if d != 1])
        count = self.points * (channels // groups) * (batch if batched else 1)
        shape = [1, groups, channels // groups] + [1] * (x.dim() - 2)
        scale, shift = (None if t is None else t.view(shape) for t in (weight, bias))
        result, mean, variance = _Normalised.apply(  # type: ignore[no-untyped-call]
            view, scale, shift, dims, self.groups, count, bound["eps"]
        )
        if bound.get("running_mean") is not None:
            self._track(bound, mean.reshape(-1, channels), variance.reshape(-1, channels), count)
        return result.reshape(x.shape)

    def _fixed(self, bound: dict[str, Any]) -> bool:
        """Whether running statistics are taken, which act at each point alone."""
        if self.kind == "instance_norm":
            return not bound["use_input_stats"]
        return self.kind == "batch_norm" and not bound["training"]

    @staticmethod
    def _track(bound: dict[str, Any], mean: Tensor, variance: Tensor, count: int) -> None:
        with torch.no_grad():
            unbiased = variance * (count / max(count - 1, 1))
            for running, new in ((bound["running_mean"], mean), (bound["running_var"], unbiased)):
                running.lerp_(new.mean(0).to(running.dtype), bound["momentum"])


NORMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "batch_norm": (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5},
    ),
    "instance_norm": (
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        {
            "running_mean": None,
            "running_var": None,
            "weight": None,
            "bias": None,
            "use_input_stats": True,
            "momentum": 0.1,
            "eps": 1e-5,
        },
    ),
    "group_norm": (("input", "num_groups", "weight", "bias", "eps"), {"weight": None, "bias": None, "eps": 1e-5}),
}


def norm(planner: Planner, call: Call) -> Any:
    names, defaults = NORMS[call.name]
    bound = call.bound(names, **defaults)
    x = bound["input"]
    layout = planner.layout(x)
    if any(dim < 2 for dim, _ in layout):
        planner.refuse(call.name, "takes dimensions 0 and 1 for examples and channels, which are sharded here")
    points = 1
    for size in x.shape[2:]:
        points *= size
    stats = {"batch_norm": x.shape[1], "instance_norm": x.shape[0] * x.shape[1]}.get(
        call.name, x.shape[0] * bound.get("num_groups", 0)
    )
    planner.count_sum(call.name, 2 * stats, False)
    planner.count_sum(
        call.name, 2 * stats + sum(t.numel() for t in (bound["weight"], bound["bias"]) if t is not None), True
    )
    planner.record(call, Norm(call.name, names, defaults, planner.groups(axes_of(layout)), points))
    return planner.keep(call.run(), layout)


def layer_norm(planner: Planner, call: Call) -> Any:
    """Over the last dimensions, which are not sharded; the weights belong to them."""
    bound = call.bound(("input", "normalized_shape"))
    x = bound["input"]
    layout = planner.layout(x)
    shape = bound["normalized_shape"]
    inner = 1 if isinstance(shape, int) else len(shape)
    if any(dim >= x.dim() - inner for dim, _ in layout):
        planner.refuse(
            call.name, "normalises over sharded dimensions, and its weights belong to the points of the grid"
        )
    groups = planner.groups(axes_of(layout))
    places = [k for k, t in enumerate(call.tensors) if t is not x]
    planner.count_sum(call.name, sum(call.tensors[k].numel() for k in places), True)
    planner.record(call, Prepared([(k, groups) for k in places]))
    return planner.keep(call.run(), layout)


class SharedMask:
    """Dropout of whole channels: every rank drops those that the first one draws."""

    needs_plan = True

    def __init__(self, groups: tuple[Any, ...], first: bool) -> None:
        self.groups, self.first = groups, first

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        bound = bind(("input", "p", "training", "inplace"), args, kwargs, {"p": 0.5, "training": True})
        x, p = bound["input"], bound["p"]
        if not bound["training"] or p == 0:
            return x
        keep = torch.rand(*x.shape[:2], *[1] * (x.dim() - 2), device=x.device) >= p
        mask = sum_over(keep.to(torch.float32) * float(self.first), self.groups)
        return x * (mask / (1 - p) if p < 1 else mask).to(x.dtype)


def feature_dropout(planner: Planner, call: Call) -> Any:
    x = call.tensors[0]
    layout = planner.layout(x)
    if any(dim < 2 for dim, _ in layout):
        planner.refuse(call.name, "takes dimensions 0 and 1 for examples and channels, which are sharded here")
    groups = planner.groups(axes_of(layout))
    planner.record(call, SharedMask(groups, all(r == 0 for r in planner.domain.place)))
    return planner.keep(call.run(), layout)
