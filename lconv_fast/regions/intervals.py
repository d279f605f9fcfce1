"""Intervals of indices along one axis: which of them an operator reads, and what a boundary shows of an array.

An operator whose output at o depends on the input indices ceil((num o + low) / den) .. floor((num o + high) / den) is
an `AxisMap`: a stride is num, an upsampling den, a kernel the distance of low and high. The region of an array is, for
each axis, a sorted tuple of disjoint intervals [first, stop): more than one where a periodic boundary wraps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Interval = tuple[int, int]
Segments = tuple[Interval, ...]
Region = tuple[Segments, ...]  # one for each spatial axis
Box = tuple[Interval, ...]


@dataclass(frozen=True)
class AxisMap:
    """The input indices that one output index depends on, and what stands outside the input.

    boundary: 'zeros' (a constant: nothing is read), 'circular', 'replicate' or 'reflect'.
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
    if boundary == "zeros":
        if inner[0] >= inner[1]:
            return [stop - first]
        parts: list[Interval | int] = [inner]
        if first < 0:
            parts.insert(0, -first)
        if stop > size:
            parts.append(stop - size)
        return parts
    if boundary == "circular":
        result: list[Interval | int] = []
        while first < stop:
            place = first % size
            length = min(stop - first, size - place)
            result.append((place, place + length))
            first += length
        return result
    outside = [_shown(i, size, boundary) for i in (*range(first, min(0, stop)), *range(max(size, first), stop))]
    points: list[Interval | int] = [(i, i + 1) for i in outside]
    lows = max(0, min(0, stop) - first)
    return points[:lows] + ([inner] if inner[0] < inner[1] else []) + points[lows:]


def _shown(index: int, size: int, boundary: str) -> int:
    if boundary == "replicate":
        return min(max(index, 0), size - 1)
    return (size - 1) - abs((size - 1) - abs(index))  # reflect


def read(interval: Interval, size: int, boundary: str) -> Segments:
    """The points of an array that [first, stop) shows."""
    return join(part for part in runs(interval, size, boundary) if not isinstance(part, int))


def overlap(one: Interval, other: Interval) -> Interval | None:
    first, stop = max(one[0], other[0]), min(one[1], other[1])
    return (first, stop) if first < stop else None


def length(segments: Segments) -> int:
    return sum(stop - first for first, stop in segments)
