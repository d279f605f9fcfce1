"""The exchange between ranks: halos along a dimension, differentiable, by a single all-to-all.

    E x = [fill | from below | own points | from above | fill]        E^T adds each point's gradient to the rank that
    owns it

With two sharded dimensions the second exchange carries the halos of the first along, so that corners arrive without a
message of their own. All-to-all with most splits empty is what torch.compile traces without a graph break, and what
NCCL runs as messages between neighbours alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor

from lconv_fast.regions.intervals import runs
from lconv_fast.sharding.layout import Move


def all_to_all(flat: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
    """The collective that carries halos; `overlap` starts the same one without waiting."""
    if torch.is_grad_enabled() and flat.requires_grad:
        return collectives.wait_tensor(collectives.all_to_all_single_autograd(flat, received, sent, group))
    return collectives.wait_tensor(collectives.all_to_all_single(flat, received, sent, group))


def splits_of(move: Move, rest: int) -> tuple[list[int], list[int]]:
    """Numbers that come from and go to each rank, with `rest` of them at each point along the dimension."""
    sent = [rest * (move.send[2 * r][1] + move.send[2 * r + 1][1]) for r in range(move.ranks)]
    low, high = move.receive
    received = [0] * move.ranks
    received[move.sources[0]] += rest * low
    received[move.sources[1]] += rest * high
    return received, sent


def slabs_of(got: Tensor, move: Move, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The points from below and from above, of arrays of `shape` along all other dimensions."""
    (low, high), dim, shape = move.receive, move.dim, list(shape)
    rest = math.prod([n for d, n in enumerate(shape) if d != dim])

    def slab(start: int, length: int) -> Tensor:
        shape[dim] = length
        return got.narrow(0, start, rest * length).view(shape)

    # From one rank the high halo comes first; from two, in the order of the ranks.
    high_first = move.sources[1] <= move.sources[0]
    return slab(rest * high if high_first else 0, low), slab(0 if high_first else rest * low, high)


def received_halos(x: Tensor, move: Move) -> tuple[Tensor, Tensor]:
    """The points from below and from above. Every rank takes part, also those that send or receive none, and its
    result depends on x in any case: the backward pass has to meet the same collective on every rank."""
    slabs = [x.narrow(move.dim, start, length).reshape(-1) for start, length in move.send]
    received, sent = splits_of(move, x.numel() // x.shape[move.dim])
    return slabs_of(all_to_all(torch.cat(slabs), received, sent, move.group), move, x.shape)


def _border(x: Tensor, own: Tensor, move: Move, count: int, upper: bool) -> Tensor:
    dim, n = move.dim, x.shape[move.dim]
    parts = []
    for part in runs((n, n + count) if upper else (-count, 0), n, move.border):
        if isinstance(part, int):
            shape = list(own.shape)
            shape[dim] = part
            parts.append(own.new_full(shape, move.value))
        else:
            parts.append(x.narrow(dim, part[0], part[1] - part[0]))
    return torch.cat(parts, dim)


def around(x: Tensor, own: Tensor, what: Move) -> tuple[list[Tensor], list[Tensor]]:
    """What stands before and after this rank's own points, once it has been received."""
    before, after = [], []
    if what.group is not None:
        low, high = received_halos(x, what)
        before, after = [low], [high]
    if what.fill[0]:
        before = [_border(x, own, what, what.fill[0], False), *before]
    if what.fill[1]:
        after = [*after, _border(x, own, what, what.fill[1], True)]
    return before, after


def joined(before: list[Tensor], own: Tensor, after: list[Tensor], dim: int) -> Tensor:
    return torch.cat([*before, own, *after], dim) if before or after else own


def moved(x: Tensor, moves: Sequence[Move]) -> Tensor:
    """x with the points that `moves` ask for in the place of its own, one dimension after the other."""
    for one in moves:
        own = x.narrow(one.dim, *one.keep)
        before, after = around(x, own, one)
        x = joined(before, own, after, one.dim)
    return x


class _Rebuilt(torch.autograd.graph.saved_tensors_hooks):
    """Where `array` would be kept for the backward pass: keeps the shard and its slabs, and joins them again."""

    def __init__(self, x: Tensor, array: Tensor, slabs: list[tuple[Move, list[Tensor], list[Tensor]]]) -> None:
        x, version, place = x.detach(), x._version, (array.data_ptr(), array.shape, array.stride())

        def pack(t: Tensor) -> Any:
            return t if (t.data_ptr(), t.shape, t.stride()) != place else None

        def unpack(kept: Tensor | None) -> Tensor:
            if kept is not None:
                return kept
            if x._version != version:
                raise RuntimeError("a tensor that a sharded layer needs for its gradients was changed in place")
            again = x
            for one, before, after in slabs:
                again = joined(before, again.narrow(one.dim, *one.keep), after, one.dim)
            return again

        super().__init__(pack, unpack)


def extended(x: Tensor, moves: Sequence[Move]) -> tuple[Tensor, contextlib.AbstractContextManager[Any]]:
    """`moved(x, moves)`, and a context for an operation on it that keeps its input for the backward pass.

    Within the context the array with its halo is not kept but made again, from the shard, which the layer before keeps
    anyway, and the slabs around it; else every layer would keep a second copy of its input. Compilers do that by
    themselves, checkpoints keep nothing at all.
    """
    if (
        torch.compiler.is_compiling()
        or not (torch.is_grad_enabled() and moves)
        or torch._C._autograd._top_saved_tensors_default_hooks(True)
    ):
        return moved(x, moves), contextlib.nullcontext()
    array, slabs = x, []
    for one in moves:
        own = array.narrow(one.dim, *one.keep)
        before, after = around(array, own, one)
        slabs.append((one, [t.detach() for t in before], [t.detach() for t in after]))
        array = joined(before, own, after, one.dim)
    return array, _Rebuilt(x, array, slabs)
