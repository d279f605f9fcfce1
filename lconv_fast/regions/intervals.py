"""Intervals of indices along one axis: which of them an operator reads, and what a boundary shows of an array.

An operator whose output at o depends on the input indices ceil((num o + low) / den) .. floor((num o + high) / den) is
an `AxisMap`: a stride is num, an upsampling den, a kernel the distance of low and high. The region of an array is, for
each axis, a sorted tuple of disjoint intervals [first, stop): more than one where a periodic boundary wraps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lconv_fast.ops.boundary import PADDING_MODES

Interval = tuple[int, int]
Segments = tuple[Interval, ...]
Region = tuple[Segments, ...]  # one for each spatial axis
Box = tuple[Interval, ...]


@dataclass(frozen=True)
class AxisMap:
    """The input indices that one output index depends on, and what stands outside the input.

    boundary: a padding mode by name; 'zeros' stands for any constant, since nothing is read.
    """

    num: int = 1
    den: int = 1
    low: int = 0
    high: int = 0
    boundary: str = "zeros"

    def span(self, interval: Interval) -> Interval:
        """The hull of what the outputs [first, stop) read, boundaries left aside."""
        first, stop = interval
        return -(-(self.num * first + self.low) // self.den), (self.num * (stop - 1) + self.high) // self.den + 1


IDENTITY = AxisMap()


def slide(kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0, boundary: str = "zeros") -> AxisMap:
    """A window that moves over its input: convolution and pooling."""
    return AxisMap(stride, 1, -padding, dilation * (kernel - 1) - padding, boundary)


def spread(kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> AxisMap:
    """The transpose of `slide`: output o = stride i + dilation k - padding."""
    return AxisMap(1, stride, padding - dilation * (kernel - 1), padding)


def join(intervals: Iterable[Interval]) -> Segments:
    """The union, sorted and disjoint."""
    result: list[Interval] = []
    for first, stop in sorted(intervals):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        elif first < stop:
            result.append((first, stop))
    return tuple(result)


def runs(interval: Interval, size: int, boundary: str) -> list[Interval | int]:
    """What [first, stop) shows of an array with `size` points: pieces of it in order, or numbers of points that are
    outside (boundary 'zeros')."""
    first, stop = interval
    inner = (max(first, 0), min(stop, size))
    shown = PADDING_MODES[boundary].boundary.shown
    if shown is None:
        if inner[0] >= inner[1]:
            return [stop - first]
        parts: list[Interval | int] = [inner]
        if first < 0:
            parts.insert(0, -first)
        if stop > size:
            parts.append(stop - size)
        return parts
    result: list[Interval | int] = []
    for index in (*range(first, min(0, stop)), None, *range(max(size, first), stop)):
        if index is not None:
            place = shown(index, size)
            piece = (place, place + 1)
        elif inner[0] < inner[1]:
            piece = inner
        else:
            continue
        last = result[-1] if result else None
        if isinstance(last, tuple) and last[1] == piece[0]:
            result[-1] = (last[0], piece[1])
        else:
            result.append(piece)
    return result


def read(interval: Interval, size: int, boundary: str) -> Segments:
    """The points of an array that [first, stop) shows."""
    return join(part for part in runs(interval, size, boundary) if not isinstance(part, int))


def overlap(one: Interval, other: Interval) -> Interval | None:
    first, stop = max(one[0], other[0]), min(one[1], other[1])
    return (first, stop) if first < stop else None


def length(segments: Segments) -> int:
    return sum(stop - first for first, stop in segments)
