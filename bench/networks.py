"""Whole networks: a training step of a U-Net with L-conv layers against the same network with nn.Conv, 3 wide.

    python -m lconv_fast_bench.networks [--threads 1] [--dtype float32] [--ndim 2] [--scale 1] [--out FILE]

No one trains a layer alone: normalisation, activation, pooling and the concatenations are here as well, eager, in
channels-last. Both networks have the same widths; the L-conv one has (n_L + 1) / 3^n of the other's weights. Steps are
interleaved in one process; a ratio is the median of the rounds' own ratios, with the 95 % interval of that median.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import lconv_fast as lc

from .measure import interleaved, machine, median_interval, peak_memory

WIDTHS = {2: (32, 64, 128), 3: (16, 32, 64)}
EXTENT = {2: 256, 3: 96}
Layer = Callable[[int, int], nn.Module]


def layers(ndim: int, basis: str) -> dict[str, Layer]:
    """The two contenders: how each makes a layer from its numbers of channels."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    lconv = {2: lc.LConv2d, 3: lc.LConv3d}[ndim]
    return {
        "lconv_fast": lambda ins, outs: lconv(ins, outs, basis),
        "nn.Conv": lambda ins, outs: conv(ins, outs, 3, padding=1),
    }


class UNet(nn.Module):
    """1 -> widths[0] -> ... and back to 1, two layers at each level, each with normalisation and ReLU."""

    def __init__(self, ndim: int, layer: Layer) -> None:
        super().__init__()
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim]
        widths = WIDTHS[ndim]

        def block(ins: int, outs: int) -> nn.Sequential:
            return nn.Sequential(layer(ins, outs), norm(outs), nn.ReLU(), layer(outs, outs), norm(outs), nn.ReLU())

        self.down = nn.ModuleList(block(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(block(a + b, a) for a, b in itertools.pairwise(widths))
        self.last = layer(widths[0], 1)
        self.pool = {2: nn.MaxPool2d, 3: nn.MaxPool3d}[ndim](2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            kept.append(x)
        for level in reversed(range(len(self.up))):
            wide = nn.functional.interpolate(x, scale_factor=2.0)
            x = self.up[level](torch.cat([kept[level], wide], 1))
        return self.last(x)


def step_of(net: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """One training step without the optimizer; returns the loss."""

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(net(x), target)
        loss.backward()
        return loss.detach()

    return step


def measure(ndim: int, dtype: torch.dtype, extent: int, basis: str, seconds: float) -> dict:
    """Times, ratio and peak memory of one training step of each network."""
    torch.manual_seed(0)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    x, target = (torch.randn(1, 1, *[extent] * ndim).to(dtype) for _ in range(2))
    nets = {
        name: UNet(ndim, layer).to(dtype).to(memory_format=formats[ndim]) for name, layer in layers(ndim, basis).items()
    }
    jobs = {name: step_of(net, x, target) for name, net in nets.items()}
    for name, run in jobs.items():
        if not math.isfinite(run().item()):
            raise ArithmeticError(f"the step of {name} is not finite")
    times = interleaved(jobs, seconds)
    ratios = [conv / ours for conv, ours in zip(times["nn.Conv"], times["lconv_fast"], strict=True)]
    return {
        "network": f"U-Net {ndim}D 1-{'-'.join(map(str, WIDTHS[ndim]))}, {extent}^{ndim}, {basis}",
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": len(ratios),
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "ratio": statistics.median(ratios),
        "interval": median_interval(ratios),
        "peak_memory": {name: peak_memory(run) for name, run in jobs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ndim", type=int, choices=(2, 3), nargs="*", default=(2, 3))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="*", default=("float32", "bfloat16"))
    parser.add_argument("--basis", default="translation")
    parser.add_argument("--scale", type=float, default=1.0, help="of the extent, for a quick look")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network and type")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    place = machine(given.threads)
    rows = []
    for ndim in given.ndim:
        for dtype in given.dtype:
            extent = max(8, int(EXTENT[ndim] * given.scale) // 8 * 8)
            row = measure(ndim, getattr(torch, dtype), extent, given.basis, given.seconds)
            rows.append(row)
            low, high = row["interval"]
            memory = {name: f"{size / 2**20:.0f} MiB" for name, size in row["peak_memory"].items()}
            print(
                f"{row['network']}, {dtype}: nn.Conv takes {row['ratio']:.2f} [{low:.2f}, {high:.2f}] times as long; "
                f"peak memory {memory}; {row['rounds']} rounds",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps({"machine": place, "networks": rows}, indent=1))


if __name__ == "__main__":
    main()
