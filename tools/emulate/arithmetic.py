"""Arithmetic, logic and comparisons: one function of numpy arrays for each name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.emulate.decode import Decoder
from tools.emulate.faults import NotEmulated
from tools.emulate.machine import Machine, Mask, Step
from tools.emulate.numbers import dtype_of, pack, to_half, unpack
from tools.emulate.ptx import Instruction


def _divide(a, b):
    """Toward zero; any value where b is 0."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _fused(a, b, c):
    """Rounded once: float32 products are exact in float64; float64 rounds twice here."""
    if np.result_type(a) == np.float32:
        return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
    return a * b + c


def _high(a, b):
    """The upper half of products of 16 or 32 bits."""
    narrow = np.result_type(a, b)
    wide = np.dtype(f"{narrow.kind}8")
    return (np.asarray(a).astype(wide) * np.asarray(b).astype(wide) >> wide.type(8 * narrow.itemsize)).astype(narrow)


# Of arguments that have the instruction's own type.
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "fma": _fused,
    "neg": np.negative,
    "abs": np.abs,
    "min": lambda a, b: np.fmin(a, b),
    "max": lambda a, b: np.fmax(a, b),
    "div": lambda a, b: a / b if a.dtype.kind == "f" else _divide(a, b),
    "rem": lambda a, b: a - _divide(a, b) * b,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "copysign": lambda a, b: np.copysign(b, a),
}
COMPARE: dict[str, Callable[..., Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "equ": lambda a, b: ~(a != b) | np.isnan(a) | np.isnan(b),
    "neu": np.not_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}


def _arithmetic(decoder: Decoder, instruction: Instruction) -> Step:
    name, *modifiers = instruction.parts
    kind = modifiers[-1]
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        return _of_halves(decoder, instruction, kind)
    function = ARITHMETIC[name]
    if "hi" in modifiers:
        if name != "mul" or kind not in ("u16", "s16", "u32", "s32"):
            raise NotEmulated(f"PTX: {instruction.text}")
        function = _high
    write = decoder.sink(instruction.operands[0])
    if "wide" in modifiers:  # products of 32 bits in 64, and a sum in 64
        wide = kind[0] + str(2 * int(kind[1:]))
        kinds = [kind, kind, wide][: len(instruction.operands) - 1]
        dtype = dtype_of(wide)
        narrow = [decoder.source(o, k) for o, k in zip(instruction.operands[1:], kinds, strict=True)]

        def widened(m: Machine, mask: Mask) -> None:
            values: list[Any] = [np.asarray(read(m)).astype(dtype) for read in narrow]
            result = values[0] * values[1]
            write(m, result + values[2] if len(values) > 2 else result, mask)

        return widened
    sources = [decoder.source(o, kind) for o in instruction.operands[1:]]
    flush = "ftz" in modifiers
    saturate = "sat" in modifiers

    def step(m: Machine, mask: Mask) -> None:
        result = np.asarray(function(*[read(m) for read in sources]))
        if flush:
            result = np.where(np.abs(result) < np.finfo(np.float32).tiny, result * np.float32(0), result)
        if saturate:
            result = np.clip(result, 0, 1)
        write(m, result, mask)

    return step


def _of_halves(decoder: Decoder, instruction: Instruction, kind: str) -> Step:
    """On one or two numbers of 16 bits, each result rounded once from float32 (a fused product from float64)."""
    name, half = instruction.parts[0], kind.removesuffix("x2")
    function, write = ARITHMETIC[name], decoder.sink(instruction.operands[0])
    sources = [decoder.source(o, "b32" if kind.endswith("x2") else "b16") for o in instruction.operands[1:]]

    def step(m: Machine, mask: Mask) -> None:
        parts = [unpack(np.asarray(read(m)).astype(np.uint32), half) for read in sources]
        low, high = (np.asarray(function(*each), np.float32) for each in zip(*parts, strict=True))
        write(m, pack(low, high, half) if kind.endswith("x2") else to_half(low, half), mask)

    return step


def _compare(decoder: Decoder, instruction: Instruction) -> Step:
    _, relation, *middle, kind = instruction.parts
    compare = COMPARE[relation]
    if relation in ("lo", "ls", "hi", "hs") or (middle and middle[0] not in ("and", "or", "xor", "ftz")):
        raise NotEmulated(f"PTX: {instruction.text}")
    combine = next((ARITHMETIC[word] for word in middle if word != "ftz"), None)
    result, *operands = instruction.operands
    write = decoder.sink(result)
    a, b = (decoder.source(o, kind) for o in operands[:2])
    other = decoder.source(operands[2], "pred") if combine else None

    def step(m: Machine, mask: Mask) -> None:
        found = np.asarray(compare(a(m), b(m)))
        if combine is not None and other is not None:
            found = combine(found, other(m))
        write(m, found, mask)

    return step


def _shift(decoder: Decoder, instruction: Instruction) -> Step:
    left, kind = instruction.parts[0] == "shl", instruction.parts[-1]
    dtype, width = dtype_of(kind), int(kind[1:])
    write, value = decoder.sink(instruction.operands[0]), decoder.source(instruction.operands[1], kind)
    amount = decoder.source(instruction.operands[2], "u32")

    def step(m: Machine, mask: Mask) -> None:
        by, v = np.asarray(amount(m)), np.asarray(value(m))
        clamped = np.minimum(by, width - 1).astype(dtype)
        if left:
            result = np.where(by < width, np.left_shift(v, clamped), dtype(0))
        else:
            shifted = np.right_shift(v, clamped)
            result = shifted if v.dtype.kind == "i" else np.where(by < width, shifted, dtype(0))
        write(m, result, mask)

    return step


def _funnel(decoder: Decoder, instruction: Instruction) -> Step:
    """shf.l / shf.r: 32 bits out of two registers."""
    _, direction, mode, _ = instruction.parts
    write = decoder.sink(instruction.operands[0])
    low, high, amount = (decoder.source(o, "u32") for o in instruction.operands[1:])

    def step(m: Machine, mask: Mask) -> None:
        by = np.asarray(amount(m))
        by = (by & np.uint32(31) if mode == "wrap" else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = np.asarray(low(m)).astype(np.uint64) | np.asarray(high(m)).astype(np.uint64) << np.uint64(32)
        moved = both >> by if direction == "r" else (both << by) >> np.uint64(32)
        write(m, (moved & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return step


def _extract(decoder: Decoder, instruction: Instruction) -> Step:
    """bfe: a field of bits, extended by zeros or its sign."""
    kind = instruction.parts[-1]
    write, value = decoder.sink(instruction.operands[0]), decoder.source(instruction.operands[1], "u" + kind[1:])
    start, length = (int(str(o), 0) for o in instruction.operands[2:])
    dtype = dtype_of(kind)

    def step(m: Machine, mask: Mask) -> None:
        v = np.asarray(value(m)).astype(np.uint64)
        field = ((v >> np.uint64(start)) & np.uint64((1 << length) - 1)).astype(np.int64)
        if kind[0] == "s":
            field = (field ^ (1 << (length - 1))) - (1 << (length - 1))
        write(m, field.astype(dtype), mask)

    return step


def _logic3(decoder: Decoder, instruction: Instruction) -> Step:
    """lop3: any function of three bits, by its table."""
    write = decoder.sink(instruction.operands[0])
    sources = [decoder.source(o, "b32") for o in instruction.operands[1:4]]
    table = int(str(instruction.operands[4]), 0)

    def step(m: Machine, mask: Mask) -> None:
        a, b, c = (np.asarray(read(m)) for read in sources)
        result = np.zeros(m.size, np.uint32)
        for k in range(8):
            if table >> k & 1:
                result = result | (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        write(m, result, mask)

    return step


def _select(decoder: Decoder, instruction: Instruction) -> Step:
    kind = instruction.parts[-1]
    write = decoder.sink(instruction.operands[0])
    a, b = (decoder.source(o, kind) for o in instruction.operands[1:3])
    which = decoder.source(instruction.operands[3], "pred")

    def step(m: Machine, mask: Mask) -> None:
        write(m, np.where(which(m), a(m), b(m)), mask)

    return step


TABLE: dict[str, Callable[[Decoder, Instruction], Step]] = {
    **dict.fromkeys(ARITHMETIC, _arithmetic),
    "setp": _compare,
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfe": _extract,
    "lop3": _logic3,
    "selp": _select,
}
