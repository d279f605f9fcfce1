"""Instructions as functions of the machine: operands are looked up once, here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.emulate.faults import NotEmulated
from tools.emulate.machine import RETURN, Compiled, Machine, Mask, Step, poison
from tools.emulate.numbers import BITS, dtype_of
from tools.emulate.ptx import Address, Instruction, Operand, Program, Vector
from tools.emulate.shared import SHARED_BASE

Source = Callable[[Machine], Any]  # an array over the threads, or a number
Sink = Callable[[Machine, Any, Mask], None]
_WIDTHS = {"%p": "pred", "%rs": "b16", "%h": "b16", "%rd": "b64", "%fd": "b64", "%r": "b32", "%f": "b32", "%hh": "b32"}


class Decoder:
    """Turns the operands of one program into sources and sinks."""

    def __init__(self, program: Program, parameters: dict[str, Any]) -> None:
        self.program, self.parameters = program, parameters
        self._registers: dict[str, int] = {}

    def register(self, name: str) -> int:
        return self._registers.setdefault(name, len(self._registers))

    @property
    def register_count(self) -> int:
        return len(self._registers)

    @staticmethod
    def _bits(name: str) -> type[Any]:
        """What a register holds: unsigned bits, or bool."""
        return dtype_of(_WIDTHS[name.rstrip("0123456789")])

    def source(self, operand: Operand, kind: str) -> Source:
        """The operand as a value of the PTX type `kind`."""
        if not isinstance(operand, str):
            raise NotEmulated(f"PTX: operand {operand}")
        dtype = dtype_of(kind)
        if not operand.startswith("%"):
            value = self._constant(operand, dtype)
            return lambda m: value
        if operand.rstrip("0123456789") not in _WIDTHS:
            return lambda m: _special(m, operand).astype(dtype)
        index, bits = self.register(operand), self._bits(operand)
        default = poison(np.zeros(1, bits))
        same = np.dtype(bits).itemsize == np.dtype(dtype).itemsize

        def read(m: Machine):
            value = m.registers[index]
            if value is None:
                value = m.registers[index] = np.full(m.size, default, bits)
            return value.view(dtype) if same else value.astype(dtype)

        return read

    def _constant(self, text: str, dtype: type[Any]):
        if text[:2] in ("0f", "0F"):
            return np.array(struct.unpack(">f", bytes.fromhex(text[2:]))[0], np.float32).view(np.uint32).view(dtype)[()]
        if text[:2] in ("0d", "0D"):
            return np.array(struct.unpack(">d", bytes.fromhex(text[2:]))[0], np.float64).view(np.uint64).view(dtype)[()]
        if text == "global_smem":
            return dtype(SHARED_BASE)
        number = int(text.removesuffix("U"), 0)
        if dtype is np.bool_:
            return np.bool_(number != 0)
        width = 8 * np.dtype(dtype).itemsize
        return BITS[width // 8](number & ((1 << width) - 1)).view(dtype)

    def sink(self, operand: Operand) -> Sink:
        if operand == "_":
            return lambda m, value, mask: None
        if not isinstance(operand, str) or not operand.startswith("%"):
            raise NotEmulated(f"PTX: result {operand}")
        index, bits = self.register(operand), self._bits(operand)
        size = np.dtype(bits).itemsize

        def write(m: Machine, value, mask: Mask) -> None:
            if value.dtype != bits:
                same = bits is not np.bool_ and value.dtype.itemsize == size
                value = value.view(bits) if same else value.astype(bits)
            m.put(index, value, mask)

        return write

    def address(self, operand: Operand, kind: str) -> Source:
        if not isinstance(operand, Address):
            raise NotEmulated(f"PTX: expected an address, found {operand}")
        base = self.source(operand.base, kind)
        offset = dtype_of(kind)(operand.offset & ((1 << 8 * np.dtype(dtype_of(kind)).itemsize) - 1))

        def read(m: Machine):
            return m.over_threads(base(m) + offset)

        return read

    def parameter(self, operand: Operand) -> Any:
        if not isinstance(operand, Address):
            raise NotEmulated(f"PTX: expected a parameter, found {operand}")
        return self.parameters[operand.base]


def _special(m: Machine, name: str):
    if name not in m.special:
        raise NotEmulated(f"PTX: special register {name}")
    return m.special[name]


def items(operand: Operand) -> tuple[str, ...]:
    """The registers of a vector operand, or the one."""
    if isinstance(operand, Vector):
        return operand.items
    if not isinstance(operand, str):
        raise NotEmulated(f"PTX: operand {operand}")
    return (operand,)


def compile_program(program: Program, parameters: dict[str, Any]) -> Compiled:
    """`program` with these values of its parameters.

    Raises:
        NotEmulated: it has an instruction that no table here lists.
    """
    from tools.emulate import arithmetic, conversions, matrix, transfers

    tables = {**arithmetic.TABLE, **conversions.TABLE, **transfers.TABLE, **matrix.TABLE}
    decoder = Decoder(program, parameters)
    steps: list[Step | str] = []
    guards = []
    for instruction in program.code:
        guards.append(-1 if instruction.guard is None else decoder.register(instruction.guard))
        steps.append(_step(decoder, instruction, tables))
    return Compiled(program, steps, guards, decoder.register_count)


def _step(decoder: Decoder, instruction: Instruction, tables: dict[str, Callable]) -> Step | str:
    name = instruction.parts[0]
    if name == "bra":
        target = instruction.operands[0]
        if not isinstance(target, str):
            raise NotEmulated(f"PTX: branch {instruction.text}")
        return target
    if name in ("ret", "exit"):
        return RETURN
    if name not in tables:
        raise NotEmulated(f"PTX: no such instruction is emulated: {instruction.text}")
    return tables[name](decoder, instruction)
