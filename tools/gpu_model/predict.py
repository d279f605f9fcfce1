"""From launches and machine code to a time, as a fraction of the layer's floor."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lconv_fast.ops.gpu.tables import GramMarch, March, Table, width_of
from tools.emulate.driver import Kernel, Launch, registers_of
from tools.gpu_model.layers import ITEM, Layer
from tools.gpu_model.sass import Sass, main_loop, parse
from tools.gpu_model.simulate import WARP_BYTES, Steady, simulate

CLOCK = 1.8e9
MULTIPROCESSORS = 132
SCHEDULERS = 4
_REGISTERS, _SHARED, _RESERVED, _WARPS = 1 << 16, 228 << 10, 1 << 10, 64
_BLOCK = 32  # channels that the marching kernels take at a time
_OF_WEIGHTS = ("basis_weight_kernel", "weight_gradient_kernel")
_BUSY = 0.8  # of the cycles: from here on issuing is the limit


@dataclass(frozen=True)
class Card:
    bandwidth: float  # bytes a second, of a copy, counting both ways
    second_level: float  # bytes a second that multiprocessors read from the second-level cache, as published
    products: float  # floating-point operations a second, bfloat16, of a large matrix product


CARDS = {"H200": Card(4.3e12, 5.6e12, 780e12), "H100": Card(3.0e12, 5.6e12, 780e12)}


def tool(name: str) -> Path | None:
    """A program that Triton brings along, or None."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return path if path.exists() else None


def disassembled(cubin: bytes, *options: str) -> str:
    program = tool("cuobjdump")
    assert program is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True).stdout


def resident(kernel: Kernel) -> int:
    """Programs that a multiprocessor holds at once."""
    of_registers = _REGISTERS // (-(-registers_of(kernel.cubin) // 8) * 8 * 32 * kernel.warps)
    return max(1, min(of_registers, _SHARED // (kernel.shared + _RESERVED), _WARPS // kernel.warps))


def predict(layer: Layer, launches: list[Launch]) -> dict[str, Any]:
    """Figures of one layer: resources of its kernel, and for each card the fraction of the floor and the limit.

    What mixes W and sums parts is left out.
    """
    parts = [_launch(layer, launch) for launch in launches if launch.kernel.name not in _OF_WEIGHTS]
    if not parts:
        raise ValueError(f"{layer}: no kernel of points")
    largest = max(parts, key=lambda p: p["cards"]["H200"]["milliseconds"])
    figures = {key: largest[key] for key in largest if key != "cards"} | {"launches": len(parts)}
    for name, card in CARDS.items():
        floor = max(layer.floor_bytes / card.bandwidth, layer.flops / card.products) * 1e3
        time = sum(p["cards"][name]["milliseconds"] for p in parts)
        whole = sum(p["cards"][name]["whole waves"] for p in parts)
        figures[name] = {
            "milliseconds": round(time, 3),
            "of the floor": round(floor / time, 3),
            "in whole waves": round(floor / whole, 3),
            "limit": largest["cards"][name]["limit"],
        }
    return figures


_COPY = re.compile(r"(MOV|IMAD\.MOV)")


def fresh_loads(loop: list[Sass], count: int) -> set[int]:
    """The loads of lines that are new to a program: those whose results are needed last, for they are loaded ahead.

    The others read again what a step before has brought into the first-level cache.
    """
    distance = {}
    for k, load in enumerate(loop):
        found = re.search(r"\bR(\d+),", load.text) if load.unit == "load" else None
        if not found:
            continue
        results = {f"R{int(found[1]) + j}" for j in range(4)}
        later = [*loop[k + 1 :], *loop[:k]]
        reads = (j for j, i in enumerate(later) if not _COPY.match(i.name) and results & _read(i))
        distance[k] = next(reads, len(loop))
    return set(sorted(distance, key=lambda k: -distance[k])[:count])


def _read(i: Sass) -> set[str]:
    """Registers that an instruction names after its result; a store has none."""
    text = i.text if i.unit in ("store", "shared store") else i.text.partition(",")[2]
    return set(re.findall(r"\bR\d+\b", text))


def _launch(layer: Layer, launch: Launch) -> dict[str, Any]:
    kernel, programs = launch.kernel, launch.grid[0]
    loop = main_loop(parse(disassembled(kernel.cubin, "-sass")))
    if not loop or not kernel.name.startswith("march"):
        raise ValueError(f"{layer}: no marching loop in {kernel.name}")
    name = "gram" if layer.operator == "gram" else "backward" if "backward" in kernel.name else "apply"
    # Columns of a program: a row of a product each, or what the table says.
    points = 16 * kernel.warps
    if name == "gram":
        points = gram_entry(layer, kernel).points
    elif not layer.last:
        points = plane_entry(layer).points
    steps, step_bytes, channels = _steps(layer, name, points, kernel)
    new_bytes = _new_bytes(layer, name, points, kernel)
    fresh = fresh_loads(loop, new_bytes // (WARP_BYTES * kernel.warps))
    stores = sum(i.unit == "store" for i in loop)
    scale = (len(fresh) + stores) * WARP_BYTES * kernel.warps / step_bytes
    most = resident(kernel)
    rounds, rest = divmod(-(-programs // MULTIPROCESSORS), most)
    each = steps / programs
    cards = {}
    for card_name, card in CARDS.items():
        share = card.bandwidth / MULTIPROCESSORS / CLOCK / SCHEDULERS * scale

        def steady(count: int, share: float = share) -> Steady:
            return simulate(loop, fresh, count, kernel.warps // SCHEDULERS, share)

        full = steady(most)
        last = steady(rest).cycles if rest else 0.0
        time = each * (rounds * full.cycles + last) / CLOCK
        whole = each * programs / MULTIPROCESSORS / most * full.cycles / CLOCK
        limit = _limit(full, whole / time)
        # Blocks of channels that several programs read come from the second-level cache each time.
        cached = steps * new_bytes / card.second_level
        if cached > time:
            limit = "second-level cache"
        time, whole = max(time, cached), max(whole, cached)
        cards[card_name] = {"milliseconds": time * 1e3, "whole waves": whole * 1e3, "limit": limit}
    usage = re.search(r"STACK:(\d+)", disassembled(kernel.cubin, "-res-usage"))
    return {
        "kernel": kernel.name,
        "registers": registers_of(kernel.cubin),
        "stack": int(usage[1]) if usage else 0,
        "shared": kernel.shared,
        "programs": programs,
        "programs of a multiprocessor": most,
        "instructions of an element": round(len(loop) * kernel.warps * 32 / (points * channels), 2),
        "cards": cards,
    }


def _steps(layer: Layer, name: str, points: int, kernel: Kernel) -> tuple[float, float, int]:
    """(steps of all programs, bytes of a step that go to or come from DRAM, channels that a step goes through)."""
    c = layer.channels
    widths = [int(n) for n in re.findall(r"m64n(\d+)k16", kernel.ptx)] or [min(c, 64)]
    outs = max(widths)
    if name == "backward":
        return layer.points / points, 3.0 * points * c * ITEM, c
    if name == "apply":
        outs = outs if layer.last else min(c, plane_entry(layer).outs)
        blocks = max(1, c // outs)  # the other blocks find the input in the second-level cache
        return layer.points / points * blocks, points * ITEM * (c / blocks + outs), c
    outs = gram_entry(layer, kernel).outs
    in_blocks, out_blocks = c // _BLOCK, max(1, c // outs)
    step_bytes = points * ITEM * (_BLOCK / out_blocks + min(c, outs) / in_blocks)
    return layer.points / points * in_blocks * out_blocks, step_bytes, _BLOCK


def gram_entry(layer: Layer, kernel: Kernel) -> GramMarch:
    if not layer.last:
        return Table().planes_gram[layer.ndim]
    return Table().gram_marches[layer.ndim, kernel.warps == 8]


def plane_entry(layer: Layer) -> March:
    return Table().planes[layer.ndim, width_of(layer.channels // _BLOCK), layer.operator == "transposed"]


def _new_bytes(layer: Layer, name: str, points: int, kernel: Kernel) -> int:
    """Of a step: a line of what the program marches along, and one of its partner."""
    if name == "apply":
        return points * ITEM * layer.channels
    partner = layer.channels if name == "backward" else gram_entry(layer, kernel).outs
    return points * ITEM * (partner + (layer.channels if name == "backward" else _BLOCK))


def _limit(steady: Steady, waves: float) -> str:
    if waves < min(0.9, steady.issue):
        return f"tail ({1 - waves:.0%} of the places empty)"
    if steady.issue > _BUSY:
        return f"issue ({steady.issue:.0%} of the cycles)"
    why, share = max(steady.stalls.items(), key=lambda s: s[1], default=("nothing", 0.0))
    return f"{why} ({share:.0%} of the cycles), issue {steady.issue:.0%}"
