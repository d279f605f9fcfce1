"""Grids: the boundary, and its transpose. Axes are in tensor order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lconv_fast.ops.boundary import PADDING_MODES, PaddingMode


def padding_mode(name: str) -> PaddingMode:
    """The mode of that name. Raises ValueError for another one."""
    if not isinstance(name, str) or name not in PADDING_MODES:
        raise ValueError(f"padding_mode: expected one of {', '.join(PADDING_MODES)}, got {name!r}")
    return PADDING_MODES[name]


def check_reach(taps: Sequence[Sequence[int]], spatial: Sequence[int], mode: PaddingMode) -> None:
    """A mirror has no points to show beyond the far side of the grid; other boundaries have no such limit."""
    if not mode.boundary.bounded:
        return
    for axis, size in enumerate(spatial):
        reach = max([abs(tap[axis]) for tap in taps])
        if reach >= size:
            raise ValueError(
                f"padding_mode: {mode.name.lower()} padding by {reach} points needs more than {reach} points on axis "
                f"{axis}, got a grid of {tuple(spatial)}"
            )


def every(t: Tensor, stride: Sequence[int]) -> Tensor:
    """Every stride-th point of the last axes, from the first on."""
    index: tuple[Any, ...] = (Ellipsis, *(slice(None, None, step) for step in stride))
    return t[index]


def fold(array: Tensor, spatial: Sequence[int], halo: Sequence[int], mode: PaddingMode) -> Tensor:
    """The transpose of padding with a mode that does not invert: adds each point of the border to the point it showed.

    array: (N, C, *(low + spatial + high)), halo: (low, high) of each axis. Returns (N, C, *spatial).
    """
    for axis, size in enumerate(spatial):
        low, high = halo[2 * axis], halo[2 * axis + 1]
        if low == high == 0:
            continue
        dim = axis + 2
        folded = array.narrow(dim, low, size).clone()
        # Counted from either end, so that the loops do not depend on the size.
        for k in range(low, 0, -1):
            folded.narrow(dim, mode.inward(k), 1).add_(array.narrow(dim, low - k, 1))
        for k in range(1, high + 1):
            folded.narrow(dim, size - 1 - mode.inward(k), 1).add_(array.narrow(dim, low + size - 1 + k, 1))
        array = folded
    return array
