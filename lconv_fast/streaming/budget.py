"""What a schedule costs: memory of its tiles, bytes on disk, halo overhead; and the tile that fits a memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lconv_fast.regions.graph import Graph
from lconv_fast.regions.intervals import Region
from lconv_fast.regions.rules import Kind, Value
from lconv_fast.streaming.passes import Pass, Schedule, flops, nbytes, schedule
from lconv_fast.streaming.run import patches, spills
from lconv_fast.streaming.store import gibibytes
from lconv_fast.streaming.tile import points

# What the heap holds over what a tile needs, without giving anything back: arrays of unequal size leave gaps.
# Measured, of a residual net and a U-Net: 2 to 2.7.
GAPS = 2.5
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def memory_bytes(memory: object) -> int:
    """2147483648 or "2 GiB"."""
    if isinstance(memory, (int, float)) and not isinstance(memory, bool):
        if not 0 < memory < float("inf"):
            raise ValueError(f"memory: expected a positive number of bytes, got {memory!r}")
        return int(memory)
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", memory.lower()) if isinstance(memory, str) else None
    if match is None or match[2] not in UNITS:
        raise ValueError(f'memory: expected bytes or a text as "2 GiB", got {memory!r}')
    return int(float(match[1]) * UNITS[match[2]])


@dataclass(frozen=True)
class PassCost:
    """One pass over all tiles, in bytes and operations."""

    name: str
    tiles: int
    computed: str
    read: int
    written: int
    operations: float
    overhead: float  # operations with halos, over those without


@dataclass(frozen=True)
class Costs:
    passes: tuple[PassCost, ...]
    disk: int
    memory: int
    recomputed: float  # operations over those of one piece, forward and backward


def pass_memory(one: Pass, plan: dict[Value, Region], backward: bool) -> int:
    """Bytes that a tile holds: what is kept for backward, the two largest gradients, the next tile's reading and the
    last one's writing."""
    sizes = {v: nbytes(v, r) for v, r in plan.items() if v.kind == Kind.FIELD}
    sources = sum(size for v, size in sizes.items() if v in one.known)
    largest = max(sizes.values(), default=0)
    targets = sum(sizes[v] for v in one.targets)
    if backward and (one.trainable or one.last):
        return sum(sizes.values()) + 3 * largest + 3 * sources + 3 * targets
    return 3 * largest + 2 * sources + 3 * targets


def choose_tile(graph: Graph, memory: int, stride: Sequence[int], backward: bool = True) -> tuple[int, ...]:
    """The largest cube, a multiple of the total stride, whose tiles fit."""
    least = 0
    for edge in (1024, 768, 512, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 32, 24, 16):
        tile = tuple(min(size, max(edge // s, 1) * s) for size, s in zip(graph.input.extents, stride, strict=True))
        if edge > 16 and all(t == size and edge > 2 * size for t, size in zip(tile, graph.input.extents, strict=True)):
            continue
        plan = schedule(graph, tile)
        least = tile_memory(plan, backward)
        if least <= memory:
            return tile
    raise ValueError(
        f"memory: expected at least {gibibytes(least)} for tiles of 16 points a side, got {gibibytes(memory)}"
    )


def tile_memory(plan: Schedule, backward: bool) -> int:
    """Peak over the passes, by one tile of each; parameters' gradients in float64 besides."""
    parameters = sum(p.numel() for p in plan.graph.model.parameters())
    peak = 0
    for one in plan.passes:
        middle = one.tiles[len(one.tiles) // 2]
        full = max(one.tiles, key=lambda box: min(stop - first for first, stop in box))
        peak = max(peak, *(pass_memory(one, one.plan(box), backward) for box in {middle, full}))
    return int(GAPS * peak) + 16 * parameters * backward


def disk_bytes(plan: Schedule, backward: bool) -> int:
    """Of the files of a run."""
    blocks = [*spills(plan).items(), *((v, regions) for (v, _), regions in (patches(plan) if backward else {}).items())]
    return sum(nbytes(value, region) for value, regions in blocks for region in regions)


def costs(plan: Schedule, backward: bool) -> Costs:
    rows, plain = [], 0.0
    left = patches(plan) if backward else {}
    graph = plan.graph
    total = 0.0
    for place, one in enumerate(plan.passes):
        work = read = 0.0
        needed: dict[Value, int] = {}
        for tile in one.plans:
            for value, region in tile.items():
                if value in one.known:
                    read += nbytes(value, region)
                else:
                    work += flops(value, region)
                    needed[value] = needed.get(value, 0) + points(region)
        once = sum(flops(v) for v in needed)
        written = sum(nbytes(c.value) for c in one.cuts if c.spilled and not one.last)
        gradients = sum(nbytes(v, r) for (v, p), regions in left.items() if p == place for r in regions)
        pulled = sum(nbytes(v, r) for (v, _), regions in left.items() if v in one.targets for r in regions)
        names = ", ".join(v.path or v.operator for v in one.targets)
        overhead = work / once if once else 1.0
        both = backward and one.last
        rows.append(
            PassCost(
                "forward and backward" if both else "forward",
                len(one.tiles),
                names,
                int(read),
                int(written + (gradients if both else 0)),
                work * (3 if both else 1),
                overhead,
            )
        )
        total += work * (3 if both else 1)
        if backward and not one.last and one.trainable:
            rows.append(PassCost("backward", len(one.tiles), names, int(read + pulled), gradients, 3 * work, overhead))
            total += 3 * work
    plain = sum(flops(v) for v in graph if v.kind == Kind.FIELD and v.rule is not None) * (3 if backward else 1)
    return Costs(tuple(rows), disk_bytes(plan, backward), tile_memory(plan, backward), total / plain if plain else 1.0)
