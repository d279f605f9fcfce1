"""Functions that act at each point alone: sharded tensors stay where they are, and broadcast with what is the same
on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lconv_fast.sharding.calls import Call, numbers_of, tensors_of, with_tensors
from lconv_fast.sharding.exchange import moved
from lconv_fast.sharding.layout import Layout, Move, Points, Split, axes_of
from lconv_fast.sharding.plan import Planner
from lconv_fast.sharding.sums import shared


class Prepared:
    """The call itself, after some arguments were shared over ranks or moved to where another one lies."""

    needs_plan = False

    def __init__(
        self,
        shared_over: Sequence[tuple[int, tuple[Any, ...]]],
        moves: Sequence[tuple[int, tuple[Move, ...]]] = (),
        where: str = "",
    ) -> None:
        self.shared_over, self.moves, self.where = tuple(shared_over), tuple(moves), where
        self.numbers: set[tuple[float, ...]] = (
            set()
        )  # that the plan met among the arguments; none: they are not looked at

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.numbers and numbers_of(args, kwargs) not in self.numbers:
            expected = " or ".join(map(str, self.numbers))
            raise RuntimeError(
                f"{self.where} computes with {numbers_of(args, kwargs)} on this rank, and with {expected} on the "
                "whole grid: a number that "
                "depends on the extents of the input, which are those of the shard"
            )
        if not self.shared_over and not self.moves:
            return func(*args, **kwargs)
        tensors = tensors_of(args, kwargs)
        for index, moves in self.moves:
            tensors[index] = moved(tensors[index], moves)
        for index, groups in self.shared_over:
            if tensors[index].requires_grad:
                (tensors[index],) = shared(groups, [tensors[index]])
        args, kwargs = with_tensors(args, kwargs, tensors)
        return func(*args, **kwargs)


def agreed(
    planner: Planner, call: Call, tensors: Sequence[Tensor], ndim: int
) -> tuple[dict[int, Split | Points], Prepared]:
    """The splits of tensors that broadcast to `ndim` dimensions, those of the first that is sharded, and what that
    takes."""
    layouts = [planner.layout(t) for t in tensors]
    target: dict[int, Split | Points] = {}
    for t, layout in zip(tensors, layouts, strict=True):
        for dim, split in layout:
            target.setdefault(dim + ndim - t.dim(), split)
    axes = [axis for split in target.values() for axis in split.axes]
    if len(set(axes)) != len(axes):
        planner.refuse(call.name, "meets tensors that are sharded along different dimensions")
    over, moves = [], []
    for index, (t, layout) in enumerate(zip(tensors, layouts, strict=True)):
        own = dict(layout)
        placed = {dim - ndim + t.dim(): split for dim, split in target.items() if dim - ndim + t.dim() >= 0}
        for dim, split in placed.items():
            if dim not in own and t.shape[dim] != 1:
                planner.refuse(
                    call.name,
                    f"meets a tensor of shape {tuple(t.shape)} that is whole on every rank, where the other is "
                    f"sharded along dimension {dim}",
                )
            if dim in own and t.shape[dim] == 1 and split.extent != 1:
                planner.refuse(call.name, f"broadcasts the sharded dimension {dim}")
        if missing := set(axes) - axes_of(layout):
            over.append((index, planner.groups(missing)))
            if index < len(tensors) and t.dim() and not layout:
                planner.count_sum(call.name, t.numel(), True)
        if relaid := planner.relaid(call.name, t, layout, placed):
            moves.append((index, relaid))
    return target, Prepared(over, moves, where=f"{planner.where}: {call.name}")


def elementwise(planner: Planner, call: Call) -> Any:
    """Of one or more tensors, broadcast; numbers among the arguments must not come from the shard's extents."""
    result = call.run()
    tensors = call.tensors
    if call.name.endswith("_") and not call.name.startswith("__") and not planner.layout(tensors[0]):
        planner.refuse(call.name, "would write a sharded tensor into one that is whole on every rank")
    target, entry = agreed(planner, call, tensors, max(t.dim() for t in tensors))
    entry.numbers = {numbers_of(call.args, call.kwargs)}
    planner.record(call, entry)
    return _kept(planner, result, tuple(target.items()))


def _kept(planner: Planner, result: Any, layout: Layout) -> Any:
    for t in tensors_of((result,), {}):
        planner.keep(t, layout)
    return result


def unrelated(planner: Planner, call: Call) -> Any:
    """Makes a tensor that has only its type from the argument."""
    return _kept(planner, call.run(), ())


def channelwise(planner: Planner, call: Call) -> Any:
    """prelu(x, w), w one number for all channels or one for each in dimension 1."""
    x, weight = call.tensors
    layout = planner.layout(x)
    planner.count_sum(call.name, weight.numel(), True)
    planner.record(call, Prepared([(1, planner.groups(axes_of(layout)))]))
    return planner.keep(call.run(), layout)


def linear(planner: Planner, call: Call) -> Any:
    """x W^T + b over the last dimension."""
    bound = call.bound(("input", "weight", "bias"), bias=None)
    x = bound["input"]
    layout = planner.layout(x)
    if any(dim == x.dim() - 1 for dim, _ in layout) or planner.layout(bound["weight"]):
        planner.refuse(call.name, "mixes all points along a sharded dimension")
    groups = planner.groups(axes_of(layout))
    places = [k for k, t in enumerate(call.tensors) if t is not x]
    planner.count_sum(call.name, sum(call.tensors[k].numel() for k in places), True)
    planner.record(call, Prepared([(k, groups) for k in places]))
    return planner.keep(call.run(), layout)


def joined(planner: Planner, call: Call) -> Any:
    """cat and stack along a dimension that is not sharded."""
    bound = call.bound(("tensors", "dim"), dim=0)
    dim = bound["dim"]
    result = call.run()
    new = call.name == "stack"
    rank = result.dim()
    dim = dim % rank
    for t in call.tensors:
        if not planner.layout(t):
            planner.refuse(
                call.name, f"joins a tensor of shape {tuple(t.shape)} that is whole on every rank to sharded ones"
            )
    target, entry = agreed(planner, call, call.tensors, rank - new)
    if not new and dim in target:
        planner.refuse(call.name, f"joins along dimension {dim}, which is sharded")
    planner.record(call, entry)
    return planner.keep(result, tuple((d + (new and d >= dim), split) for d, split in target.items()))
