"""Functions that look at the same points in another order or shape, or at a part of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.sharding.calls import Call, tensors_of
from lconv_fast.sharding.layout import Layout, Points, Split
from lconv_fast.sharding.plan import Planner
from lconv_fast.sharding.rules.pointwise import Prepared

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


def permuted(planner: Planner, call: Call) -> Any:
    """permute, transpose, movedim, ...: dimensions are followed through the call on a tensor whose extents all
    differ."""
    x = call.tensors[0]
    with torch._C.DisableTorchFunction():
        probe = call.func(torch.empty(PRIMES[: x.dim()], device="meta"), *call.args[1:], **call.kwargs)
    where = {PRIMES.index(n): dim for dim, n in enumerate(probe.shape)}
    planner.record(call, Prepared([]))
    return planner.keep(call.run(), tuple((where[dim], split) for dim, split in planner.layout(x)))


def reshaped(planner: Planner, call: Call) -> Any:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze, expand: dimensions are matched in groups of equal
    product."""
    x = call.tensors[0]
    result = call.run()
    planner.record(call, Prepared([]))
    if call.name.startswith("expand"):
        shift = result.dim() - x.dim()
        return planner.keep(result, tuple((dim + shift, split) for dim, split in planner.layout(x)))
    return planner.keep(result, _regrouped(planner, call.name, x, result))


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of the one and of the other shape in the smallest groups of equal product."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        one: list[int] = []
        other: list[int] = []
        left, right = 1, 1
        while True:
            if i < len(before) and (left <= right or j >= len(after)) and not (left == right and one and other):
                left *= before[i]
                one.append(i)
                i += 1
            elif j < len(after) and not (left == right and one and other):
                right *= after[j]
                other.append(j)
                j += 1
            if left == right and one and other:
                break
            if i >= len(before) and j >= len(after):
                break
        found.append((one, other))
    return found


def _regrouped(planner: Planner, name: str, x: Tensor, result: Tensor) -> Layout:
    layout = dict(planner.layout(x))
    new: list[tuple[int, Split | Points]] = []
    for one, other in _groups(x.shape, result.shape):
        splits = [(dim, layout[dim]) for dim in one if dim in layout]
        if not splits:
            continue
        wide = [dim for dim in one if x.shape[dim] != 1 or dim in layout]
        target = [dim for dim in other if result.shape[dim] != 1]
        dim, split = splits[0]
        if len(splits) == 1 and wide == [dim] and len(target) == 1:
            new.append((target[0], split))
        elif len(target) == 1:
            if len(splits) == 1 and isinstance(split, Split) and wide[0] == dim:
                inner = math.prod(x.shape[d] for d in wide[1:])
                new.append((target[0], Split(split.axis, tuple(o * inner for o in split.offsets))))
            else:
                parts = tuple(s for _, s in splits if isinstance(s, Split))
                if len(parts) != len(splits):
                    planner.refuse(name, f"merges dimensions {one} of shape {tuple(x.shape)}")
                rest = math.prod(x.shape[d] for d in wide if d not in layout)
                new.append((target[0], Points(parts, rest)))
        elif wide == [dim] and isinstance(split, Split):
            inner = math.prod(result.shape[d] for d in target[1:])
            if any(o % inner for o in split.offsets):
                planner.refuse(
                    name,
                    f"cuts dimension {dim}, sharded as {split.sizes}, into blocks of {inner}, which some ranks share",
                )
            new.append((target[0], Split(split.axis, tuple(o // inner for o in split.offsets))))
        else:
            planner.refuse(
                name,
                f"turns shape {tuple(x.shape)} into {tuple(result.shape)} across the sharded dimensions "
                f"{[d for d, _ in splits]}",
            )
    return tuple(new)


class Cut:
    """x[..., start:stop:step, ...] with this rank's own numbers on the sharded dimensions, those of the call on the
    others."""

    needs_plan = True

    def __init__(self, slices: dict[int, tuple[int, int, int]]) -> None:
        self.slices = slices

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if len(args) == 2 and func is torch.Tensor.__getitem__:
            index = list(full_index(args[1], x.dim()))
        else:
            index = [slice(None)] * x.dim()
            dim, start, length = [*args[1:], *kwargs.values()]
            dim = dim % x.dim()
            if dim not in self.slices:
                index[dim] = slice(start, start + length)
        position = 0
        for place, item in enumerate(index):
            if item is None:
                continue
            if position in self.slices:
                index[place] = slice(*self.slices[position])
            position += 1
        return x[tuple(index)]


def full_index(index: Any, ndim: int) -> tuple[Any, ...]:
    """An index with one item for each dimension (and None for new ones)."""
    items = index if isinstance(index, tuple) else (index,)
    used = sum([item is not None and item is not Ellipsis for item in items])
    result: list[Any] = []
    for item in items:
        if item is Ellipsis:
            result += [slice(None)] * (ndim - used)
        else:
            result.append(item)
    named = sum([item is not None for item in result])
    return tuple(result + [slice(None)] * (ndim - named))


def indexed(planner: Planner, call: Call) -> Any:
    """x[...] with slices, integers, None."""
    x, index = call.args[0], call.args[1]
    if not isinstance(x, Tensor) or len(call.tensors) != 1:
        planner.refuse(call.name, "picks points by a tensor of indices")
    items = full_index(index, x.dim())
    if not all(item is None or (isinstance(item, int | slice) and not isinstance(item, bool)) for item in items):
        planner.refuse(call.name, "picks points by something else than slices and integers")
    return _cut(planner, call, x, items)


def narrowed(planner: Planner, call: Call) -> Any:
    bound = call.bound(("input", "dim", "start", "length"))
    x, dim = call.tensors[0], bound["dim"] % call.tensors[0].dim()
    items = [slice(None)] * x.dim()
    start = bound["start"] if bound["start"] >= 0 else bound["start"] + x.shape[dim]
    items[dim] = slice(start, start + bound["length"])
    return _cut(planner, call, x, tuple(items))


def _cut(planner: Planner, call: Call, x: Tensor, items: tuple[Any, ...]) -> Any:
    layout, place = dict(planner.layout(x)), planner.domain.place
    slices: dict[int, tuple[int, int, int]] = {}
    new: list[tuple[int, Split | Points]] = []
    dim = out = 0
    for item in items:
        if item is None:
            out += 1
            continue
        if dim in layout:
            split = layout[dim]
            whole = isinstance(item, slice) and item.indices(x.shape[dim]) == (0, x.shape[dim], 1)
            if isinstance(split, Points) or not isinstance(item, slice):
                if not whole:
                    planner.refuse(call.name, f"picks points along the sharded dimension {dim}")
                new.append((out, split))
            else:
                start, stop, step = item.indices(x.shape[dim])
                stop = max(start, stop)
                offsets = [-(-(min(max(o, start), stop) - start) // step) for o in split.offsets]
                r = place[split.axis]
                first = start + offsets[r] * step - split.offsets[r]
                slices[dim] = (first, first + (offsets[r + 1] - offsets[r]) * step, step)
                offsets[-1] = -(-(stop - start) // step)
                new.append((out, Split(split.axis, tuple(offsets))))
        out += not isinstance(item, int)
        dim += 1
    planner.record(call, Cut(slices), tuple(sorted(slices.items())))
    return planner.keep(call.run(), tuple(new))


def pieces(planner: Planner, call: Call) -> Any:
    """chunk, split, unbind along a dimension that is not sharded."""
    default = 1 if call.name in ("chunk", "split") else 0
    dim = call.kwargs.get("dim", call.args[1 + default] if len(call.args) > 1 + default else 0)
    x = call.tensors[0]
    dim = dim % x.dim()
    layout = planner.layout(x)
    if any(d == dim for d, _ in layout):
        planner.refuse(call.name, f"cuts the sharded dimension {dim}")
    gone = call.name == "unbind"
    result = call.run()
    planner.record(call, Prepared([]))
    for t in tensors_of((result,), {}):
        planner.keep(t, tuple((d - (gone and d > dim), split) for d, split in layout))
    return result


def shuffled(planner: Planner, call: Call) -> Any:
    """pixel_shuffle and pixel_unshuffle: points become channels or the other way round."""
    x = call.tensors[0]
    result = call.run()
    new = []
    for dim, split in planner.layout(x):
        a, b = x.shape[dim], result.shape[dim]
        if isinstance(split, Points) or dim < x.dim() - 2 or (b < a and any(o % (a // b) for o in split.offsets)):
            planner.refuse(call.name, f"joins points of several ranks along dimension {dim}")
        new.append((dim, Split(split.axis, tuple(o * b // a for o in split.offsets))))
    planner.record(call, Prepared([]))
    return planner.keep(result, tuple(new))
