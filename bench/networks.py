"""Whole networks: a training step with L-conv layers against the same network with nn.Conv, 3 wide.

    python -m lconv_fast_bench.networks [--threads 1] [--dtype float32] [--networks unet2d unet3d resnet18] [--scale 1]
                                        [--compiled] [--out FILE]

No one trains a layer alone: normalisation, activation, pooling, concatenations and sums are here as well, eager or
compiled, in channels-last. Both networks have the same widths; the L-conv one has (n_L + 1) / 3^n of the other's
weights. Steps are interleaved in one process; a ratio is the median of the rounds' own ratios, with the 95 % interval
of that median.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import lconv_fast as lc

from .measure import interleaved, machine, median_interval, peak_memory

WIDTHS = {2: (32, 64, 128), 3: (16, 32, 64)}
Layer = Callable[..., nn.Module]  # of the numbers of channels and the stride


def layers(ndim: int, basis: str) -> dict[str, Layer]:
    """The two contenders: how each makes a layer from its numbers of channels."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    lconv = {2: lc.LConv2d, 3: lc.LConv3d}[ndim]
    return {
        "lconv_fast": lambda ins, outs, stride=1: lconv(ins, outs, basis, stride=stride),
        "nn.Conv": lambda ins, outs, stride=1: conv(ins, outs, 3, stride=stride, padding=1),
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


class Residual(nn.Module):
    """ReLU(x + two layers with normalisation), He et al. 2015; x is brought to the new width and stride by 1 x 1."""

    def __init__(self, ins: int, outs: int, stride: int, layer: Layer) -> None:
        super().__init__()
        self.first = nn.Sequential(layer(ins, outs, stride), nn.BatchNorm2d(outs), nn.ReLU())
        self.second = nn.Sequential(layer(outs, outs), nn.BatchNorm2d(outs))
        self.short = nn.Sequential()
        if stride != 1 or ins != outs:
            self.short = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.short(x) + self.second(self.first(x)))


class ResNet18(nn.Module):
    """The 18 layers of He et al. 2015, table 1; the 7 x 7 stem is nn.Conv2d in both contenders."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        stages = itertools.pairwise((64, 64, 128, 256, 512))
        blocks = []
        for k, (ins, outs) in enumerate(stages):
            blocks += [Residual(ins, outs, 2 if k else 1, layer), Residual(outs, outs, 1, layer)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@dataclass(frozen=True)
class Network:
    """One row: what is built, and its input."""

    make: Callable[[Layer], nn.Module]
    ndim: int
    batch: int
    channels: int
    extent: int


NETWORKS = {
    "unet2d": Network(lambda layer: UNet(2, layer), 2, 1, 1, 256),
    "unet3d": Network(lambda layer: UNet(3, layer), 3, 1, 1, 96),
    "resnet18": Network(ResNet18, 2, 4, 3, 224),
}


def step_of(net: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """One training step without the optimizer; returns the loss."""

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(net(x).float(), target)
        loss.backward()
        return loss.detach()

    return step


def measure(name: str, dtype: torch.dtype, scale: float, basis: str, compiled: bool, seconds: float) -> dict:
    """Times, ratio and peak memory of one training step of each contender."""
    network = NETWORKS[name]
    ndim, extent = network.ndim, max(8, int(network.extent * scale) // 8 * 8)
    torch.manual_seed(0)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    x = torch.randn(network.batch, network.channels, *[extent] * ndim).to(dtype).to(memory_format=formats[ndim])
    jobs = {}
    for contender, layer in layers(ndim, basis).items():
        net = network.make(layer).to(dtype).to(memory_format=formats[ndim])
        with torch.no_grad():
            target = torch.randn_like(net(x).float())
        jobs[contender] = step_of(torch.compile(net) if compiled else net, x, target)
    for contender, run in jobs.items():
        if not math.isfinite(run().item()):
            raise ArithmeticError(f"the step of {contender} is not finite")
    times = interleaved(jobs, seconds)
    ratios = [conv / ours for conv, ours in zip(times["nn.Conv"], times["lconv_fast"], strict=True)]
    return {
        "network": f"{name}, {network.batch} x {extent}^{ndim}, {basis}{', compiled' if compiled else ''}",
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": len(ratios),
        "seconds": {contender: statistics.median(t) for contender, t in times.items()},
        "ratio": statistics.median(ratios),
        "interval": median_interval(ratios),
        "peak_memory": {contender: peak_memory(run) for contender, run in jobs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", choices=tuple(NETWORKS), nargs="*", default=tuple(NETWORKS))
    parser.add_argument("--compiled", action="store_true", help="both contenders through torch.compile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="*", default=("float32", "bfloat16"))
    parser.add_argument("--basis", default="translation")
    parser.add_argument("--scale", type=float, default=1.0, help="of the extent, for a quick look")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network and type")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    place = machine(given.threads)
    rows = []
    for name in given.networks:
        for dtype in given.dtype:
            row = measure(name, getattr(torch, dtype), given.scale, given.basis, given.compiled, given.seconds)
            rows.append(row)
            low, high = row["interval"]
            memory = {who: f"{size / 2**20:.0f} MiB" for who, size in row["peak_memory"].items()}
            print(
                f"{row['network']}, {dtype}: nn.Conv takes {row['ratio']:.2f} [{low:.2f}, {high:.2f}] times as long; "
                f"peak memory {memory}; {row['rounds']} rounds",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps({"machine": place, "networks": rows}, indent=1))


if __name__ == "__main__":
    main()
