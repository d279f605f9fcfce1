"""Matrix products on the tensor cores: mma.sync of one warp, wgmma of four warps with operands in shared memory.

Products are summed in float64 and rounded once, so the order of a card's own sums is not reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.emulate.decode import Decoder, items
from tools.emulate.faults import Fault, NotEmulated
from tools.emulate.machine import Machine, Mask, Step
from tools.emulate.numbers import Array, as_tf32, from_half, unpack
from tools.emulate.ptx import Instruction
from tools.emulate.transfers import threads_of

_LANE = np.arange(32)
_ROW, _COLUMN = _LANE // 4, _LANE % 4  # of a lane in an 8 x 4 arrangement


@dataclass(frozen=True)
class Fragment:
    """Where the numbers of each lane's registers are in a matrix: index arrays (32, registers * per register)."""

    rows: Array
    columns: Array


def _fragment(places: list[tuple[int, int]], per: int, step: int) -> Fragment:
    """Registers at (row, column) of lane 0; `per` numbers in a row each; lanes of a row `step` columns apart."""
    rows = np.stack([_ROW + row for row, _ in places for _ in range(per)], 1)
    columns = np.stack([_COLUMN * step + column + k for _, column in places for k in range(per)], 1)
    return Fragment(rows, columns)


_QUARTERS = [(0, 0), (8, 0), (0, 8), (8, 8)]
_PAIRS_BELOW = _fragment([(0, 0), (8, 0)], 2, 2)  # the result of m16n8
# By shape and type: A (m x k), B as (n x k), C (m x n).
FRAGMENTS = {
    ("m16n8k16", "half"): (_fragment(_QUARTERS, 2, 2), _fragment([(0, 0), (0, 8)], 2, 2), _PAIRS_BELOW),
    ("m16n8k8", "half"): (_fragment([(0, 0), (8, 0)], 2, 2), _fragment([(0, 0)], 2, 2), _PAIRS_BELOW),
    ("m16n8k8", "tf32"): (
        _fragment([(0, 0), (8, 0), (0, 4), (8, 4)], 1, 1),
        _fragment([(0, 0), (0, 4)], 1, 1),
        _PAIRS_BELOW,
    ),
    ("m16n8k4", "tf32"): (_fragment([(0, 0), (8, 0)], 1, 1), _fragment([(0, 0)], 1, 1), _PAIRS_BELOW),
    ("m8n8k4", "f64"): (_fragment([(0, 0)], 1, 1), _fragment([(0, 0)], 1, 1), _fragment([(0, 0)], 2, 2)),
    **{
        (f"m16n8k{k}", "f64"): (
            _fragment([(row, column) for column in range(0, k, 4) for row in (0, 8)], 1, 1),
            _fragment([(0, column) for column in range(0, k, 4)], 1, 1),
            _PAIRS_BELOW,
        )
        for k in (4, 8, 16)
    },
}


def _numbers(words: Array, kind: str) -> Array:
    """(..., registers) to (..., numbers), float64."""
    if kind in ("f16", "bf16"):
        return np.stack(unpack(words, kind), -1).reshape(*words.shape[:-1], -1).astype(np.float64)
    if kind == "tf32":
        return as_tf32(words).astype(np.float64)
    return words.view(np.float64 if kind == "f64" else np.float32).astype(np.float64)


def _mma(decoder: Decoder, instruction: Instruction) -> Step:
    """D = A B + C of one warp."""
    shape, kind, last = instruction.parts[3], instruction.parts[-2], instruction.parts[-1]
    group = "half" if kind in ("f16", "bf16") else kind
    if (shape, group) not in FRAGMENTS or instruction.parts[4:6] != ("row", "col") or last not in ("f32", "f64"):
        raise NotEmulated(f"PTX: {instruction.text}")
    of_a, of_b, of_c = FRAGMENTS[shape, group]
    rows, columns, depth = (int(n) for n in re.findall(r"\d+", shape))
    bits = "b64" if kind == "f64" else "b32"
    writes = [decoder.sink(o) for o in items(instruction.operands[0])]
    sources = [[decoder.source(o, bits) for o in items(operand)] for operand in instruction.operands[1:]]
    wide = np.float64 if last == "f64" else np.float32

    def step(m: Machine, mask: Mask) -> None:
        _whole(mask, 32)
        a, b, c = (
            np.stack([m.over_threads(read(m)) for read in each], 1).reshape(m.size // 32, 32, -1) for each in sources
        )
        left = np.empty((len(a), rows, depth))
        right = np.empty((len(a), columns, depth))
        left[:, of_a.rows, of_a.columns] = _numbers(a, kind)
        right[:, of_b.rows, of_b.columns] = _numbers(b, kind)
        product = left @ right.swapaxes(1, 2)
        result = (product[:, of_c.rows, of_c.columns] + _numbers(c, last)).astype(wide)
        result = result.reshape(m.size, -1)
        for k, write in enumerate(writes):
            write(m, result[:, k].copy(), mask)

    return step


def _whole(mask: Mask, size: int) -> None:
    if mask is not None:
        each = mask.reshape(-1, size)
        if (each.any(1) != each.all(1)).any():
            raise Fault(f"a matrix product by some of {size} threads")


# ---- wgmma ----------------------------------------------------------------------------------------------------------

_GROUP = 128  # threads
_THREAD = np.arange(_GROUP)
# Rows and first columns of a thread's numbers: 16 rows a warp, and a lane as in mma.sync.
_GROUP_ROW, _GROUP_COLUMN = 16 * (_THREAD // 32) + (_THREAD % 32) // 4, 2 * (_THREAD % 4)
_SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}  # bytes of a row, bits of the address that are mixed in


def descriptor_places(descriptor: Array, rows: int, depth: int, item: int, transposed: bool) -> Array:
    """The shared addresses of a matrix (rows, depth) that 64-bit descriptors tell of: (groups, rows, depth).

    Bits 0-13 are the start, 16-29 and 32-45 the leading and stride offsets, all in 16 bytes, 62-63 the swizzle, which
    adds bits 7-9 of an address to its bits 4-6. Without `transposed` a row's numbers stand side by side.
    """
    d = descriptor.astype(np.uint64)

    def field(low: int) -> Array:
        return (((d >> np.uint64(low)) & np.uint64(0x3FFF)) << np.uint64(4)).astype(np.int64)[:, None, None]

    start, leading, stride = field(0), field(16), field(32)
    modes = np.unique((d >> np.uint64(62)).astype(np.int64))
    if len(modes) > 1 or ((d >> np.uint64(49)) & np.uint64(7)).any():
        raise NotEmulated("PTX: descriptors of mixed swizzles, or with a base offset")
    span, mixed = _SWIZZLES[int(modes[0])]
    r, k = np.arange(rows)[:, None], np.arange(depth)
    if transposed:
        wide = span // item
        place = start + (r // wide) * leading + (k // 8) * stride + (k % 8) * span + (r % wide) * item
    else:
        across = k * item if mixed else (k * item // 16) * leading + k * item % 16
        place = start + (r // 8) * stride + (r % 8) * span + across
    return place ^ (((place >> 7) & mixed) << 4)


def _wgmma(decoder: Decoder, instruction: Instruction) -> Step:
    name = instruction.parts[1]
    if name == "fence":
        return lambda m, mask: None  # orders registers, which are in order here
    if name == "commit_group":
        return lambda m, mask: m.shared.in_use.commit(_groups(m, mask))
    if name == "wait_group":
        most = int(str(instruction.operands[0]), 0)
        return lambda m, mask: m.shared.in_use.wait(_groups(m, mask), most)
    return _product(decoder, instruction)


def _groups(m: Machine, mask: Mask) -> Array:
    _whole(mask, _GROUP)
    return np.unique(threads_of(m, mask) // _GROUP)


def _product(decoder: Decoder, instruction: Instruction) -> Step:
    """wgmma.mma_async: D (64 x n) = A B + D, A in registers or, like B, in shared memory; D is ready at once here."""
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", instruction.parts[4])
    kind = instruction.parts[-1]
    if shape is None or instruction.parts[5] != "f32" or kind not in ("f16", "bf16", "tf32"):
        raise NotEmulated(f"PTX: {instruction.text}")
    columns, depth = int(shape[1]), int(shape[2])
    item = 4 if kind == "tf32" else 2
    registers = items(instruction.operands[0])
    writes, reads = [decoder.sink(o) for o in registers], [decoder.source(o, "f32") for o in registers]
    in_registers = not isinstance(instruction.operands[1], str)
    kinds = "b32" if in_registers else "b64"
    a_sources = [decoder.source(o, kinds) for o in items(instruction.operands[1])]
    b_source = decoder.source(instruction.operands[2], "b64")
    adds = decoder.source(instruction.operands[3], "pred")
    signs, turned = instruction.operands[4:6], [o == "1" for o in instruction.operands[6:]]
    if signs != ("1", "1"):
        raise NotEmulated(f"PTX: {instruction.text}")
    a_turned, b_turned = [*[False] * in_registers, *turned, False, False][:2]
    a_rows = np.stack([_GROUP_ROW + 8 * (k % 2) for k in range(4)], 1)
    a_columns = np.stack([_GROUP_COLUMN * 2 // item + depth // 2 * (k // 2) for k in range(4)], 1)
    j = np.arange(columns // 2)
    c_rows = _GROUP_ROW[:, None] + 8 * (j % 4 // 2)
    c_columns = _GROUP_COLUMN[:, None] + 8 * (j // 4) + j % 2

    def in_shared(m: Machine, descriptor: Array, groups: Array, rows: int, transposed: bool) -> Array:
        each = descriptor.reshape(-1, _GROUP)[groups]
        if (each != each[:, :1]).any():
            raise Fault("threads of one matrix product give different descriptors")
        offset = descriptor_places(each[:, 0], rows, depth, item, transposed)
        m.shared.check_inside(offset, item)
        program = groups * _GROUP // m.threads
        place = offset + (program * m.shared.stride)[:, None, None]
        m.shared.note_matrix_read(place, program, groups)
        bits = m.shared.views[item][place // item]
        return (from_half(bits, kind) if item == 2 else as_tf32(bits)).astype(np.float64)

    def step(m: Machine, mask: Mask) -> None:
        groups = _groups(m, mask)
        if in_registers:
            words = np.stack([m.over_threads(read(m)) for read in a_sources], 1)
            words = words.reshape(-1, _GROUP, 4)[groups]
            a = np.empty((len(groups), 64, depth))
            if item == 2:
                low, high = unpack(words, kind)
                a[:, a_rows, a_columns], a[:, a_rows, a_columns + 1] = low, high
            else:
                a[:, a_rows, a_columns] = as_tf32(words)
        else:
            a = in_shared(m, m.over_threads(a_sources[0](m)), groups, 64, a_turned)
        b = in_shared(m, m.over_threads(b_source(m)), groups, columns, b_turned)
        product = (a @ b.swapaxes(1, 2))[:, c_rows, c_columns]  # (groups, 128, columns / 2)
        sums = np.ascontiguousarray(product.reshape(len(groups) * _GROUP, -1).T)  # (columns / 2, threads)
        threads = threads_of(m, mask)
        add = m.over_threads(adds(m))[threads]
        if add.any():
            before = np.stack([m.over_threads(read(m)) for read in reads])
            sums += np.where(add, before if mask is None else before[:, threads], np.float32(0))
        results = sums.astype(np.float32)
        if mask is not None:
            every = np.zeros((len(results), m.size), np.float32)
            every[:, threads] = results
            results = every
        for write, value in zip(writes, results, strict=True):
            write(m, value, mask)

    return step


TABLE: dict[str, Callable[[Decoder, Instruction], Step]] = {"mma": _mma, "wgmma": _wgmma}
