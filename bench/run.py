"""python bench/run.py [--full] [--threads N] [--out FILE]: verifies every contender, then times all, interleaved.

Times include the allocation of results. Only ratios travel between machines, so only ratios are printed: the speed of
lconv_fast relative to each contender (above 1: lconv_fast is faster), and the fraction of the machine's own product
rate, measured in the same run with torch.mm on 2048 x 2048 matrices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cases import FULL, SMALL, Case
from contenders import Contender, composed, contenders
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lconv_fast as lc
from lconv_fast import _C

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative RMS; contenders in bfloat16 round in between


def forward(contender: Contender, x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (contender.run(x, weight),)


def backward(contender: Contender, x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: a training step without the optimizer."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = contender.run(x, weight)
    return (y, *torch.autograd.grad(y, (x, weight), g))


OPERATORS = {"forward": forward, "forward + backward": backward}


def error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def peak_rate() -> float:
    a, b = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / min(interleaved({"mm": lambda: a @ b}, 5)["mm"])


def measure(case: Case, operator: str, repeats: int) -> dict:
    function = OPERATORS[operator]
    torch.manual_seed(0)
    generators = case.generators()
    x, weight, g = case.tensors()
    truth = function(
        Contender("reference", composed(case, generators, torch.float64)), x.double(), weight.double(), g.double()
    )
    entrants = contenders(case, generators)
    if operator != "forward":
        entrants = [c for c in entrants if c.same or c.name.startswith("conv")]
    for contender in entrants:
        if contender.same:
            results = function(contender, x, weight, g)
            worst = max(error(r, t) for r, t in zip(results, truth, strict=True))
            if not worst < TOLERANCE[case.dtype]:
                raise SystemExit(f"{case}, {operator}: {contender.name} is wrong: relative RMS error {worst:.1e}")
    times = interleaved(
        {c.name: (lambda c=c: function(c, x, weight if c.weight is None else c.weight, g)) for c in entrants},
        repeats,
    )
    median = {name: statistics.median(t) for name, t in times.items()}
    ours = median["lconv_fast"]
    opponents = {c.name: median[c.name] for c in entrants if c.same and c.name != "lconv_fast"}
    fastest = min(opponents, key=opponents.__getitem__)
    return {
        "case": str(case),
        "operator": operator,
        "ratios": {name: t / ours for name, t in median.items() if name != "lconv_fast"},
        "quantiles": {name: [float(q) for q in statistics.quantiles(t, n=5)][::3] for name, t in times.items()},
        "fastest_opponent": fastest,
        "flops_per_second": case.flops * (1 if operator == "forward" else 3) / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peak = peak_rate()
    rows = []
    table = Table(title=f"lconv_fast {lc.__version__}, {_C.cpu_capability()}, {options.threads} thread(s)")
    for column in (
        "case",
        "operator",
        "of torch.mm's rate",
        "against the fastest that computes the same",
        "yardsticks",
    ):
        table.add_column(column)
    for case in track(FULL if options.full else SMALL):
        for operator in OPERATORS:
            row = measure(case, operator, options.repeats)
            row["fraction_of_mm_rate"] = row["flops_per_second"] / peak
            rows.append(row)
            ratios, fastest = row["ratios"], row["fastest_opponent"]
            others = [f"{name} {r:.2f}" for name, r in ratios.items() if name != fastest]
            table.add_row(
                str(case),
                operator,
                f"{row['fraction_of_mm_rate']:.2f}",
                f"{fastest} {ratios[fastest]:.2f}",
                "; ".join(others),
            )
    console = Console(width=180)
    console.print(table)
    slower = [(r["case"], r["operator"], n, q) for r in rows for n, q in r["ratios"].items() if q < 1]
    console.print("Where lconv_fast is slower:", "nowhere" if not slower else "")
    for case_name, operator, name, ratio in slower:
        console.print(f"  {case_name}, {operator}: {ratio:.2f} of the speed of {name}")
    if options.out:
        machine = {
            "lconv_fast": lc.__version__,
            "torch": torch.__version__,
            "cpu_capability": _C.cpu_capability(),
            "threads": options.threads,
            "processor": platform.processor() or platform.machine(),
        }
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
