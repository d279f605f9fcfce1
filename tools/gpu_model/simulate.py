"""One of the four schedulers of a multiprocessor, with the warps it holds, in some steps of a kernel's main loop."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tools.gpu_model.sass import Sass

STEPS, SETTLED = 20, 6  # simulated, and left out of the average
# Cycles, as published microbenchmarks of these chips have them, or near to it; none was measured here.
LATENCY = {"memory": 700, "first level": 40, "shared load": 28, "shared store": 20, "product": 32, "alu": 25}
_SHARED_CYCLES = {"128": 16, "M88.4": 16}
_GLOBAL_CYCLES = {"128": 16, "64": 8}
WARP_BYTES = 512  # of a 16-byte load or store by a warp
_BURST = 2000  # cycles that unused bandwidth is kept for: queues of the memory


@dataclass
class Warp:
    program: int
    place: int = 0
    step: int = 0
    ready: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    why: list[str] = field(default_factory=lambda: ["other"] * 6)
    products: float = 0.0  # when the last is done
    at_barrier: tuple[int, int] | None = None


@dataclass(frozen=True)
class Steady:
    cycles: float  # from step to step, of all programs together
    issue: float  # share of the cycles in which an instruction was issued
    stalls: dict[str, float]  # why not, as shares of the cycles


def simulate(loop: list[Sass], fresh: set[int], programs: int, warps: int, bytes_per_cycle: float) -> Steady:
    """
    Args:
        loop: the main loop.
        fresh: indices of its loads that come from DRAM; the others hit the first-level cache.
        programs: resident on the multiprocessor.
        warps: of a program, on this scheduler.
        bytes_per_cycle: of the DRAM, for this scheduler, on the scale of the loop's own loads and stores.
    """
    all_warps = [Warp(p, ready=97.0 * (p * warps + w)) for p in range(programs) for w in range(warps)]
    free: defaultdict[str, float] = defaultdict(float)  # when a pipe takes its next instruction
    arrived: Counter[tuple[int, tuple[int, int]]] = Counter()
    stalls: defaultdict[str, float] = defaultdict(float)
    memory, now, last = 0.0, 0.0, all_warps[0]
    issued, marks = 0, []

    def earliest(w: Warp) -> tuple[float, str]:
        if w.at_barrier is not None and arrived[w.program, w.at_barrier] < warps:
            return float("inf"), "barrier"
        i = loop[w.place]
        when, why = w.ready, "dependence"
        for k in range(6):
            if i.waits >> k & 1 and w.boards[k] > when:
                when, why = w.boards[k], w.why[k]
        if i.is_wait_for_products and w.products > when:
            when, why = w.products, "products"
        pipe = _pipe(i, free)
        if pipe and free[pipe] > when:
            when, why = free[pipe], "pipe " + pipe
        return when, why

    running = list(all_warps)
    while running:
        choices = [(*earliest(w), w is not last, k) for k, w in enumerate(running)]
        when, why, _, k = min(choices, key=lambda c: (max(c[0], now), c[2], c[3]))
        if when == float("inf"):
            raise RuntimeError("the model's warps wait for each other")
        if when > now:
            stalls[why] += when - now
            now = when
        w, i = running[k], loop[running[k].place]
        last, unit = w, i.unit
        issued += 1
        pipe = _pipe(i, free)
        if pipe:
            free[pipe] = now + _cycles(i)
        done, why = now + LATENCY["alu"], "dependence"
        if unit == "load":
            done, why = max(now, free["load-store"]) + LATENCY["first level"], "first-level cache"
            if w.place in fresh:
                memory = max(memory, now - _BURST) + WARP_BYTES / bytes_per_cycle
                done, why = max(now, memory) + LATENCY["memory"], "memory"
        elif unit == "store":
            memory = max(memory, now - _BURST) + WARP_BYTES / bytes_per_cycle
            done, why = max(now + LATENCY["shared store"], memory - _BURST), "memory"
        elif unit in ("shared load", "shared store"):
            done, why = max(now, free["load-store"]) + LATENCY[unit], "shared memory"
        elif unit == "product":
            free["tensor"] = max(free["tensor"], now) + _product_cycles(i)
            w.products = free["tensor"] + LATENCY["product"]
            done, why = w.products, "products"
        if i.sets < 6 and done > w.boards[i.sets]:
            w.boards[i.sets], w.why[i.sets] = done, why
        if i.frees < 6:
            w.boards[i.frees] = max(w.boards[i.frees], now + 12)
        w.ready, w.at_barrier = now + max(1, i.stall), None
        if unit == "barrier":
            w.at_barrier = (w.step, w.place)
            arrived[w.program, w.at_barrier] += 1
            w.ready = now + 20
        w.place += 1
        if w.place == len(loop):
            w.place, w.step, w.ready = 0, w.step + 1, max(w.ready, now + 8)
            marks.append(now)
            if w.step == STEPS:
                running.remove(w)
        now += 1
    first, end = SETTLED * len(all_warps), len(marks) - len(all_warps)
    per_step = (marks[end] - marks[first]) / (end - first) * len(all_warps)
    # Bandwidth saved before the steps that count is no bandwidth in the long run.
    transfers = len(fresh) + sum(i.unit == "store" for i in loop)
    per_step = max(per_step, len(all_warps) * transfers * WARP_BYTES / bytes_per_cycle)
    return Steady(per_step, issued / now, {why: cycles / now for why, cycles in stalls.items()})


def _pipe(i: Sass, free: defaultdict[str, float]) -> str | None:
    if i.unit == "fma":
        return "fma heavy" if free["fma heavy"] <= free["fma lite"] else "fma lite"
    return {
        "alu": "alu",
        "heavy fma": "fma heavy",
        "special": "special",
        **dict.fromkeys(("load", "store", "shared load", "shared store"), "load-store"),
    }.get(i.unit)


def _cycles(i: Sass) -> int:
    if i.unit in ("load", "store"):
        return next((c for word, c in _GLOBAL_CYCLES.items() if word in i.name), 4)
    if i.unit in ("shared load", "shared store"):
        return next((c for word, c in _SHARED_CYCLES.items() if word in i.name), 8)
    if i.unit == "special":
        return 8 if i.name.startswith("MUFU") else 4
    return 2


def _product_cycles(i: Sass) -> float:
    """A warp's share of a warpgroup's product takes n / 2 cycles of its tensor core; 16 x 8 x 16 takes 16 on sm_80."""
    shape = re.search(r"(\d+)x(\d+)x(\d+)", i.name)
    return int(shape[2]) / 2 if shape else 16.0
