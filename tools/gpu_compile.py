"""Compiles the GPU kernels without a GPU, as they are launched, and reads the machine code.

    python tools/gpu_compile.py [--cases all] [--targets sm_90,gfx942] [--only march] [--json FILE]

Registers, stack, shared memory, matrix and 16-byte load instructions of each case; exits with 1 if a case needs more
shared memory than the chip has. Launches run on meta tensors with a driver that only names the target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import lconv_fast as lc
from lconv_fast.generators import bases
from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.gpu.card import CARDS
from lconv_fast.ops.gpu.dispatch import Operators
from lconv_fast.ops.gpu.graph import apply as graph_apply
from lconv_fast.ops.gpu.graph import correlate as graph_correlate
from lconv_fast.ops.gpu.graph import gram as graph_gram
from lconv_fast.ops.gpu.launch import OPTIONS, Launch
from lconv_fast.ops.gpu.tables import Table
from lconv_fast.ops.graph import Graph

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), CARDS["A100"]),
    "sm_90": (GPUTarget("cuda", 90, 32), CARDS["H100"]),
    "sm_100": (GPUTarget("cuda", 100, 32), CARDS["B200"]),
    "gfx942": (GPUTarget("hip", "gfx942", 64), CARDS["MI300X"]),
}
TABLE = Table()
CONSTANT = ("laplacian", "second")


class NamesTarget:
    """The part of a driver that compiling takes."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@dataclass(frozen=True)
class Case:
    kind: str
    size: tuple[int, ...]
    channels: int
    dtype: torch.dtype
    operator: str  # forward, transposed, gram, correlate, backward
    basis: str | int = "se"  # of affine generators; a number: so many without a name; or a basis of constant stencils
    mode: str = "zeros"
    outs: int = 0
    channels_last: bool = True
    accuracy: int = 2

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        dtype = str(self.dtype).removeprefix("torch.")
        last = "" if self.channels_last else " contiguous"
        order = "" if self.accuracy == 2 else f" order {self.accuracy}"
        return (
            f"{self.operator} {self.kind} {self.basis} C={self.channels}>{self.outs or self.channels} {size} {dtype} "
            f"{self.mode}{order}{last}"
        )

    def run(self, operators: Operators) -> None:
        ndim, outs = len(self.size), self.outs or self.channels
        keywords = {"padding_mode": self.mode}
        generators: lc.Generators
        if isinstance(self.basis, int):
            count, named = self.basis, False
        else:
            basis = bases.named(self.basis, ndim, accuracy=self.accuracy, **keywords)
            count, named = basis.num_generators, self.kind == "affine" or self.basis in CONSTANT
        if named:
            generators = basis.to("meta")
        elif self.kind == "affine":
            numbers = torch.zeros(count, ndim, ndim), torch.zeros(count, ndim)
            generators = lc.AffineGenerators(*numbers, accuracy=self.accuracy, **keywords)
        elif self.kind == "field":
            field = torch.empty(count, ndim, *self.size, device="meta")
            generators = lc.FieldGenerators(field, accuracy=self.accuracy, **keywords)
        else:
            taps = [[sign * (a == b) for b in range(ndim)] for a in range(ndim) for sign in (-1, 1)]
            sampled = self.size if self.kind == "stencil" else ()
            numbers = torch.empty(count, len(taps), *sampled, device="meta")
            generators = lc.StencilGenerators(numbers, taps, **keywords)
        v = generators.coefficients().to(device="meta", dtype=self.dtype)
        geometry = Geometry.of(generators.stencil(), self.size, [1] * ndim, 1)

        def data(channels: int) -> torch.Tensor:
            shape = (2, *self.size, channels) if self.channels_last else (2, channels, *self.size)
            t = torch.empty(shape, dtype=self.dtype, device="meta")
            return t.movedim(-1, 1) if self.channels_last else t

        f, g = data(self.channels), data(outs)
        w = torch.empty(v.shape[0] + 1, outs, self.channels, dtype=self.dtype, device="meta")
        bias = torch.empty(outs, dtype=self.dtype, device="meta")
        if self.operator == "forward":
            operators.apply(f, w, v, bias, *geometry, True, False)
        elif self.operator == "transposed":
            operators.apply(g, w, v, None, *geometry, True, True)
        elif self.operator == "gram":
            operators.gram(f, g, v, *geometry, True)
        elif self.operator == "backward":
            operators.backward(g, f, w, v, *geometry, True)
        else:
            operators.correlate(f, w, g, *geometry)


@dataclass(frozen=True)
class GraphCase:
    operator: str  # apply, transposed, gram, correlate
    channels: int
    dtype: torch.dtype
    incidence: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"graph {self.operator} C={self.channels} {dtype}" + (" incidence" if self.incidence else "")

    def run(self) -> None:
        nodes, edges, c = 1 << 16, 1 << 19, self.channels
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        with torch.device("meta"):
            sides = [torch.empty(size, dtype=torch.int64) for size in (nodes + 1, edges, edges) * 2]
            f, g = (torch.empty(2, nodes, c, dtype=self.dtype).transpose(1, 2) for _ in range(2))
            w, v = torch.empty(3, c, c, dtype=self.dtype), torch.empty(2, edges, dtype=wide)
            bias = torch.empty(c, dtype=self.dtype)
        graph = Graph(*sides, 1, self.incidence)
        if self.operator == "gram":
            graph_gram.gram(f, g, v, *graph, True)
        elif self.operator == "correlate":
            graph_correlate.correlate(f, w, g, *graph)
        else:
            transposed = self.operator == "transposed"
            graph_apply.apply(f, w, v, None if transposed else bias, *graph, True, transposed)


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
OPERATORS = ("forward", "transposed", "gram", "correlate")
# What `make test` compiles.
REPRESENTATIVE = [
    *[Case("affine", (1024, 1024), 64, HALF, operator) for operator in OPERATORS],
    *[Case("affine", (1024, 1024), 64, SINGLE, operator) for operator in OPERATORS],
    *[Case("affine", (256, 256), 32, DOUBLE, operator) for operator in ("forward", "gram")],
    Case("field", (1024, 1024), 64, HALF, "forward", mode="circular"),
    Case("field", (1024, 1024), 64, HALF, "forward", basis="affine"),
    Case("affine", (1024, 1024), 64, HALF, "forward", basis="affine"),
    Case("affine", (1024, 1024), 128, HALF, "forward"),
    Case("affine", (1024, 1024), 32, HALF, "backward"),
    Case("affine", (1024, 1024), 64, HALF, "backward"),
    Case("stencil", (1024, 1024), 64, HALF, "transposed", mode="circular"),
    Case("affine", (128, 128, 128), 64, HALF, "forward", basis="rotation"),
    Case("affine", (1024, 1024), 64, torch.float16, "forward", basis="affine"),
    *[Case("constant", (1024, 1024), 64, HALF, operator, "laplacian") for operator in OPERATORS],
    *[Case("constant", (1024, 1024), 64, HALF, o, "laplacian", channels_last=False) for o in ("forward", "gram")],
    Case("affine", (1024, 1024), 3, HALF, "forward", outs=64, channels_last=False),
]
SPACES = {2: (1024, 1024), 3: (128, 128, 128)}
# Every entry of the marching kernels' tables, with all numbers of generators that some card takes.
MARCHES = (
    [
        Case(kind, SPACES[n], channels, HALF, "transposed" if transposed else "forward", count)
        for (n, blocks, transposed), rows in TABLE.marches.items()
        for channels in ({3: 128, 4: 256}.get(blocks, 32 * blocks),)
        for kind in ("affine", "field")
        for count in sorted(
            {most for row in rows for most in (row.most_affine if kind == "affine" else row.most_fields) if most}
            | ({n * (n + 1)} if kind == "affine" else set())
        )
    ]
    + [
        Case(kind, SPACES[n], 64, HALF, "gram", count, outs=128 if wide else 64)
        for (n, wide), row in TABLE.gram_marches.items()
        for kind in ("affine", "field")
        for count in sorted({n, n + 1, n * (n + 1), *(most - 1 for most in row.most_fields if most)})
    ]
    + [
        Case(kind, SPACES[n], 32 * blocks, HALF, "backward", count)
        for (n, blocks), row in TABLE.backward_marches.items()
        for kind, limits in (("affine", (*row.most_affine, n * (n + 1))), ("field", row.most_fields))
        for count in sorted(set(limits) - {0})
    ]
    + [
        Case("constant", SPACES[n], channels, HALF, operator, basis, channels_last=last)
        for n, basis in ((2, "laplacian"), (2, "second"), (3, "laplacian"))
        for channels in (32, 64, 128, 256)
        for operator in ("forward", "transposed", "gram", "backward")
        for last in (True, False)
    ]
    + [
        Case("affine", SPACES[n], 32 * width, HALF, operator, channels_last=False)
        for n, width, transposed in TABLE.planes
        if width < 3
        for operator in (("transposed",) if transposed else ("forward", "gram"))
    ]
)
ALL = (
    REPRESENTATIVE
    + MARCHES
    + [
        Case(kind, size, channels, dtype, operator, basis)
        for kind in ("affine", "field", "stencil", "constant")
        for size, basis in (((65536,), "affine"), ((1024, 1024), "se"), ((1024, 1024), "affine"), ((96, 96, 96), "se"))
        for channels in (16, 64, 128)
        for dtype in (HALF, SINGLE)
        for operator in OPERATORS
    ]
)

GRAPHS = [
    GraphCase(operator, 64, dtype, incidence)
    for operator in ("apply", "transposed", "gram", "correlate")
    for dtype, incidence in ((HALF, False), (HALF, True), (torch.float16, False), (SINGLE, False), (DOUBLE, True))
]

SELECTIONS: dict[str, Sequence[Case | GraphCase]] = {
    "representative": [*REPRESENTATIVE, *GRAPHS[::5]],
    "marches": MARCHES,
    "graphs": GRAPHS,
    "all": [*ALL, *GRAPHS],
}


@dataclass
class Found:
    case: str
    target: str
    kernel: str
    shared: int
    shared_limit: int
    registers: int
    stack: int
    matrix: int  # tensor-core instructions
    warpgroup: int  # of them, Hopper's
    wide_loads: int  # of 16 bytes
    instructions: int
    loop: int  # instructions of the longest innermost loop


@contextlib.contextmanager
def compiling(kernels: list) -> Iterator[None]:
    """Kernels that are launched without `Launch` are compiled instead, too."""
    run = JITFunction.run

    def compile(self, *arguments, **keywords):
        self.device_caches.clear()  # of the target before
        kernels.append(run(self, *arguments, **keywords | {"warmup": True}))

    JITFunction.run = compile
    try:
        yield
    finally:
        JITFunction.run = run


def compiled(case: Case | GraphCase, target: str) -> Iterator[Found]:
    chip, card = TARGETS[target]
    driver.set_active(NamesTarget(chip))
    kernels: list = []

    class Compiles(Launch):
        """Instead of launching."""

        def compile(self, device, arguments):
            self.kernel.device_caches.clear()  # of the target before
            kernels.append(
                self.kernel.run(*arguments, **self.constants, num_warps=self.warps, **OPTIONS, grid=(1,), warmup=True)
            )

        def places(self, card, device, arguments):
            return None

        def __call__(self, programs, device, *arguments):
            self.compile(device, arguments)

    if isinstance(case, GraphCase):
        with compiling(kernels):
            case.run()
    else:
        case.run(Operators(lambda device: card, lambda card: TABLE, Compiles))
    for kernel in kernels:
        yield read(case, target, card.shared, kernel)


def read(case: Case | GraphCase, target: str, limit: int, kernel) -> Found:
    assembly = kernel.asm.get("amdgcn") or disassembled(kernel.asm["cubin"])
    if target.startswith("gfx"):
        numbers = {
            key: int(value)
            for key, value in re.findall(
                r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", assembly
            )
        }
        registers, stack = numbers["vgpr_count"], numbers["private_segment_fixed_size"]
        code = [line for line in assembly.splitlines() if re.match(r"\s+[vs]_|\s+(ds|buffer|global|flat)_", line)]
        matrix, warpgroup = sum("mfma" in line for line in code), 0
        wide = sum(bool(re.search(r"(global|buffer)_load_dwordx4", line)) for line in code)
    else:
        usage = resources(kernel.asm["cubin"])
        registers, stack = usage["REG"], usage["STACK"]
        code = [line for line in assembly.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+[@A-Z]", line)]
        matrix = sum(bool(re.search(r"[^A-Z](HMMA|HGMMA|DMMA|UTC\w*MMA)", line)) for line in code)
        warpgroup = sum("HGMMA" in line for line in code)
        wide = sum(bool(re.search(r"LDG\.E\.128|LDG\.E\.\S*128|LDGSTS\.E\.\S*128", line)) for line in code)
    return Found(
        str(case), target, kernel.metadata.name, kernel.metadata.shared, limit, registers, stack, matrix, warpgroup,
        wide, len(code), innermost_loop(assembly),
    )  # fmt: skip


SPIN = 32  # instructions: a shorter loop waits for a barrier


def innermost_loop(assembly: str) -> int:
    """Of NVIDIA machine code: the longest stretch that a backward branch closes, with no other such stretch in it."""
    at, labels, loops = 0, {}, []
    for line in assembly.splitlines():
        place = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)
        if not place:
            continue
        address, text = int(place.group(1), 16), place.group(2)
        labels[address] = at
        at += 1
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump.group(1), 16) < address and at - labels[int(jump.group(1), 16)] > SPIN:
            loops.append((labels[int(jump.group(1), 16)], at))
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    return max((b - a for a, b in inner), default=0)


def _tool(name: str, cubin: bytes, *options: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    found = _tool("cuobjdump", cubin, "-res-usage")
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", found)}


def disassembled(cubin: bytes) -> str:
    return _tool("cuobjdump", cubin, "-sass")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", choices=SELECTIONS, default="representative")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--only", default="", help="cases whose text holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for case in SELECTIONS[options.cases]:
        if options.only not in str(case):
            continue
        for target in options.targets.split(","):
            for found in compiled(case, target):
                rows.append(found)
                print(
                    f"{found.case:72s} {found.target:7s} {found.kernel:17s} registers {found.registers:3d} "
                    f"stack {found.stack:4d} shared {found.shared >> 10:3d} KiB  matrix {found.matrix:4d} "
                    f"({found.warpgroup} HGMMA)  16-byte loads {found.wide_loads:3d}  "
                    f"instructions {found.instructions} (loop {found.loop})",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    over = [row for row in rows if row.shared > row.shared_limit]
    for row in over:
        print(f"too much shared memory: {row}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
