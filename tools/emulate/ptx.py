"""PTX text into instructions: the dialect that Triton's compiler writes, one kernel a module."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tools.emulate.faults import NotEmulated


@dataclass(frozen=True)
class Address:
    base: str  # a register or a symbol
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[str, ...]


Operand = str | Address | Vector


@dataclass(frozen=True)
class Instruction:
    text: str
    parts: tuple[str, ...]  # of the name: ("ld", "global", "v4", "b32")
    operands: tuple[Operand, ...]
    guard: str | None = None  # a predicate register
    unless: bool = False  # runs where the guard is false


@dataclass
class Program:
    """One kernel: its parameters in order, its instructions, and where its labels stand among them."""

    name: str
    parameters: list[tuple[str, str]]  # (type, name)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)", re.S)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)(?:\s+\.ptr(?:\s+\.\w+)*?(?:\s+\.align\s+\d+)?)?\s+(\w+)")
_LABEL = re.compile(r"(\$\w+):")
_GUARD = re.compile(r"@(!?)(%\w+)\s+(.*)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def parse(text: str) -> Program:
    """The kernel of a PTX module.

    Raises:
        NotEmulated: the module has no kernel, or more than one.
    """
    entries = list(_ENTRY.finditer(text))
    if len(entries) != 1:
        raise NotEmulated(f"PTX: expected one kernel a module, found {len(entries)}")
    name, parameters = entries[0].groups()
    program = Program(name, _PARAMETER.findall(parameters))
    body = text[entries[0].end() :]
    for line in body[body.index("{") + 1 :].splitlines():
        line = line.split("//")[0].strip()
        if line.startswith(".section"):  # debugging data, to the end
            break
        label = _LABEL.match(line)
        if label:
            program.labels[label[1]] = len(program.code)
        # Inline assembly stands in braces of its own; directives and closing braces are no instructions.
        elif line and line[0] not in ".}(" and line != "{":
            program.code += [_instruction(part) for part in line.split(";") if part.strip()]
    return program


def _instruction(text: str) -> Instruction:
    text = " ".join(text.split())
    guard, rest = None, text
    guarded = _GUARD.match(text)
    if guarded:
        guard, rest = guarded[2], guarded[3]
    name, _, operands = rest.partition(" ")
    return Instruction(
        text if len(text) < 120 else text[:117] + "...",
        tuple(re.split(r"\.|::", name)),
        tuple(_operand(o) for o in _OPERAND.findall(operands)),
        guard,
        bool(guarded and guarded[1]),
    )


def _operand(text: str) -> Operand:
    if text[0] == "{":
        return Vector(tuple(item.strip() for item in text[1:-1].split(",")))
    if text[0] == "[":
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise NotEmulated(f"PTX: address {text}")
        return Address(found[1], int(found[2] or "0", 0))
    return text
