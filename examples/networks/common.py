"""What the experiments share: contenders in one network, training, choice of the learning rate, and a file of results.

The network is an L-conv network of lconv_fast.nets; a contender says what stands in the place of each of its LConvs.
Learning rates come from one grid for all contenders, chosen on validation data with seeds of their own; test data are
looked at once, with the seeds of `SEEDS`. A run that the file has already is not made again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.demo import volume
from lconv_fast.generators import named, normalise

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100, 101)  # with data, and weights, of their own
RATES = (1e-2, 3e-2, 1e-1)
LCONVS = {1: lc.LConv1d, 2: lc.LConv2d, 3: lc.LConv3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
RESULTS = Path(__file__).parent / "results"

Make = Callable[[int, int, int, str], nn.Module]  # (axes, channels in, channels out, padding mode)


class Sum(nn.Module):
    """y = a(f) + b(f)."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, f: Tensor) -> Tensor:
        return self.a(f) + self.b(f)


def conv(ndim: int, ins: int, outs: int, padding_mode: str, size: int = 3) -> nn.Module:
    return CONVS[ndim](ins, outs, size, padding=size // 2, padding_mode=padding_mode, bias=False)


def separable(ndim: int, ins: int, outs: int, padding_mode: str) -> nn.Module:
    depthwise = CONVS[ndim](ins, ins, 3, padding=1, padding_mode=padding_mode, groups=ins, bias=False)
    return nn.Sequential(depthwise, CONVS[ndim](ins, outs, 1, bias=False))


def basis(name: str) -> Make:
    def make(ndim: int, ins: int, outs: int, padding_mode: str) -> nn.Module:
        return LCONVS[ndim](ins, outs, named(name, ndim, padding_mode=padding_mode), bias=False)

    return make


def unit(name: str, accuracy: int = 2) -> Make:
    """The basis with normalised generators, of differences of the given order."""

    def make(ndim: int, ins: int, outs: int, padding_mode: str) -> nn.Module:
        generators = named(name, ndim, padding_mode=padding_mode, accuracy=accuracy)
        return LCONVS[ndim](ins, outs, normalise(generators), bias=False)

    return make


def affine_and_laplacian(start: float = 1.0, gain: float = 1.0) -> Make:
    """All first-order affine generators and the Laplacian, normalised. Those that grow with x are multiplied by
    `gain`, and their weights start at `start` times what keeps the variance."""

    def make(ndim: int, ins: int, outs: int, padding_mode: str) -> nn.Module:
        affine = LCONVS[ndim](ins, outs, normalise(named("affine", ndim, padding_mode=padding_mode)), bias=False)
        smooth = nets.isotropic(ndim, 1, padding_mode=padding_mode)
        second = LCONVS[ndim](ins, outs, smooth, bias=False)
        count = affine.generators.num_generators
        with torch.no_grad():
            affine.generators.matrix.mul_(gain)
            affine.weight[1 : 1 + ndim * ndim] *= start
            second.weight[0].zero_()
            # One part of n_L + 2 for each generator and the identity.
            affine.weight *= ((count + 1) / (count + 2)) ** 0.5
            second.weight *= (2 / (count + 2)) ** 0.5
        return Sum(affine, second)

    return make


class Composed(nn.Module):
    """An L-conv of fewer parameters, whose matrices W^i are composed, with normalised generators:

    "directed"  W^i = W^1 diag(a_i)    y = W^0 f + W^1 (sum_i a_i o L_i f)
    "low rank"  W^i = U V^i            V^i (C / 4, C)
    """

    def __init__(self, kind: str, ndim: int, ins: int, outs: int, padding_mode: str) -> None:
        super().__init__()
        self.kind, self.generators = kind, named("unit_laplacian", ndim, padding_mode=padding_mode)
        count = self.generators.num_generators
        rank = max(1, ins // 4)
        shapes = {
            "directed": ((outs, ins), (count, 1, ins)),
            "low rank": ((outs, rank), (count, rank, ins)),
        }
        # Each product has the variance of W^0, 1 / ((n_L + 1) fan_in).
        fan_in = {"directed": (ins, count + 1), "low rank": (rank, (count + 1) * ins)}
        self.weight0 = nn.Parameter(torch.randn(outs, ins) / ((count + 1) * ins) ** 0.5)
        self.factors = nn.ParameterList(
            torch.randn(shape) / fan**0.5 for shape, fan in zip(shapes[kind], fan_in[kind], strict=True)
        )

    def forward(self, f: Tensor) -> Tensor:
        left, right = self.factors
        others = left @ right if self.kind == "low rank" else left * right
        return lc.functional.lconv(f, torch.cat([self.weight0[None], others]), self.generators)


def composed(kind: str) -> Make:
    return lambda *arguments: Composed(kind, *arguments)


def one_matrix(ndim: int, ins: int, outs: int, padding_mode: str) -> nn.Module:
    return nets.SeparableLConv(ins, outs, named("unit_laplacian", ndim, padding_mode=padding_mode), bias=False)


CONTENDERS: dict[str, Make] = {
    "conv": conv,
    "separable conv": separable,
    "translation": basis("translation"),
    "laplacian": basis("laplacian"),
    "laplacian, unit": unit("laplacian"),
    "second, unit": unit("second"),
    "directed": composed("directed"),
    "separable": one_matrix,
    "low rank": composed("low rank"),
    "affine": basis("affine"),
    "affine + laplacian, unit": affine_and_laplacian(),
    "affine (from 0) + laplacian, unit": affine_and_laplacian(start=0.0),
    "affine (x / 10) + laplacian, unit": affine_and_laplacian(gain=0.1),
}


def exchange(model: nn.Module, make: Make) -> nn.Module:
    """Puts make(...) in the place of every LConv of the model."""
    return volume.exchange(
        model, lambda layer: make(layer.ndim, layer.in_channels, layer.out_channels, layer.generators.padding_mode)
    )


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    rate: float,
    steps: int,
    batch: int,
    seed: int,
) -> float:
    """AdamW with one cycle; returns the median processor time of a step in seconds (one thread, so that other programs
    on the machine disturb it little)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    random = torch.Generator().manual_seed(seed)
    order, seconds = torch.empty(0, dtype=torch.long), []
    model.train()
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(inputs), generator=random)
        index, order = order[:batch], order[batch:]
        start = time.process_time()
        optimizer.zero_grad()
        loss(model(inputs[index]), targets[index]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds.append(time.process_time() - start)
    model.eval()
    return sorted(seconds)[len(seconds) // 2]


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch: int = 16) -> Tensor:
    return torch.cat([model(part) for part in inputs.split(batch)])


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def accuracy(output: Tensor, target: Tensor) -> float:
    return (output.argmax(1) == target).double().mean().item()


class Store:
    """Runs in a JSON file, written after each."""

    def __init__(self, path: Path, about: str) -> None:
        self.path = path
        fresh = {"about": about, "runs": []}
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else fresh
        self.content |= {
            "date": date.today().isoformat(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((r for r in self.content["runs"] if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, run: dict[str, Any]) -> None:
        """Beside what other processes have added meanwhile."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.content["runs"] = json.loads(self.path.read_text())["runs"]
            self.content["runs"].append(run)
            self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def in_budget(
    name: str,
    about: str,
    contenders: list[str],
    make: Callable[[str], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: Callable[[], tuple[Tensor, Tensor]],
    seconds: float = 1.5,
) -> dict[str, int]:
    """How many steps of each contender fit into as many seconds of processor time. The times of a step are measured
    with --time, in turn, the smallest of 5, and kept in the file of results, where other runs find them."""
    if is_quick():
        return dict.fromkeys(contenders, 4)
    torch.set_num_threads(1)
    path = RESULTS / f"{name}_time.json"
    if "--time" in sys.argv:
        models = {contender: make(contender).train() for contender in contenders}
        inputs, targets = batch()
        found: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(6):
            for contender, model in models.items():
                start = time.process_time()
                loss(model(inputs), targets).backward()
                found[contender].append(time.process_time() - start)
        store = Store(path, about)
        for contender, times in found.items():
            store.add({"contender": contender, "step_ms": 1e3 * min(times[1:])})
    runs = json.loads(path.read_text())["runs"]
    return {run["contender"]: round(1e3 * seconds / run["step_ms"]) for run in runs}


Trial = Callable[[str, float, int, bool], dict[str, Any]]  # (contender, rate, seed, tuning) -> measures


def experiment(
    name: str,
    about: str,
    contenders: list[str],
    trial: Trial,
    *,
    higher: bool = True,
    rates: tuple[float, ...] = RATES,
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS,
    seeds: tuple[int, ...] = SEEDS,
) -> None:
    """Tunes the learning rate of each contender by the measure `validation`, then runs every seed. Command line:
    --quick, --only CONTENDER ..., and --time where a budget of time is set."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="two seeds, one learning rate, few steps; under a minute")
    parser.add_argument("--only", nargs="*", default=contenders, choices=contenders, metavar="CONTENDER")
    parser.add_argument("--long", action="store_true", help="digits: twice the steps, in a results file of their own")
    parser.add_argument("--time", action="store_true", help="measures the time of a step, and trains nothing")
    arguments = parser.parse_args()
    if arguments.time:
        return
    torch.set_num_threads(1)
    quick = arguments.quick
    store = Store(RESULTS / f"{name}{'-quick' if quick else ''}.json", about)
    rates, seeds = ((1e-2,), (0,)) if quick else (rates, seeds)

    def run(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
        key = {"contender": contender, "rate": rate, "seed": seed}
        found = store.find(**key)
        if found is None:
            found = key | trial(contender, rate, seed, tuning)
            store.add(found)
            print(found, flush=True)
        return found

    for contender in arguments.only:
        best = rates[0]
        if len(rates) > 1:
            tuned = {r: [run(contender, r, s, True)["validation"] for s in tuning_seeds] for r in rates}
            best = (max if higher else min)(tuned, key=lambda r: sum(tuned[r]))
        for seed in seeds:
            run(contender, best, seed, False)


def is_quick() -> bool:
    return "--quick" in sys.argv


def is_long() -> bool:
    return "--long" in sys.argv
