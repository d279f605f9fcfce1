"""What lies outside the grid: one row for each padding mode. ``csrc/boundary.h`` and ``gpu/boundary.py`` hold the same
rules for the CPU's kernels and Triton's, and nothing else knows one mode from another.

A rule says which index the array shows at an index outside. It is written with +, -, *, // , % and abs alone, so that
it serves numbers, symbolic sizes and tensors of indices alike.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

FAR = 2**40  # more points than any axis has: the other end of the grid does not matter


class Boundary(NamedTuple):
    """A rule for all indices, and what follows from it."""

    shown: Callable[[Any, Any], Any] | None  # (index, size) -> the index that stands there; None: zeros
    inverts: bool  # each point is seen through a tap from one point at most, so that taps can be turned round
    bounded: bool  # whether taps must not reach beyond the far side of the grid


def _periodic(index: Any, size: Any) -> Any:
    return index % size


def _clamped(index: Any, size: Any) -> Any:
    """(|i| + last - |i - last|) / 2: 0 for i <= 0, i up to `last`, then `last`."""
    return (abs(index) + (size - 1) - abs(index - (size - 1))) // 2


def _mirrored(index: Any, size: Any) -> Any:
    """About the first and the last point, which are not shown twice."""
    return (size - 1) - abs((size - 1) - abs(index))


class PaddingMode(IntEnum):
    """nn.Conv2d's names, in upper case. The codes cross the schema of the operators."""

    ZEROS = 0
    CIRCULAR = 1
    REPLICATE = 2
    REFLECT = 3

    @property
    def boundary(self) -> Boundary:
        return BOUNDARIES[self]

    @property
    def inverts(self) -> bool:
        """Where not, the transpose works on the extended array, whose border is then folded (lconv_fast.grid.fold)."""
        return BOUNDARIES[self].inverts

    @property
    def periodic(self) -> bool:
        """Whether the other side of the grid continues it."""
        return self.inverts and BOUNDARIES[self].shown is not None

    def inward(self, steps: int) -> int:
        """How far from its end of the grid lies the point shown `steps` points beyond that end, where no other side
        continues the grid. Rules are symmetric, so that both ends are alike."""
        shown = BOUNDARIES[self].shown
        assert shown is not None and not self.inverts
        return int(shown(-steps, FAR))


BOUNDARIES = {
    PaddingMode.ZEROS: Boundary(None, inverts=True, bounded=False),
    PaddingMode.CIRCULAR: Boundary(_periodic, inverts=True, bounded=False),
    PaddingMode.REPLICATE: Boundary(_clamped, inverts=False, bounded=False),
    PaddingMode.REFLECT: Boundary(_mirrored, inverts=False, bounded=True),
}

# As nn.Conv2d names them, and as torch.nn.functional.pad does.
PADDING_MODES = {mode.name.lower(): mode for mode in PaddingMode}
PAD_MODES = {"constant" if mode == PaddingMode.ZEROS else name: mode for name, mode in PADDING_MODES.items()}
