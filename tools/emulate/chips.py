"""The chips that can be stood in for: what a driver and PyTorch tell of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    name: str
    major: int
    minor: int
    multiprocessors: int
    shared: int  # bytes of shared memory that a program may take

    @property
    def capability(self) -> int:
        return 10 * self.major + self.minor


CHIPS = {
    "sm_80": Chip("emulated A100", 8, 0, 108, 163 << 10),
    "sm_90": Chip("emulated H100", 9, 0, 132, 227 << 10),
}
REGISTERS = 1 << 16  # of a multiprocessor
WARP = 32
