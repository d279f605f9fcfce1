"""How a tensor lies on the ranks of a mesh, and which points a rank has to receive.

Rank r of a mesh axis holds the points offsets[r] .. offsets[r + 1] of a tensor's dimension. An operation that computes
its own points from a neighbourhood needs an interval [first, last) that reaches over them; `plan_move` turns those
wants of all ranks into what this rank sends, receives, keeps and fills in. Everything here is integers, the same on
every rank, so that what cannot be done is refused by all ranks alike and before any of them sends anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lconv_fast.ops.boundary import PADDING_MODES


@dataclass(frozen=True)
class Split:
    """One dimension of a tensor on one mesh axis: rank r holds offsets[r] .. offsets[r + 1]."""

    axis: int
    offsets: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.axis,)

    @property
    def extent(self) -> int:
        return self.offsets[-1]

    def size(self, place: Sequence[int]) -> int:
        r = place[self.axis]
        return self.offsets[r + 1] - self.offsets[r]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False))


@dataclass(frozen=True)
class Points:
    """Several dimensions in one, of which the splits are sharded: a set of points, whose order means nothing any
    more."""

    splits: tuple[Split, ...]
    rest: int

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(s.axis for s in self.splits)

    @property
    def extent(self) -> int:
        return self.rest * math.prod(s.extent for s in self.splits)

    def size(self, place: Sequence[int]) -> int:
        return self.rest * math.prod(s.size(place) for s in self.splits)


# Of a tensor: (dimension, Split) in rising order; empty for one that is the same on every rank.
Layout = tuple[tuple[int, Split | Points], ...]


def axes_of(layout: Layout) -> frozenset[int]:
    return frozenset(axis for _, split in layout for axis in split.axes)


def local_shape(shape: Sequence[int], layout: Layout, place: Sequence[int]) -> tuple[int, ...]:
    result = list(shape)
    for dim, split in layout:
        result[dim] = split.size(place)
    return tuple(result)


@dataclass(frozen=True)
class Domain:
    """The part of a device mesh that a domain is sharded over, and where this rank stands in it."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    place: tuple[int, ...]
    groups: tuple[Any, ...]  # a ProcessGroup for each axis; None where only a plan is made
    dims: tuple[tuple[int, int], ...]  # (dimension of the input, mesh axis)

    @property
    def ranks(self) -> int:
        return math.prod(self.sizes)


def chunks(extent: int, parts: int) -> tuple[int, ...]:
    """The offsets of torch.chunk, which DTensor splits by: ceil(extent / parts) points each, the last ones fewer or
    none."""
    size = -(-extent // parts)
    return tuple(min(r * size, extent) for r in range(parts + 1))


def split_evenly(caller: str, shape: Sequence[int], dim: int, axis: int, parts: int, name: str) -> Split:
    """A dimension as DTensor splits it. Raises ValueError, from the whole shape alone, where a rank would hold
    nothing."""
    split = Split(axis, chunks(shape[dim], parts))
    if min(split.sizes) == 0:
        raise ValueError(
            f"{caller}: expected at least one point for each of the {parts} ranks of mesh axis {name!r}, got "
            f"shape {tuple(shape)}, "
            f"whose dimension {dim} splits into {split.sizes}"
        )
    return split


def split_of(axis: int, sizes: Sequence[int]) -> Split:
    return Split(axis, (0, *accumulate(sizes)))


@dataclass(frozen=True)
class Move:
    """What this rank does along one dimension, so that it holds [first, last) in the place of its own points."""

    dim: int
    group: Any
    keep: tuple[int, int]  # (start, length) of its own points
    send: tuple[
        tuple[int, int], ...
    ]  # for each rank of the axis and each of its sides (high, then low): (start, length)
    receive: tuple[int, int]  # points from the low and from the high neighbour
    sources: tuple[int, int]  # these neighbours
    fill: tuple[int, int]  # points beyond the ends of the whole grid
    border: str
    ranks: int
    value: float = 0.0  # what lies beyond, with zeros

    @property
    def empty(self) -> bool:
        return self.group is None and not any(self.fill)

    def sent(self) -> int:
        """Points along the dimension that leave this rank."""
        return sum(length for _, length in self.send)


def plan_move(
    domain: Domain,
    what: str,
    dim: int,
    split: Split,
    wants: Sequence[tuple[int, int]],
    border: str = "zeros",
    value: float = 0.0,
) -> Move | None:
    """The move after which rank r holds wants[r] = [first, last) of the whole dimension; None where all hold it
    already.

    Points before 0 and from the extent on are what `border` says. Halos come from the direct neighbours, mirrors from
    the rank's own points: raises ValueError where a shard is too thin for that, for any rank, on every rank.
    """
    offsets, n, parts = split.offsets, split.extent, len(split.offsets) - 1
    boundary = PADDING_MODES[border].boundary
    wrap = PADDING_MODES[border].periodic
    if all((offsets[r], offsets[r + 1]) == tuple(want) for r, want in enumerate(wants)):
        return None
    lows, highs = [], []  # points that rank r receives from below and above
    for r, (first, last) in enumerate(wants):
        own_first, own_last = offsets[r], offsets[r + 1]
        low = max(0, own_first - (first if wrap else max(first, 0)))
        high = max(0, (last if wrap else min(last, n)) - own_last)
        below, above = offsets[r] - offsets[r - 1], 0
        if r == 0:
            below = n - offsets[parts - 1] if wrap else 0
        above = offsets[r + 2] - offsets[r + 1] if r + 1 < parts else (offsets[1] if wrap else 0)
        if low > below or high > above or first > own_last or last < own_first:
            thin = min(split.sizes)
            raise ValueError(
                f"{what}: dimension {dim} of {n} points splits into {split.sizes} on mesh axis "
                f"{domain.names[split.axis]!r}: "
                f"rank {r} needs a halo of {low} and {high} points, and its neighbours hold {below} and {above}; "
                f"take fewer ranks, or a larger grid (the thinnest shard has {thin})"
            )
        out = (max(0, -first), max(0, last - n))
        outside = (*range(min(first, 0), 0), *range(n, max(last, n)))
        # What a border shows, no other rank may have to send.
        if (
            boundary.shown is not None
            and not wrap
            and any(not own_first <= boundary.shown(i, n) < own_last for i in outside)
        ):
            raise ValueError(
                f"{what}: dimension {dim} of {n} points splits into {split.sizes} on mesh axis "
                f"{domain.names[split.axis]!r}: "
                f"{border} padding by {max(out)} points needs more of the last points on rank {r}"
            )
        lows.append(low)
        highs.append(high)
    me = domain.place[split.axis]
    first, last = wants[me]
    start, stop = max(first, offsets[me]), min(last, offsets[me + 1])
    local = parts == 1  # a periodic axis of one rank wraps round without a message
    fill = (0, 0) if wrap and not local else (max(0, -first), max(0, last - n))
    if local:
        lows, highs = [0], [0]
    send: list[tuple[int, int]] = []
    own = offsets[me + 1] - offsets[me]
    for r in range(parts):
        # The last points of this rank are the low halo of the next one, its first ones the high halo of the one before.
        to_high = (0, highs[r]) if (r + 1) % parts == me and (wrap or r + 1 == me) else (0, 0)
        to_low = (own - lows[r], lows[r]) if (r - 1) % parts == me and (wrap or r - 1 == me) else (0, 0)
        send += [to_high, to_low]
    return Move(
        dim=dim,
        group=None if local or not (any(lows) or any(highs)) else domain.groups[split.axis] or "planned",
        keep=(start - offsets[me], max(0, stop - start)),
        send=tuple(send),
        receive=(lows[me], highs[me]),
        sources=((me - 1) % parts, (me + 1) % parts),
        fill=fill,
        border=border,
        ranks=parts,
        value=value,
    )
