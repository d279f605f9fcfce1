"""Time of a training step and memory of U-Nets of L-convs, convolutions and depthwise-separable ones, of the same
widths.

All contenders take their steps in turn; processor time of one thread, smallest of the repetitions. python step_time.py
[--quick]
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import CONTENDERS, RESULTS, Store, exchange, is_quick

from lconv_fast import nets
from lconv_fast.demo.volume import kept_bytes

LAYERS = ("conv", "separable conv", "laplacian, unit", "separable")
# axes, points a side, widths, images in a batch
CASES = ((2, 64, (16, 32, 64), 4), (3, 16, (16, 32, 64), 1))
FULL = ((3, 24, (8, 16, 32), 2), (2, 256, (16, 32, 64), 4), (2, 128, (64, 128, 256), 2), (3, 48, (16, 32, 64), 1))


def step(model: torch.nn.Module, f: torch.Tensor) -> float:
    start = time.process_time()
    model(f).square().mean().backward()
    return time.process_time() - start


def measure(ndim: int, size: int, widths: tuple[int, ...], batch: int, repetitions: int) -> list[dict[str, Any]]:
    f = torch.randn(batch, 1, *[size] * ndim)
    models = {
        name: exchange(nets.LUNet(1, 1, ndim=ndim, widths=widths, norm="instance"), CONTENDERS[name]) for name in LAYERS
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repetitions + 1):
        for name, model in models.items():
            seconds[name].append(step(model, f))
    base = min(seconds["conv"][1:])
    return [
        {
            "contender": name,
            "case": f"{ndim}D, {size}^{ndim}, batch {batch}, widths {widths}",
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": min(seconds[name][1:]),
            "of_conv": min(seconds[name][1:]) / base,
            "kept_mib": kept_bytes(model, f) / 2**20,
        }
        for name, model in models.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    store = Store(RESULTS / f"step_time{'-quick' if is_quick() else ''}.json", __doc__ or "")
    for ndim, size, widths, batch in CASES if is_quick() else FULL:
        for row in measure(ndim, size, widths, batch, 2 if is_quick() else 4):
            store.add(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
