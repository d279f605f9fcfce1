"""NVIDIA machine code (sm_80, sm_90) as `cuobjdump -sass` prints it: instructions, their control codes, loops."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x([0-9a-f]{16}) \*/")
_REST = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
SPIN = 32  # instructions: a shorter loop waits for something
# What executes it, by the first word of its name.
_UNITS = {
    **dict.fromkeys(("LDG",), "load"),
    **dict.fromkeys(("STG",), "store"),
    **dict.fromkeys(("LDS", "LDSM"), "shared load"),
    **dict.fromkeys(("STS", "STSM"), "shared store"),
    **dict.fromkeys(("HGMMA", "HMMA"), "product"),
    **dict.fromkeys(("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2"), "fma"),
    **dict.fromkeys(("IMAD",), "heavy fma"),
    **dict.fromkeys(("I2F", "F2I", "MUFU"), "special"),
    **dict.fromkeys(("BAR",), "barrier"),
    **dict.fromkeys(("WARPGROUP", "DEPBAR", "WARPSYNC", "FENCE", "MEMBAR"), "wait"),
    **dict.fromkeys(
        ("LOP3", "SHF", "PRMT", "SEL", "PLOP3", "MOV", "IADD3", "LEA", "VIADD", "ISETP", "IADD", "VIADDMNMX", "VIMNMX")
        + ("I2FP", "F2FP", "FSEL", "FSETP", "FMNMX"),
        "alu",
    ),
}


@dataclass(frozen=True)
class Sass:
    address: int
    name: str
    text: str
    stall: int  # cycles until this warp's next instruction, at least
    sets: int  # the scoreboard that the result sets, 7 for none
    frees: int  # the scoreboard that reading the operands sets, 7 for none
    waits: int  # a bit for each scoreboard that must be clear

    @property
    def unit(self) -> str:
        return _UNITS.get(self.name.split(".")[0], "other")

    @property
    def is_wait_for_products(self) -> bool:
        return self.unit == "wait" and "DEPBAR" in self.name


def parse(text: str) -> list[Sass]:
    found, lines = [], text.splitlines()
    for line, following in itertools.pairwise(lines):
        first, second = _LINE.match(line), _REST.match(following)
        if first and second:
            control = int(second[1], 16)
            body = re.sub(r"^@!?U?P\w+\s+", "", first[2].strip())
            found.append(
                Sass(
                    int(first[1], 16),
                    body.split()[0],
                    first[2].strip(),
                    stall=control >> 41 & 15,
                    sets=control >> 46 & 7,
                    frees=control >> 49 & 7,
                    waits=control >> 52 & 63,
                )
            )
    return found


def main_loop(code: list[Sass]) -> list[Sass]:
    """The longest loop that has no other in it; empty where there is none."""
    at = {instruction.address: k for k, instruction in enumerate(code)}
    loops = []
    for k, instruction in enumerate(code):
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction.text)
        if jump and int(jump[1], 16) < instruction.address and int(jump[1], 16) in at:
            first = at[int(jump[1], 16)]
            if k + 1 - first > SPIN:
                loops.append((first, k + 1))
    inner = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
    first, end = max(inner, key=lambda a: a[1] - a[0], default=(0, 0))
    return code[first:end]
