"""Programs (CTAs) of one launch, side by side: all threads of all of them step together.

Each thread has a program counter; those with the smallest go first, so that threads that parted meet again at the first
instruction they share. Registers are arrays over all threads, None where nothing was written yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.emulate.chips import WARP
from tools.emulate.faults import Fault
from tools.emulate.memory import Memory
from tools.emulate.numbers import Array
from tools.emulate.ptx import Instruction, Program
from tools.emulate.shared import Shared

Mask = Array | None  # of threads; None: all
Step = Callable[["Machine", Mask], None]


class Machine:
    """The state of a group of programs.

    Args:
        threads: of a program.
        programs: their numbers, (P, 3) as %ctaid.
        grid: %nctaid.
        shared: bytes of shared memory of a program.
    """

    def __init__(
        self, threads: int, programs: Array, grid: tuple[int, int, int], shared: int, memory: Memory, registers: int
    ) -> None:
        count = len(programs)
        self.threads, self.programs, self.size = threads, count, threads * count
        thread = np.tile(np.arange(threads, dtype=np.uint32), count)
        self.program = np.repeat(np.arange(count, dtype=np.int64), threads)  # among those here
        self.number = np.repeat(
            programs[:, 0] + grid[0] * (programs[:, 1] + grid[1] * programs[:, 2]), threads
        )  # of the launch
        self.warp = (thread // WARP).astype(np.int64)  # of the program
        self.lane = thread % WARP
        zero = np.zeros(self.size, np.uint32)
        self.special = {
            "%tid.x": thread,
            "%tid.y": zero,
            "%tid.z": zero,
            "%ntid.x": zero + np.uint32(threads),
            "%laneid": self.lane,
            "%warpid": thread // WARP,
        }
        for k, axis in enumerate("xyz"):
            self.special[f"%ctaid.{axis}"] = np.repeat(programs[:, k].astype(np.uint32), threads)
            self.special[f"%nctaid.{axis}"] = zero + np.uint32(grid[k])
        self.registers: list[Any] = [None] * registers
        self.memory = memory
        self.shared = Shared(count, threads // WARP, shared)
        self.running = np.ones(self.size, bool)
        self.steps = 0

    def put(self, register: int, value: Any, mask: Mask) -> None:
        """Writes bits of the register's own width."""
        if not value.shape:
            value = np.full(self.size, value)
        if mask is None:
            self.registers[register] = value
            return
        before = self.registers[register]
        self.registers[register] = np.where(mask, value, poison(value) if before is None else before)

    def over_threads(self, value: Any) -> Array:
        """An array over all threads, of an array or a number."""
        return value if value.shape else np.full(self.size, value)

    def barrier(self, mask: Mask) -> None:
        """bar.sync 0: every running thread of a program, or it would wait forever."""
        active = self.running if mask is None else mask
        here = active.reshape(self.programs, -1)
        some = here.any(1)
        if not (here == self.running.reshape(self.programs, -1))[some].all():
            raise Waits
        self.shared.epoch[some] += 1


def poison(like: Array) -> Any:
    """All bits set: a NaN in every floating-point format, and an address in no buffer."""
    return True if like.dtype == np.bool_ else like.dtype.type(np.iinfo(like.dtype).max)


class Waits(Exception):
    """A barrier is reached by some threads of a program: they wait for the others."""


RETURN = "ret"


class Compiled:
    """A program whose instructions are functions; of a branch, its label; of the end, RETURN."""

    def __init__(self, program: Program, steps: list[Step | str], guards: list[int], registers: int) -> None:
        self.program, self.steps, self.guards, self.registers = program, steps, guards, registers

    def run(self, machine: Machine) -> None:
        """All programs of `machine`, to the end.

        Raises:
            Fault: with the instruction that caused it.
        """
        waiting: dict[int, Mask] = {0: None}  # by program counter
        at_barrier: set[int] = set()  # those among them that cannot go on before more threads come
        with np.errstate(all="ignore"):  # a card does not trap
            while waiting:
                pc = min((place for place in waiting if place not in at_barrier), default=-1)
                if pc < 0:
                    pc = min(waiting)
                    raise Fault(
                        f"{self.program.name}: a barrier is reached by some threads of a program and not by others, at "
                        f"instruction {pc}: {self.program.code[pc].text}"
                    )
                active = waiting.pop(pc)
                meeting = min((place for place in waiting if place > pc), default=len(self.steps))
                places, waits = self._advance(machine, pc, active, meeting)
                for place, mask in places:
                    if place in waiting:
                        waiting[place] = _union(waiting[place], mask)
                        at_barrier.discard(place)
                    else:
                        waiting[place] = mask
                        if waits:
                            at_barrier.add(place)

    def _advance(self, machine: Machine, pc: int, active: Mask, meeting: int) -> tuple[list[tuple[int, Mask]], bool]:
        """Runs the threads `active` from `pc` until they part or come to `meeting` or to a barrier that others have not
        reached; where they are then, and whether it is that."""
        code, steps, guards = self.program.code, self.steps, self.guards
        try:
            while pc < meeting:
                step, guard, mask = steps[pc], guards[pc], active
                machine.steps += 1
                if guard >= 0:
                    mask = _guarded(machine.registers[guard], code[pc], active)
                    if mask is not None and not mask.any():
                        pc += 1
                        continue
                if not isinstance(step, str):
                    step(machine, mask)
                    pc += 1
                    continue
                if step == RETURN and mask is not None:
                    machine.running = machine.running & ~mask
                rest = None if mask is None else _without(active, mask)
                if rest is None or not rest.any():
                    if step == RETURN:
                        return [], False
                    pc = self.program.labels[step]
                    continue
                parted = [] if step == RETURN else [(self.program.labels[step], mask)]
                return [*parted, (pc + 1, rest)], False
        except Waits:
            return [(pc, active)], True
        except Fault as fault:
            raise Fault(f"{self.program.name}: {fault}, at instruction {pc}: {code[pc].text}") from None
        return ([(pc, active)] if pc < len(steps) else []), False


def _guarded(predicate: Any, instruction: Instruction, active: Mask) -> Mask:
    if predicate is None:
        raise Fault(f"predicate {instruction.guard} was never set")
    mask = ~predicate if instruction.unless else predicate
    if active is not None:
        return mask & active
    return None if mask.all() else mask


def _union(a: Mask, b: Mask) -> Mask:
    if a is None or b is None:
        return None
    both = a | b
    return None if both.all() else both


def _without(active: Mask, mask: Array) -> Array:
    return ~mask if active is None else active & ~mask
