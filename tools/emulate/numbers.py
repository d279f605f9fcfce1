"""The number formats of PTX as numpy arrays: registers hold bits, unsigned, and operations view them as they need."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
BITS: dict[int, type[Any]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOATS: dict[int, type[Any]] = {16: np.float16, 32: np.float32, 64: np.float64}
_SIGNED: dict[int, type[Any]] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_UNSIGNED: dict[int, type[Any]] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def dtype_of(kind: str) -> type[Any]:
    """The numpy type of a PTX type such as ``s32``, ``b64``, ``f32`` or ``pred``."""
    if kind == "pred":
        return np.bool_
    table = {"f": _FLOATS, "s": _SIGNED, "u": _UNSIGNED, "b": _UNSIGNED}[kind[0]]
    return table[int(kind[1:])]


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(x: Array) -> Array:
    """The bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_half(bits: Array, kind: str) -> Array:
    """float32 of 16-bit patterns, kind ``f16`` or ``bf16``."""
    if kind == "bf16":
        return from_bfloat16(bits)
    return np.ascontiguousarray(bits, np.uint16).view(np.float16).astype(np.float32)


def to_half(x: Array, kind: str) -> Array:
    if kind == "bf16":
        return to_bfloat16(x)
    return x.astype(np.float16).view(np.uint16)


def unpack(words: Array, kind: str) -> tuple[Array, Array]:
    """The low and the high half of 32-bit words, as float32."""
    return from_half((words & np.uint32(0xFFFF)).astype(np.uint16), kind), from_half(
        (words >> np.uint32(16)).astype(np.uint16), kind
    )


def pack(low: Array, high: Array, kind: str) -> Array:
    return to_half(low, kind).astype(np.uint32) | to_half(high, kind).astype(np.uint32) << np.uint32(16)


def as_tf32(bits: Array) -> Array:
    """float32 with the 13 low bits of the mantissa cut off, as the tensor cores read it."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
