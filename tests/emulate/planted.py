"""A process that plants errors into compiled kernels, and says on its last line what the emulator noticed of each."""

import contextlib
import io
import json
import re
import sys

from tools.emulate.chips import CHIPS
from tools.emulate.driver import StandIn
from tools.emulate.launch import Emulator

emulator = Emulator()
StandIn(CHIPS[sys.argv[1]], emulator)

from tools.emulate.cases import BF16, Case  # noqa: E402  after the driver is in place

CASE = Case("affine", (3, 66), BF16, 64, 64, 3, batch=1)


def without(pattern: str, which: int):
    """Drops what the pattern finds for the n-th time."""

    def rewrite(ptx: str) -> str:
        found = list(re.finditer(pattern, ptx))
        if which >= len(found):
            return ptx
        place = found[which]
        return ptx[: place.start()] + ptx[place.end() :]

    return rewrite


def replacing(pattern: str, new: str, count: int = 0):
    return lambda ptx: re.sub(pattern, new, ptx, count=count)


# The swizzle's two bits in the constant part of a descriptor: 128 bytes becomes 64.
def other_swizzle(ptx: str) -> str:
    return re.sub(r"(or\.b64\s+%rd\d+, %rd\d+, )(461168\d{13})", lambda m: m[1] + str(int(m[2]) ^ (3 << 62)), ptx)


GUARD = r"@%p\d+ "
PLANTED = {
    "nothing": lambda ptx: ptx,
    **{f"barrier {k} left out": without(r"\tbar\.sync\s+0;", k) for k in range(12)},
    "a load without its guard": replacing(GUARD + r"(ld\.global\.v4)", r"\1"),
    "a store without its guard": replacing(GUARD + r"(st\.global)", r"\1"),
    "a store left out": without(GUARD + r"st\.global[^;]*;", 0),
    "a load 4 bytes off": replacing(r"(ld\.global\.v4[^;]*)\+ 0 \]", r"\1+ 4 ]"),
    "fences left out": replacing(r"fence\.proxy\.async[^;]*;", ""),
    "waits left out": replacing(r"wgmma\.wait_group[^;]*;", ""),
    "another swizzle": other_swizzle,
    "a store 16 bytes off in shared memory": replacing(r"(st\.shared\.[^;]*\[%r\d+)\]", r"\1+16]", 1),
}


def noticed(rewrite) -> dict:
    changed = 0

    def counting(ptx: str) -> str:
        nonlocal changed
        result = rewrite(ptx)
        changed += result != ptx
        return result

    emulator.rewrite = counting
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            errors = CASE.errors()
    except Exception as error:
        return {"changed": changed, "noticed": f"{type(error).__name__}: {error}"}
    wrong = [f"error {error:.1e}" for error, limit in errors if not error < limit]
    return {"changed": changed, "noticed": ", ".join(wrong)}


print(json.dumps({name: noticed(rewrite) for name, rewrite in PLANTED.items()}))
