"""Moves, conversions, permutations of bytes and exchanges between the lanes of a warp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.emulate.chips import WARP
from tools.emulate.decode import Decoder
from tools.emulate.faults import NotEmulated
from tools.emulate.machine import Machine, Mask, Step
from tools.emulate.numbers import Array, dtype_of, from_half, pack, to_half
from tools.emulate.ptx import Instruction, Vector

_HALVES = ("f16", "bf16")


def _move(decoder: Decoder, instruction: Instruction) -> Step:
    kind = instruction.parts[-1]
    target, value = instruction.operands
    if isinstance(value, Vector):
        return _join(decoder, instruction, value)
    if isinstance(target, Vector):
        return _split(decoder, instruction, target)
    read, write = decoder.source(value, kind), decoder.sink(target)

    def step(m: Machine, mask: Mask) -> None:
        write(m, np.asarray(read(m)), mask)

    return step


def _join(decoder: Decoder, instruction: Instruction, value: Vector) -> Step:
    kind, width = instruction.parts[-1], int(instruction.parts[-1][1:]) // len(value.items)
    write, dtype = decoder.sink(instruction.operands[0]), dtype_of(kind)
    parts = [decoder.source(item, f"b{width}") for item in value.items]

    def step(m: Machine, mask: Mask) -> None:
        result: Array = np.zeros(m.size, dtype)
        for k, part in enumerate(parts):
            result |= np.asarray(part(m)).astype(dtype) << dtype(width * k)
        write(m, result, mask)

    return step


def _split(decoder: Decoder, instruction: Instruction, target: Vector) -> Step:
    kind, width = instruction.parts[-1], int(instruction.parts[-1][1:]) // len(target.items)
    read, dtype, narrow = decoder.source(instruction.operands[1], kind), dtype_of(kind), dtype_of(f"b{width}")
    writes = [decoder.sink(item) for item in target.items]

    def step(m: Machine, mask: Mask) -> None:
        value = m.over_threads(read(m))
        for k, write in enumerate(writes):
            write(m, (value >> dtype(width * k)).astype(narrow), mask)

    return step


def _convert(decoder: Decoder, instruction: Instruction) -> Step:
    *modifiers, to, kind = instruction.parts[1:]
    write = decoder.sink(instruction.operands[0])
    if to in ("f16x2", "bf16x2"):  # the first operand goes into the high half
        high, low = (decoder.source(o, "f32") for o in instruction.operands[1:3])
        relu = "relu" in modifiers

        def packed(m: Machine, mask: Mask) -> None:
            values = [m.over_threads(read(m)) for read in (low, high)]
            if relu:
                values = [np.maximum(v, np.float32(0)) for v in values]
            write(m, pack(values[0], values[1], to.removesuffix("x2")), mask)

        return packed
    read = decoder.source(instruction.operands[1], "b16" if kind in _HALVES else kind)
    down = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
    integer = next((down[word] for word in modifiers if word in down), None)

    def step(m: Machine, mask: Mask) -> None:
        value = m.over_threads(read(m))
        if kind in _HALVES:
            value = from_half(value, kind)
        if integer is not None:
            value = integer(value)
        if to == "tf32":
            bits = value.view(np.uint32) + np.uint32(0x1000)  # half of the last place that is kept
            write(m, bits & np.uint32(0xFFFFE000), mask)
        elif to in _HALVES:
            write(m, to_half(value.astype(np.float32), to), mask)
        else:
            write(m, value.astype(dtype_of(to)), mask)

    return step


def _permute(decoder: Decoder, instruction: Instruction) -> Step:
    """prmt: four bytes of eight, or their signs."""
    if len(instruction.parts) != 2:
        raise NotEmulated(f"PTX: {instruction.text}")
    write = decoder.sink(instruction.operands[0])
    low, high, selector = (decoder.source(o, "b32") for o in instruction.operands[1:])

    def step(m: Machine, mask: Mask) -> None:
        both = np.asarray(low(m)).astype(np.uint64) | np.asarray(high(m)).astype(np.uint64) << np.uint64(32)
        choice = np.asarray(selector(m)).astype(np.uint64)
        result = np.zeros(m.size, np.uint32)
        for k in range(4):
            nibble = (choice >> np.uint64(4 * k)) & np.uint64(15)
            byte = (both >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(nibble & np.uint64(8), sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * k)
        write(m, result, mask)

    return step


def _shuffle(decoder: Decoder, instruction: Instruction) -> Step:
    """shfl.sync over whole warps."""
    mode = instruction.parts[2]
    target, value, other, clamp = (str(o) for o in instruction.operands[:4])
    if "|" in target or clamp not in {"bfly": "31", "idx": "31", "down": "31", "up": "0"}[mode]:
        raise NotEmulated(f"PTX: {instruction.text}")
    write, read, index = decoder.sink(target), decoder.source(value, "b32"), decoder.source(other, "u32")
    lanes = np.arange(WARP)

    def step(m: Machine, mask: Mask) -> None:
        values = m.over_threads(read(m)).reshape(-1, WARP)
        by = (m.over_threads(index(m)) & np.uint32(31)).reshape(-1, WARP).astype(np.int64)
        source = {"bfly": lanes ^ by, "idx": by, "down": lanes + by, "up": lanes - by}[mode]
        source = np.where((source < 0) | (source >= WARP), lanes, source)
        write(m, np.take_along_axis(values, source, 1).reshape(-1), mask)

    return step


TABLE: dict[str, Callable[[Decoder, Instruction], Step]] = {
    "mov": _move,
    "cvt": _convert,
    "prmt": _permute,
    "shfl": _shuffle,
}
