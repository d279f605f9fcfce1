"""Grids: padding modes with their transposes, and centred coordinates. Axes are in tensor order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# As nn.Conv2d names them. The position in this tuple is the code that the operators take.
PADDING_MODES = ("zeros", "circular", "replicate", "reflect")


def check_padding_mode(padding_mode: str) -> str:
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    return padding_mode


def check_reach(taps: Sequence[Sequence[int]], spatial: Sequence[int], padding_mode: str) -> None:
    """A mirror has no points to show beyond the far side of the grid; other boundaries have no such limit."""
    if padding_mode != "reflect":
        return
    for axis, size in enumerate(spatial):
        reach = max([abs(tap[axis]) for tap in taps])
        if reach >= size:
            raise ValueError(
                f"padding_mode: reflect padding by {reach} points needs more than {reach} points on axis {axis}, "
                f"got a grid of {tuple(spatial)}"
            )


def center(spatial: Sequence[int]) -> tuple[float, ...]:
    """The centre of the grid in index coordinates."""
    return tuple((size - 1) / 2 for size in spatial)


def half_extent(spatial: Sequence[int]) -> float:
    """Half the largest extent, the default coordinate scale: |x| <= 1 on every grid; 1 on a single point."""
    return (max(spatial) - 1) / 2 or 1.0


def every(t: Tensor, stride: Sequence[int]) -> Tensor:
    """Every stride-th point of the last axes, from the first on."""
    index: tuple[Any, ...] = (Ellipsis, *(slice(None, None, step) for step in stride))
    return t[index]


def fold(array: Tensor, spatial: Sequence[int], halo: Sequence[int], padding_mode: str) -> Tensor:
    """The transpose of padding with 'replicate' or 'reflect': adds each point of the border to the point it showed.

    array: (N, C, *(low + spatial + high)), halo: (low, high) of each axis. Returns (N, C, *spatial).
    """
    for axis, size in enumerate(spatial):
        low, high = halo[2 * axis], halo[2 * axis + 1]
        if low == high == 0:
            continue
        dim = axis + 2
        folded = array.narrow(dim, low, size).clone()
        for index in [*range(-low, 0), *range(size, size + high)]:
            if padding_mode == "replicate":
                shown = min(max(index, 0), size - 1)
            else:
                shown = -index if index < 0 else 2 * (size - 1) - index
            folded.narrow(dim, shown, 1).add_(array.narrow(dim, low + index, 1))
        array = folded
    return array
