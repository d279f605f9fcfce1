"""`lconv-fast tune`: times candidate tiles on this card, and keeps the fastest in a file that can be deleted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry, Stencil
from lconv_fast.ops.gpu.dispatch import Operators
from lconv_fast.ops.gpu.tables import DOUBLE, HALF, SINGLE, TILES, Table, Tile, tuned_file

TYPES = {HALF: torch.bfloat16, SINGLE: torch.float32, DOUBLE: torch.float64}
CANDIDATES = [
    Tile(points, outs, ins, warps)
    for points, outs, ins, warps in itertools.product((32, 64, 128), (32, 64, 128), (16, 32, 64), (4, 8))
    if points * outs <= 8192 and outs * ins <= 4096
]
TOLERANCE = {HALF: 1e-2, SINGLE: 1e-5, DOUBLE: 1e-12}

# Fourth order: the marching kernels, which have no tiles, do not take it.
STEPS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
STENCIL = Stencil(
    CoefficientKind.AFFINE,
    taps=tuple((k, 0) for k in STEPS) + tuple((0, k) for k in STEPS),
    tap_weights=(*STEPS.values(), *STEPS.values()),
    components=(0,) * 4 + (1,) * 4,
    padding_mode=PaddingMode.ZEROS,
)


def calls(
    dtype: torch.dtype, size: int, channels: int, device: str = "cuda"
) -> dict[str, Callable[[Operators], Tensor]]:
    """Each kernel on a batch of images."""
    f, g = (torch.randn(4, size, size, channels, device=device, dtype=dtype).movedim(-1, 1) for _ in range(2))
    geometry = Geometry.of(STENCIL, (size, size), [1, 1], 1)
    v = torch.randn(3, 2, 3, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    w = torch.randn(4, channels, channels, device=device).to(dtype) / channels**0.5
    return {
        "apply": lambda operators: operators.apply(f, w, v, None, *geometry, True, False),
        "gram": lambda operators: operators.gram(f, g, v, *geometry, True),
        "correlate": lambda operators: operators.correlate(f, w, g, *geometry),
    }


def tune(size: int = 1024, channels: int = 64) -> Iterator[tuple[str, Tile, float]]:
    """Yields each kernel's entry of the table, its fastest tile, and its speed relative to the table's tile."""
    from triton.testing import do_bench

    if not torch.cuda.is_available():
        raise RuntimeError("tune: expected a GPU, torch.cuda.is_available() is False")
    card = torch.cuda.get_device_name()
    chosen: dict[str, Tile] = {}
    for kind, dtype in TYPES.items():
        for kernel, call in calls(dtype, size if kind != DOUBLE else size // 4, channels).items():

            def timed(
                tile: Tile, entry: tuple[str, str] = (kernel, kind), call: Callable[[Operators], Tensor] = call
            ) -> tuple[float, Tensor]:
                operators = Operators(table_of=lambda card: Table(tiles=TILES | {entry: tile}))
                result = call(operators)
                return do_bench(lambda: call(operators), warmup=5, rep=20, return_mode="median"), result

            usual, truth = timed(TILES[kernel, kind])
            best, fastest = TILES[kernel, kind], usual
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
    file = tuned_file()
    known = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | {card: chosen}, indent=1))
