"""Loads, stores, copies, barriers and fences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.emulate.decode import Decoder, items
from tools.emulate.faults import Fault, NotEmulated
from tools.emulate.machine import Machine, Mask, Step, poison
from tools.emulate.numbers import BITS, Array
from tools.emulate.ptx import Instruction


def threads_of(m: Machine, mask: Mask) -> Array:
    return np.arange(m.size) if mask is None else np.nonzero(mask)[0]


def _width(instruction: Instruction) -> tuple[int, int]:
    """Bytes of an item, and how many."""
    count = next((int(p[1:]) for p in instruction.parts if p in ("v2", "v4", "v8")), 1)
    return int(instruction.parts[-1][1:]) // 8, count


def _space(instruction: Instruction) -> str:
    for space in ("shared", "global", "param"):
        if space in instruction.parts:
            return space
    raise NotEmulated(f"PTX: memory of {instruction.text}")


def _load(decoder: Decoder, instruction: Instruction) -> Step:
    item, count = _width(instruction)
    size, space = item * count, _space(instruction)
    writes = [decoder.sink(o) for o in items(instruction.operands[0])]
    if space == "param":
        value = decoder.parameter(instruction.operands[1])
        bits = np.asarray(value).view(BITS[item])[()]

        def constant(m: Machine, mask: Mask) -> None:
            writes[0](m, bits, mask)

        return constant
    address = decoder.address(instruction.operands[1], "u32" if space == "shared" else "u64")

    def step(m: Machine, mask: Mask) -> None:
        threads = threads_of(m, mask)
        where, program = address(m)[threads], m.program[threads]
        if space == "shared":
            place = m.shared.place(where, program, size)
            values = m.shared.load(place, size, item, program, m.warp[threads])
        else:
            values = m.memory.load(where, size, item, m.number[threads])
        for k, write in enumerate(writes):
            if mask is None:
                write(m, values[:, k].copy(), None)
            else:
                every = np.full(m.size, poison(values), values.dtype)
                every[threads] = values[:, k]
                write(m, every, mask)

    return step


def _store(decoder: Decoder, instruction: Instruction) -> Step:
    item, count = _width(instruction)
    size, space = item * count, _space(instruction)
    address = decoder.address(instruction.operands[0], "u32" if space == "shared" else "u64")
    reads = [decoder.source(o, f"b{8 * item}") for o in items(instruction.operands[1])]

    def step(m: Machine, mask: Mask) -> None:
        threads = threads_of(m, mask)
        where, program = address(m)[threads], m.program[threads]
        values = np.stack([m.over_threads(read(m))[threads] for read in reads], 1)
        if space == "shared":
            m.shared.store(m.shared.place(where, program, size), values, program, m.warp[threads])
        else:
            m.memory.store(where, values, m.number[threads])

    return step


def _copy(decoder: Decoder, instruction: Instruction) -> Step:
    """cp.async: 4 to 16 bytes from global to shared memory, and zeros beyond those asked for."""
    parts = instruction.parts
    if "bulk" in parts or parts[1] != "async":
        raise NotEmulated(f"PTX: {instruction.text}")
    if "commit_group" in parts:

        def commit(m: Machine, mask: Mask) -> None:
            m.shared.arriving.commit(np.unique(m.program[threads_of(m, mask)]))

        return commit
    if "wait_group" in parts or "wait_all" in parts:
        most = int(str(instruction.operands[0]), 0) if "wait_group" in parts else 0

        def wait(m: Machine, mask: Mask) -> None:
            m.shared.arriving.wait(np.unique(m.program[threads_of(m, mask)]), most)

        return wait
    target = decoder.address(instruction.operands[0], "u32")
    source = decoder.address(instruction.operands[1], "u64")
    size = int(str(instruction.operands[2]), 0)
    asked = decoder.source(instruction.operands[3], "u32") if len(instruction.operands) > 3 else None

    def step(m: Machine, mask: Mask) -> None:
        threads = threads_of(m, mask)
        program = m.program[threads]
        values = np.zeros((len(threads), size // 4), np.uint32)
        wanted = m.over_threads(np.uint32(size) if asked is None else asked(m))[threads]
        if not np.isin(wanted, (0, size)).all():
            raise NotEmulated("PTX: cp.async of a part of its bytes")
        some = np.nonzero(wanted)[0]
        if len(some):
            values[some] = m.memory.load(source(m)[threads][some], size, 4, m.number[threads][some])
        place = m.shared.place(target(m)[threads], program, size)
        m.shared.store(place, values, program, m.warp[threads])
        units = m.shared.units(place, size)
        for p in np.unique(program):
            m.shared.arriving.add(int(p), units[program == p])

    return step


def _matrix_rows(m: Machine, address: Array, mask: Mask, count: int) -> tuple[Array, Array]:
    """(warps that take part, their addresses of the rows of `count` 8 x 8 matrices (warps, count, 8))."""
    warps = np.arange(m.size // 32)
    if mask is not None:
        each = mask.reshape(-1, 32)
        if (each.any(1) != each.all(1)).any():
            raise Fault("a matrix transfer by some lanes of a warp")
        warps = warps[each.any(1)]
    return warps, address.reshape(-1, 32)[warps, : 8 * count].reshape(-1, count, 8)


_LANES = np.arange(32)


def _matrix_places(m: Machine, rows: Array, warps: Array, transposed: bool) -> Array:
    """Where the two 16-bit numbers of each lane are, in each matrix: (warps, matrices, 32, 2)."""
    program = warps // (m.threads // 32)
    place = m.shared.place(rows, program[:, None, None], 16)
    if transposed:  # lane l holds column l / 4
        row = np.stack([2 * (_LANES % 4), 2 * (_LANES % 4) + 1], 1)
        column = np.broadcast_to((_LANES // 4)[:, None], row.shape)
    else:
        row = np.broadcast_to((_LANES // 4)[:, None], (32, 2))
        column = np.stack([2 * (_LANES % 4), 2 * (_LANES % 4) + 1], 1)
    return place[:, :, row] + 2 * column


def _load_matrix(decoder: Decoder, instruction: Instruction) -> Step:
    registers, transposed = items(instruction.operands[0]), "trans" in instruction.parts
    _only_8x8(instruction)
    writes, address = [decoder.sink(o) for o in registers], decoder.address(instruction.operands[1], "u32")

    def step(m: Machine, mask: Mask) -> None:
        warps, rows = _matrix_rows(m, address(m), mask, len(registers))
        place = _matrix_places(m, rows, warps, transposed)
        program, warp = np.divmod(warps, m.threads // 32)
        m.shared.note_read(place // 2, (m.shared.epoch[program] * 64 + warp)[:, None, None, None])
        halves = m.shared.views[2][place // 2].astype(np.uint32)
        words = halves[..., 0] | halves[..., 1] << np.uint32(16)  # (warps, matrices, 32)
        for k, write in enumerate(writes):
            every = np.full((m.size // 32, 32), poison(words), np.uint32)
            every[warps] = words[:, k]
            write(m, every.reshape(-1), mask)

    return step


def _store_matrix(decoder: Decoder, instruction: Instruction) -> Step:
    registers, transposed = items(instruction.operands[1]), "trans" in instruction.parts
    _only_8x8(instruction)
    reads, address = [decoder.source(o, "b32") for o in registers], decoder.address(instruction.operands[0], "u32")

    def step(m: Machine, mask: Mask) -> None:
        warps, rows = _matrix_rows(m, address(m), mask, len(registers))
        place = _matrix_places(m, rows, warps, transposed)
        words = np.stack([m.over_threads(read(m)).reshape(-1, 32)[warps] for read in reads], 1)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], -1).astype(np.uint16)
        program, warp = np.divmod(warps, m.threads // 32)
        shape = (len(warps), -1)
        flat = place.reshape(shape)
        m.shared.write(flat // 2, m.shared.views[2], flat // 2, halves.reshape(shape), program, warp)

    return step


def _only_8x8(instruction: Instruction) -> None:
    if "m8n8" not in instruction.parts or instruction.parts[-1] != "b16":
        raise NotEmulated(f"PTX: {instruction.text}")


def _barrier(decoder: Decoder, instruction: Instruction) -> Step:
    if instruction.parts[1] == "warp":
        return _nothing  # the lanes of a warp step together here
    if instruction.operands != ("0",):
        raise NotEmulated(f"PTX: a barrier of some threads, {instruction.text}")
    return lambda m, mask: m.barrier(mask)


def _fence(decoder: Decoder, instruction: Instruction) -> Step:
    if instruction.parts[1:3] != ("proxy", "async"):
        return _nothing

    def step(m: Machine, mask: Mask) -> None:
        threads = threads_of(m, mask)
        m.shared.fences[np.unique(m.program[threads] * m.shared.warps + m.warp[threads])] += 1

    return step


def _nothing(m: Machine, mask: Mask) -> None:
    pass


TABLE: dict[str, Callable[[Decoder, Instruction], Step]] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "bar": _barrier,
    "barrier": _barrier,
    "fence": _fence,
    "membar": lambda decoder, instruction: _nothing,
    "griddepcontrol": lambda decoder, instruction: _nothing,
}
