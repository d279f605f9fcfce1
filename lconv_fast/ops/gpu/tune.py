"""`lconv-fast tune`: times candidate tiles on this card, and keeps the fastest in a file that can be deleted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.gpu import launch, tiles
from lconv_fast.ops.gpu.tiles import DOUBLE, HALF, SINGLE, TABLE, Tile

TYPES = {HALF: torch.bfloat16, SINGLE: torch.float32, DOUBLE: torch.float64}
CANDIDATES = [
    Tile(points, outs, ins, warps)
    for points, outs, ins, warps in itertools.product((32, 64, 128), (32, 64, 128), (16, 32, 64), (4, 8))
    if points * outs <= 8192 and outs * ins <= 4096
]
TOLERANCE = {HALF: 1e-2, SINGLE: 1e-5, DOUBLE: 1e-12}


def _calls(dtype: torch.dtype, size: int, channels: int) -> dict[str, Callable[[], Tensor]]:
    """Each kernel on a batch of images, a stride away from what the marching kernel takes."""
    spatial = (size, size)
    f, g = (
        torch.randn(4, *spatial, channels, device="cuda", dtype=dtype).movedim(-1, 1).requires_grad_(False)
        for _ in range(2)
    )
    taps = [0, -2, 0, -1, 0, 1, 0, 2, -2, 0, -1, 0, 1, 0, 2, 0]  # fourth order
    weights = [1 / 12, -2 / 3, 2 / 3, -1 / 12] * 2
    taps = taps[8:] + taps[:8]  # components count up
    geometry = Geometry(2, taps, weights, [0] * 4 + [1] * 4, spatial, 0, [0] * 4, [0, 0], spatial, size / 2, [1, 1], 1)
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    v = torch.randn(3, 2, 3, device="cuda", dtype=numbers)
    w = torch.randn(4, channels, channels, device="cuda").to(dtype) / channels**0.5
    return {
        "apply": lambda: launch.apply(f, w, v, None, *geometry, True, False),
        "gram": lambda: launch.gram(f, g, v, *geometry, True),
        "correlate": lambda: launch.correlate(f, w, g, *geometry),
    }


def tune(size: int = 1024, channels: int = 64) -> Iterator[tuple[str, Tile, float]]:
    """Yields each kernel's row of the table, its fastest tile, and its speed relative to the table's tile."""
    from triton.testing import do_bench

    if not torch.cuda.is_available():
        raise RuntimeError("tune: expected a GPU, torch.cuda.is_available() is False")
    card = torch.cuda.get_device_name()
    chosen: dict[str, Tile] = {}
    lookup = launch.tile_for
    try:
        for kind, dtype in TYPES.items():
            for kernel, call in _calls(dtype, size if kind != DOUBLE else size // 4, channels).items():

                def timed(tile: Tile, call: Callable[[], Tensor] = call) -> tuple[float, Tensor]:
                    launch.tile_for = lambda *_: tile
                    result = call()
                    return do_bench(call, warmup=5, rep=20, return_mode="median"), result

                usual, truth = timed(TABLE[kernel, kind])
                best, fastest = TABLE[kernel, kind], usual
                for tile in CANDIDATES:
                    try:
                        time, result = timed(tile)
                    except Exception:  # more registers or shared memory than the card has
                        continue
                    error = (result - truth).norm() / truth.norm()
                    if time < fastest and error < TOLERANCE[kind]:
                        best, fastest = tile, time
                chosen[f"{kernel} {kind}"] = best
                yield f"{kernel} {kind}", best, usual / fastest
    finally:
        launch.tile_for = lookup
    file = tiles.tuned_file()
    known = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | {card: chosen}, indent=1))
    tiles._tuned.cache_clear()
