"""One launch, from the driver's packed parameters to memory that is written."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tools.emulate.chips import WARP
from tools.emulate.decode import compile_program
from tools.emulate.driver import Launch
from tools.emulate.faults import Fault
from tools.emulate.machine import Machine
from tools.emulate.memory import Memory
from tools.emulate.numbers import dtype_of
from tools.emulate.ptx import Program, parse

_MOST_THREADS = 4096  # side by side


@functools.lru_cache(64)
def _parsed(text: str) -> Program:
    return parse(text)


@dataclass
class Emulator:
    """Runs launches, as `StandIn` hands them over.

    Args:
        rewrite: changes the PTX of a kernel before it runs, to plant errors.
    """

    rewrite: Callable[[str], str] | None = None
    kernels: list[str] = field(default_factory=list)  # that ran
    steps: int = 0  # instructions, each for all programs that stood side by side

    def __call__(self, launch: Launch) -> None:
        kernel = launch.kernel
        if launch.block != (WARP * kernel.warps, 1, 1) or launch.shared != kernel.shared:
            raise Fault(f"{kernel.name}: launched with {launch.block} threads, {launch.shared} bytes of shared memory")
        program = _parsed(self.rewrite(kernel.ptx) if self.rewrite else kernel.ptx)
        values = _parameters(program, launch.parameters)
        self.steps += execute(program, values, launch.tensors, launch.grid, launch.block[0], launch.shared)
        self.kernels.append(kernel.name)


def execute(
    program: Program,
    parameters: dict[str, Any],
    tensors: tuple[Tensor, ...],
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
) -> int:
    """Runs a grid of programs on the memory of `tensors`; how many instructions that took, side by side.

    Args:
        parameters: by name, numpy numbers of their PTX types.
        threads: of a program.
        shared: bytes of shared memory of a program.

    Raises:
        Fault: the kernel misbehaved.
        NotEmulated: it has an instruction that is not known here.
    """
    compiled, memory = compile_program(program, parameters), Memory(tensors)
    x, y, z = grid
    numbers = np.arange(x * y * z, dtype=np.int64)
    places = np.stack([numbers % x, numbers // x % y, numbers // (x * y)], 1)
    each, steps = max(1, _MOST_THREADS // threads), 0
    for first in range(0, len(places), each):
        machine = Machine(threads, places[first : first + each], grid, shared, memory, compiled.registers)
        compiled.run(machine)
        steps += machine.steps
    return steps


def _parameters(program: Program, packed: Any) -> dict[str, Any]:
    """The value of each parameter, by name, as many bytes as its type has."""
    values = {}
    for index, (kind, name) in enumerate(program.parameters):
        dtype = np.dtype(dtype_of(kind))
        values[name] = np.frombuffer(ctypes.string_at(packed[index], dtype.itemsize), dtype)[0]
    return values
