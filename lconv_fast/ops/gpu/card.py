"""Facts of a card that plans depend on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

RESERVED = 1 << 10  # bytes of shared memory that each program takes beside its own
REGISTERS = 1 << 16  # of a multiprocessor, on all cards here
THREADS = 2048
PROGRAMS = 32
WARP = 32
REGISTER_GRAIN = 8  # a thread's registers are given out in eights


class Card(NamedTuple):
    name: str
    capability: int  # major, of NVIDIA's cards; others count as the first with all that is needed
    multiprocessors: int
    shared: int  # bytes of shared memory that a program may take
    shared_of_multiprocessor: int
    ptx: bool = True  # whether kernels may hold instructions of PTX

    @property
    def generation(self) -> int:
        """Column of the tables' limits: before Hopper, Hopper, after it."""
        return min(self.capability, 10) - 8

    def places(self, warps: int, registers: int, shared: int) -> int:
        """How many programs of so many warps, registers a thread and bytes of shared memory a multiprocessor holds."""
        threads = WARP * warps
        of_registers = -(-max(registers, 1) // REGISTER_GRAIN) * REGISTER_GRAIN * threads
        of_shared = self.shared_of_multiprocessor // (shared + RESERVED)
        return max(1, min(REGISTERS // of_registers, THREADS // threads, PROGRAMS, of_shared))


# Those that the tables were made for, to ask about without having one.
CARDS = {
    "A100": Card("A100", 8, 108, 163 << 10, 164 << 10),
    "H100": Card("H100", 9, 132, 227 << 10, 228 << 10),
    "H200": Card("H200", 9, 132, 227 << 10, 228 << 10),
    "B200": Card("B200", 10, 148, 227 << 10, 228 << 10),
    "MI300X": Card("MI300X", 8, 304, 64 << 10, 64 << 10, False),
}


@functools.cache
def card_of(device: torch.device) -> Card:
    p = torch.cuda.get_device_properties(device)
    shared = getattr(p, "shared_memory_per_block_optin", p.shared_memory_per_block)
    of_multiprocessor = getattr(p, "shared_memory_per_multiprocessor", shared)
    amd = bool(torch.version.hip)
    return Card(p.name, 8 if amd else p.major, p.multi_processor_count, shared, of_multiprocessor, not amd)
