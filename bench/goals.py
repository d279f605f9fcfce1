"""The goals of the CPU page (docs/performance.md): each row is a ratio of two jobs, timed in turn in one process.

    python -m lconv_fast_bench.goals --out FOLDER [--threads 1] [--only TEXT] [--seconds 1.5] [--networks]
    python -m lconv_fast_bench.goals --table FOLDER
    python -m lconv_fast_bench.goals --compare FOLDER OTHER

Results are verified against a float64 reference before any time is taken. A row is measured several times, each time
with fresh tensors: its ratio is the geometric mean, its interval the one in which another such measurement lies with
95 %. Rows are kept by configuration (threads, instruction set, huge pages), so that pieces of a run add up in FOLDER;
LCONV_FAST_CPU_CAPABILITY and LCONV_FAST_HUGE_PAGES choose the other configurations.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import lconv_fast as lc
from lconv_fast import _C

from . import networks
from .cases import Case
from .contenders import Contender, in_layout, numbers_of, with_numbers
from .measure import TOLERANCE, error, interleaved, job, machine, verify

REPEATS = 4
STUDENT = {1: math.inf, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # two-sided 95 %, of so many measurements
VERIFIED: set[tuple] = set()
Jobs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Goal:
    """One row: ours is the first job; the ratio is the time of the fastest other one, or of the roof, over ours."""

    group: str
    name: str
    least: float
    make: Callable[[], Jobs]
    roof: float = 0  # seconds that arithmetic takes at least: the other job is then a copy


def of_layer(case: Case, operator: str, stride: int = 1, learn: bool = False) -> Callable[[], object]:
    """The layer's job, verified once; numbers of the generators take part in steps if learnt."""
    torch.manual_seed(0)
    generators = case.generators()
    numbers = numbers_of(case, generators)
    for n in numbers:
        n.requires_grad_(learn)
    x, weight, g = case.tensors()
    run = unstrided = with_numbers(case, generators)
    if stride > 1:
        spatial = tuple((size - 1) // stride + 1 for size in case.size)
        g = in_layout(torch.randn(case.batch, case.channels, *spatial, dtype=case.dtype), case.channels_last)

        def run(x, weight, numbers):
            return lc.functional.lconv(x, weight, generators, stride=stride)

    ours = Contender("lconv_fast", run, learns=learn)
    known = (case, operator, stride, learn)
    if known in VERIFIED:
        return job(operator, ours, x, weight, numbers, g)
    verify(case, operator if stride == 1 else "forward", [replace(ours, run=unstrided)], (x, weight, g), numbers)
    if stride > 1:
        with torch.no_grad():
            every = (slice(None), slice(None), *[slice(None, None, stride)] * case.ndim)
            far = error(run(x, weight, numbers), unstrided(x, weight, numbers)[every].double())
        if not far < TOLERANCE[case.dtype]:
            raise ArithmeticError(f"{case}, stride {stride}: wrong by {far:.1e} (relative RMS)")
    VERIFIED.add(known)
    return job(operator, ours, x, weight, numbers, g)


def of_convolution(case: Case, operator: str) -> Jobs:
    """Three wide, in both layouts; the operator's own tensors."""
    convolve = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[case.ndim]
    x, _, g = case.tensors()
    kernel = torch.randn(case.channels, case.channels, *[3] * case.ndim, dtype=case.dtype) / (9 * case.channels) ** 0.5
    jobs = {}
    for last in (True, False):
        name = f"convolution, {'channels-last' if last else 'contiguous'}"
        contender = Contender(
            name,
            lambda x, w, n: convolve(x, w, padding=1),
            learns=False,
            weight=in_layout(kernel, last),
            channels_last=last,
        )
        jobs[name] = job(operator, contender, x, kernel, (), g)
    return jobs


def against_convolution(case: Case, operator: str, learn: bool = False) -> Callable[[], Jobs]:
    return lambda: {"lconv_fast": of_layer(case, operator, learn=learn), **of_convolution(case, operator)}


def against_copy(case: Case, operator: str) -> Callable[[], Jobs]:
    def make() -> Jobs:
        x, _, _ = case.tensors()
        target = torch.empty_like(x)
        # A gradient of the weight reads two arrays and writes none: a copy into memory that is there.
        copy = (lambda: target.copy_(x)) if operator == "weight gradient" else x.clone
        return {"lconv_fast": of_layer(case, operator), "copy": copy}

    return make


def small_call(size: int, channels: int) -> Callable[[], Jobs]:
    def make() -> Jobs:
        x = torch.randn(1, channels, size, size).to(memory_format=torch.channels_last)
        calls: Jobs = {}
        for name, layer in (
            ("lconv_fast", lc.LConv2d(channels, channels, "se")),
            ("nn.Conv2d", nn.Conv2d(channels, channels, 3, padding=1)),
        ):

            def call(layer: nn.Module = layer) -> None:
                with torch.no_grad():
                    for _ in range(50):
                        layer(x)

            calls[name] = call
        return calls

    return make


def goals() -> Iterator[Goal]:
    """All rows, the machine's peak rate aside."""
    steps = ("forward", "training step")
    for channels, forward, gradient in ((8, 0.55, 0.45), (16, 0.75, 0.65), (32, 0.88, 0.80)):
        case = Case("affine", (512, 512), 1, channels)
        for operator in ("forward", "input gradient", "weight gradient"):
            least = forward if operator == "forward" else gradient
            yield Goal("of the roof", f"{case}, {operator}", least, against_copy(case, operator), case.flops)
    for channels, least in ((8, 1.6), (16, 1.8), (32, 2.0), (64, 2.0)):
        case = Case("affine", (512, 512) if channels < 64 else (256, 256), 1, channels)
        for operator in steps:
            yield Goal("convolution 2D", f"{case}, {operator}", least, against_convolution(case, operator))
    for basis in ("rotation", "affine"):
        for channels in (16, 32):
            case = Case("affine", (48, 48, 48), 1, channels, basis)
            for operator in steps:
                yield Goal("convolution 3D", f"{case}, {operator}", 3.0, against_convolution(case, operator))
    for size, channels in (
        [((512, 512), c) for c in (8, 16, 32)] + [((256, 256), 64)] + [((64,) * 3, c) for c in (8, 16, 32)]
    ):
        basis = "se" if len(size) == 2 else "rotation"
        first, last = (Case("affine", size, 1, channels, basis, channels_last=last) for last in (False, True))
        for operator in steps:

            def layouts(first: Case = first, last: Case = last, operator: str = operator) -> Jobs:
                return {"lconv_fast": of_layer(first, operator), "channels-last": of_layer(last, operator)}

            yield Goal("contiguous", f"{first}, {operator}", 1 / 1.1, layouts)
    for size, channels, least in ((1, 16, 1 / 1.5), (16, 16, 1 / 1.5), (64, 32, 1.0)):
        yield Goal("small calls", f"{size}x{size}, C={channels}, a call", least, small_call(size, channels))
    pairs = "bf16" in _C.cpu_capability() or "amx" in _C.cpu_capability()
    for dtype, least in ((torch.bfloat16, 1.6 if pairs else 1.0), (torch.float16, 1.0)):
        for channels in (16, 32, 64):
            half = Case("affine", (256, 256), 1, channels, dtype=dtype)
            wide = Case("affine", (256, 256), 1, channels)
            for operator in steps:

                def types(half: Case = half, wide: Case = wide, operator: str = operator) -> Jobs:
                    return {"lconv_fast": of_layer(half, operator), "float32": of_layer(wide, operator)}

                yield Goal("half types", f"{half}, {operator}", least, types)
    for stride in (2, 4):
        case = Case("affine", (256, 256), 1, 32)
        for operator in ("forward", "input gradient", "weight gradient"):

            def strides(stride: int = stride, operator: str = operator, case: Case = case) -> Jobs:
                return {"lconv_fast": of_layer(case, operator, stride), "stride 1": of_layer(case, operator)}

            yield Goal("strides", f"{case}, stride {stride}, {operator}", stride**2, strides)
    for kind in ("field", "stencil"):
        for channels in (16, 32, 64):
            case = Case(kind, (256, 256), 1, channels)
            make = against_convolution(case, "training step", learn=True)
            yield Goal("learnt generators", f"{case}, training step", 1.5, make)


def measure(goal: Goal, peak: float, seconds: float, repeats: int = REPEATS) -> dict:
    """The row's ratio, the interval of another measurement, and the medians in seconds."""
    ratios, medians = [], {}
    for _ in range(repeats):
        times = interleaved(goal.make(), seconds / repeats, least=3)
        median = {name: statistics.median(t) for name, t in times.items()}
        other = min((t for name, t in median.items() if name != "lconv_fast"), default=math.inf)
        ratios.append(max(other, goal.roof / peak) / median["lconv_fast"])
        for name, t in median.items():
            medians.setdefault(name, []).append(t)
    return {
        "group": goal.group,
        "name": goal.name,
        "goal": goal.least,
        **interval(ratios),
        "seconds": {name: statistics.median(t) for name, t in medians.items()},
    }


def interval(ratios: list[float]) -> dict:
    """The geometric mean, and where one more ratio lies with 95 %: Student's interval of the logarithms."""
    logs = [math.log(r) for r in ratios]
    mean, count = statistics.fmean(logs), len(logs)
    spread = STUDENT[count] * statistics.stdev(logs) * math.sqrt(1 + 1 / count) if count > 1 else math.inf
    return {"ratio": math.exp(mean), "interval": [math.exp(mean - spread), math.exp(mean + spread)]}


def measure_networks(seconds: float, only: str) -> Iterator[dict]:
    """Training steps of whole networks: time and peak memory."""
    for name in networks.NETWORKS:
        for compiled in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                title = f"{name}{', compiled' if compiled else ''}, {str(dtype).removeprefix('torch.')}"
                if only not in title:
                    continue
                row = networks.measure(name, dtype, 0.5 if name == "unet3d" else 1.0, "translation", compiled, seconds)
                memory = row["peak_memory"]
                yield {
                    "group": "networks",
                    "name": f"{row['network']}, {row['dtype']}",
                    "goal": 2.0 if "3d" in name else 1.5,
                    "ratio": row["ratio"],
                    "interval": row["interval"],
                    "seconds": row["seconds"],
                    "memory": memory["lconv_fast"] / max(1, memory["nn.Conv"]),
                }


def configuration(threads: int) -> str:
    pages = ", without huge pages" if _C.huge_page_policy() == "off" else ""
    return f"{threads} thread{'s' if threads > 1 else ''}, {_C.cpu_capability()}{pages}"


def load(folder: Path) -> dict:
    file = folder / "goals.json"
    return json.loads(file.read_text()) if file.exists() else {"configurations": {}, "rows": {}}


def table(found: dict) -> str:
    """Markdown, a column for each configuration; rows that miss their goal by most first."""
    configurations = list(found["rows"])
    keys = dict.fromkeys(key for rows in found["rows"].values() for key in rows)

    def cell(row: dict | None) -> str:
        if row is None:
            return ""
        low, high = row["interval"]
        memory = f", memory {row['memory']:.2f}" if "memory" in row else ""
        missed = "**" if row["ratio"] < row["goal"] else ""
        return f"{missed}{row['ratio']:.2f}{missed} [{low:.2f}, {high:.2f}]{memory}"

    def distance(key: str) -> float:
        rows = [rows[key] for rows in found["rows"].values() if key in rows]
        return min(row["ratio"] / row["goal"] for row in rows)

    lines = [f"| row | goal | {' | '.join(configurations)} |", "| --- " * (2 + len(configurations)) + "|"]
    for key in sorted(keys, key=distance):
        of_key = [found["rows"][name].get(key) for name in configurations]
        goal = next(row["goal"] for row in of_key if row)
        lines.append(f"| {key} | {goal:.2f} | {' | '.join(map(cell, of_key))} |")
    return "\n".join(lines)


def compare(first: dict, second: dict) -> tuple[int, int]:
    """How many ratios of the second run lie in the first one's intervals, and of how many."""
    inside = total = 0
    for name, rows in first["rows"].items():
        for key, row in rows.items():
            again = second["rows"].get(name, {}).get(key)
            if again is None:
                continue
            low, high = row["interval"]
            total += 1
            inside += low <= again["ratio"] <= high
            if not low <= again["ratio"] <= high:
                print(f"{name}: {row['group']}: {row['name']}: {again['ratio']:.2f} outside {low:.2f} to {high:.2f}")
    return inside, total


def run(out: Path, threads: int, only: str, seconds: float, whole_networks: bool) -> None:
    place = machine(threads)
    config = configuration(threads)
    if whole_networks:
        rows = measure_networks(max(seconds, 10.0), only)
    else:
        chosen = [goal for goal in goals() if only in f"{goal.group}: {goal.name}"]
        rows = (measure(goal, place["multiply_add_rate"], seconds) for goal in chosen)
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        found = load(out)  # after each row: a run that is cut off keeps what it has
        found["configurations"][config] = {**place, "date": datetime.date.today().isoformat()}
        found["rows"].setdefault(config, {})[f"{row['group']}: {row['name']}"] = row
        (out / "goals.json").write_text(json.dumps(found, indent=1))
        low, high = row["interval"]
        print(
            f"{row['group']}: {row['name']}: {row['ratio']:.2f} [{low:.2f}, {high:.2f}], goal {row['goal']:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder of goals.json, which is added to")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="rows whose group and name hold this text")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each row")
    parser.add_argument("--networks", action="store_true", help="whole networks, in the place of layers")
    parser.add_argument("--table", type=Path, help="prints what a folder holds, as Markdown")
    parser.add_argument(
        "--compare", type=Path, nargs=2, help="whether the second run lies in the first one's intervals"
    )
    given = parser.parse_args()
    if given.table:
        print(table(load(given.table)))
    elif given.compare:
        inside, total = compare(*map(load, given.compare))
        print(f"{inside} of {total} ratios of the second run lie in the first one's intervals")
    elif given.out:
        run(given.out, given.threads, given.only, given.seconds, given.networks)
    else:
        parser.error("expected --out, --table or --compare")


if __name__ == "__main__":
    main()
