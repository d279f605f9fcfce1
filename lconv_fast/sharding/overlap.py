"""An L-conv whose halos travel while it computes: first the points that see none of them, then the borders.

Along the sharded dimensions d_1 .. d_k, with a rank's points cut where taps begin to leave them:

    y = [low_k | [.. [low_1 | interior | high_1] ..] | high_k]

low_j and high_j need the halos of d_1 .. d_j alone, so that each exchange has the computation before it to hide behind:
d_1's the interior, d_(j+1)'s the borders of d_j. In the backward pass the borders come first, and the gradients of
their halos travel while that of the interior is computed. What is sent is what `exchange.extended` sends. The results
are joined instead of the inputs: one copy for each dimension on either road.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from lconv_fast.sharding.exchange import all_to_all, slabs_of, splits_of
from lconv_fast.sharding.layout import Move

Range = tuple[int, int]
LEAST_BYTES = 2**20  # of halos along a dimension: below, two more kernels cost as much as the message


class _Exchange:
    """One message of a forward pass and, later, that of its gradient the other way."""

    def __init__(self, move: Move, received: list[int], sent: list[int]) -> None:
        self.group, self.received, self.sent = move.group, received, sent
        self.buffer: Tensor | None = None
        self.work: Any = None
        self.kept: Tensor | None = None  # what is being sent must live until it has arrived

    def start(self, flat: Tensor, back: bool = False) -> Tensor:
        received, sent = (self.sent, self.received) if back else (self.received, self.sent)
        self.kept, self.buffer = flat.contiguous(), flat.new_empty(sum(received))
        self.work = dist.all_to_all_single(self.buffer, self.kept, received, sent, group=self.group, async_op=True)
        return self.buffer

    def finish(self) -> Tensor:
        self.work.wait()
        buffer, self.work, self.buffer, self.kept = self.buffer, None, None, None
        assert buffer is not None
        return buffer


class _Sent(torch.autograd.Function):
    """Starts an exchange: its result is filled when `_Received` returns, and only then read."""

    @staticmethod
    def forward(ctx: Any, exchange: _Exchange, flat: Tensor) -> Tensor:
        ctx.exchange = exchange
        return exchange.start(flat)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        one = ctx.exchange
        if one.work is not None:
            return None, one.finish()
        return None, all_to_all(gradient.contiguous(), one.sent, one.received, one.group)


class _Received(torch.autograd.Function):
    """Backward, it starts the exchange that `_Sent` ends; what it hands on there is not read. Where derivatives of
    gradients are asked for, it leaves the exchange to `_Sent`, by a collective that has them."""

    @staticmethod
    def forward(ctx: Any, exchange: _Exchange, buffer: Tensor) -> Tensor:
        ctx.exchange = exchange
        exchange.finish()
        return buffer.view_as(buffer)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        if not torch.is_grad_enabled():
            ctx.exchange.start(gradient, back=True)
        return None, gradient


class _After(torch.autograd.Function):
    """y, which from here on depends on halos of no points as well: every rank has to meet the backward exchange."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *empty: Tensor) -> Tensor:
        ctx.shapes = [t.shape for t in empty]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *[gradient.new_zeros(shape) for shape in ctx.shapes]


class _Boxes:
    """Boxes of a shard and of the halos that have come so far, in the shard's own coordinates."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.halos: list[tuple[int, Tensor, Tensor]] = []  # along d_1, d_2, ..: each reaches over those before

    def reach(self, dim: int) -> Range:
        """From where to where points along a dimension are known."""
        low, high = next(((low, high) for d, low, high in self.halos if d == dim), (None, None))
        n = self.x.shape[dim]
        return (0, n) if low is None or high is None else (-low.shape[dim], n + high.shape[dim])

    def take(self, ranges: Mapping[int, Range], level: int | None = None) -> Tensor:
        level = len(self.halos) if level is None else level
        if level == 0:
            return _cut(self.x, ranges, {})
        dim, low, high = self.halos[level - 1]
        n = self.x.shape[dim]
        first, last = ranges.get(dim, (0, n))
        before = {d: one.shape[d] for d, one, _ in self.halos[: level - 1]}  # points in front of the shard's own
        parts = []
        if first < 0:
            own = {**ranges, dim: (low.shape[dim] + first, low.shape[dim] + min(last, 0))}
            parts.append(_cut(low, own, before))
        if max(first, 0) < min(last, n):
            parts.append(self.take({**ranges, dim: (max(first, 0), min(last, n))}, level - 1))
        if last > n:
            parts.append(_cut(high, {**ranges, dim: (max(first, n) - n, last - n)}, before))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _cut(t: Tensor, ranges: Mapping[int, Range], before: Mapping[int, int]) -> Tensor:
    for dim, (first, last) in ranges.items():
        start = first + before.get(dim, 0)
        if (start, last - first) != (0, t.shape[dim]):
            t = t.narrow(dim, start, last - first)
    return t


# The layer at the points of some ranges, of an array that has `halo` (low, high) points around them.
Piece = Callable[[Tensor, Mapping[int, Range], Mapping[int, Range]], Tensor]


@dataclass(frozen=True)
class Overlap:
    """The cut of a layer of stride 1 on this rank."""

    moves: tuple[Move, ...]
    reach: tuple[Range, ...]  # along each of their dimensions: how far taps reach down and up

    @staticmethod
    def of(moves: Sequence[Move], reach: Mapping[int, Range], own: Sequence[int]) -> Overlap | None:
        """own: this rank's shape. None where it has points beyond the grid to fill in, or none that see no halo."""
        if not moves or any(one.group is None or any(one.fill) or one.keep != (0, own[one.dim]) for one in moves):
            return None
        result = Overlap(tuple(moves), tuple(reach[one.dim] for one in moves))
        return result if all(first < last for first, last in result.interior(own).values()) else None

    def interior(self, own: Sequence[int]) -> dict[int, Range]:
        cut = {}
        for one, (down, up) in zip(self.moves, self.reach, strict=True):
            low, high = one.receive
            cut[one.dim] = (down if low else 0, own[one.dim] - (up if high else 0))
        return cut

    def pays(self, x: Tensor) -> bool:
        inner, halo = 1.0, x.numel() * x.element_size()
        for dim, (first, last) in self.interior(x.shape).items():
            inner *= (last - first) / x.shape[dim]
        least = min(halo // x.shape[one.dim] * max(sum(one.receive), one.sent()) for one in self.moves)
        return inner >= 0.5 and least >= LEAST_BYTES

    def __call__(self, x: Tensor, piece: Piece) -> Tensor:
        boxes, inner = _Boxes(x), self.interior(x.shape)

        def compute(ranges: dict[int, Range]) -> Tensor:
            wanted, halo = {}, {}
            for one, (down, up) in zip(self.moves, self.reach, strict=True):
                first, last = ranges[one.dim]
                lowest, highest = boxes.reach(one.dim)
                wanted[one.dim] = max(first - down, lowest), min(last + up, highest)
                halo[one.dim] = first - wanted[one.dim][0], wanted[one.dim][1] - last
            return piece(boxes.take(wanted), ranges, halo)

        def start(one: Move) -> tuple[_Exchange, Tensor, Sequence[int]]:
            known = {dim: boxes.reach(dim) for dim, _, _ in boxes.halos}
            slabs = [boxes.take({**known, one.dim: (first, first + length)}) for first, length in one.send]
            shape = slabs[0].shape
            rest = math.prod(n for d, n in enumerate(shape) if d != one.dim)
            exchange = _Exchange(one, *splits_of(one, rest))
            return exchange, _Sent.apply(exchange, torch.cat([t.reshape(-1) for t in slabs])), shape  # type: ignore[no-untyped-call]

        travelling = start(self.moves[0])
        y = compute(dict(inner))
        for k, one in enumerate(self.moves):
            exchange, buffer, shape = travelling
            low, high = slabs_of(_Received.apply(exchange, buffer), one, shape)  # type: ignore[no-untyped-call]
            boxes.halos.append((one.dim, low, high))
            if k + 1 < len(self.moves):
                travelling = start(self.moves[k + 1])
            n, around = x.shape[one.dim], {**inner, **{d: (0, x.shape[d]) for d, _, _ in boxes.halos}}
            first, last = inner[one.dim]
            parts = [y]
            if first > 0:
                parts = [compute({**around, one.dim: (0, first)}), *parts]
            if last < n:
                parts = [*parts, compute({**around, one.dim: (last, n)})]
            y = torch.cat(parts, one.dim) if len(parts) > 1 else y
            if empty := [t for t in (low, high) if t.shape[one.dim] == 0]:
                y = _After.apply(y, *empty)  # type: ignore[no-untyped-call]
        return y


def can_overlap() -> bool:
    """Compilers order collectives by themselves, and transforms of functions need operators that they know."""
    return not (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
