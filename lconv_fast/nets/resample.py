"""Coarser and finer grids, in either memory format, for grids of any size.

On extents that are even, both commute with quarter turns and reflections, and with shifts by 2.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

# name: axes -> function.
POOLS: dict[str, dict[int, Callable[..., Tensor]]] = {
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    "mean": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
}


def halve(f: Tensor, pool: str = "max") -> Tensor:
    """The largest value in each cell of 2^n points, or their mean; cells at the far end of odd extents have fewer."""
    return POOLS[pool][f.dim() - 2](f, 2, ceil_mode=True)


def double(f: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Each value at the 2^n points of its cell, cut to `spatial`: the transpose of a sum over cells.

    Nearest-neighbour interpolation has fast kernels in channels-last both ways; the sum over cells that is the gradient
    of a broadcast took ten times as long.
    """
    fine = F.interpolate(f, scale_factor=2, mode="nearest")
    for axis, size in enumerate(spatial, start=2):
        fine = fine.narrow(axis, 0, size)
    return fine
