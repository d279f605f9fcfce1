"""Verifies every contender, then times all of them, interleaved in one process.

Times include the allocation of results. Only ratios travel between machines, so ratios are what is reported; the raw
seconds stand in the JSON file.
"""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import lconv_fast as lc
from lconv_fast import _C

from .cases import Case
from .contenders import Contender, Numbers, composed, contenders, in_layout, numbers_of

TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}  # relative RMS; contenders in bfloat16 round in between
OPERATORS = ("forward", "input gradient", "weight gradient", "generator gradient", "training step")


@dataclass
class Row:
    """One case and one operator: all contenders."""

    case: str
    kind: str
    points: int
    channels: int
    generators: int
    operator: str
    flops: int
    bytes: int  # of arguments and results, each once
    seconds: dict[str, float]  # medians
    quantiles: dict[str, list[float]]  # 20 and 80 percent
    fraction_of_peak: float  # of lconv_fast, of the measured rate of multiply-adds
    fraction_of_copy: float  # of lconv_fast, of the measured bandwidth of a copy
    peak_memory: dict[str, int]  # bytes beyond what was there before
    held_for_backward: dict[str, int]  # bytes beyond arguments and parameters
    intervals: dict[str, list[float]]  # of each ratio, 95 percent, from the rounds' own ratios
    same: list[str]
    opponent: str | None  # the fastest that computes the same

    @property
    def ratios(self) -> dict[str, float]:
        ours = self.seconds["lconv_fast"]
        return {name: t / ours for name, t in self.seconds.items() if name != "lconv_fast"}


def job(operator: str, contender: Contender, x: Tensor, weight: Tensor, numbers: Numbers, g: Tensor) -> Callable:
    """A function that runs the operator once and returns its results."""
    weight = weight if contender.weight is None else contender.weight
    x, g = in_layout(x, contender.channels_last), in_layout(g, contender.channels_last)
    if operator == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (contender.run(x, weight, numbers),)

        return forward
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    if g.shape != (shape := contender.run(x, weight, numbers).shape):
        g = g.movedim(1, -1).reshape(shape)  # torch.mm works on points
    learned = numbers if contender.learns else ()
    if operator == "training step":

        def step() -> tuple[Tensor, ...]:
            y = contender.run(x, weight, numbers)
            return (y.detach(), *torch.autograd.grad(y, (x, weight, *learned), g))

        return step
    wanted = {"input gradient": (x,), "weight gradient": (weight,), "generator gradient": learned}[operator]
    needs = [(t, t.requires_grad) for t in (x, weight, *numbers)]
    for t, _ in needs:
        t.requires_grad_(any(t is w for w in wanted))
    y = contender.run(x, weight, numbers)
    for t, before in needs:
        t.requires_grad_(before)
    return lambda: torch.autograd.grad(y, wanted, g, retain_graph=True)


def takes_part(operator: str, contender: Contender) -> bool:
    return contender.learns or operator not in ("generator gradient",)


def error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


def verify(case: Case, operator: str, entrants: list[Contender], tensors: tuple, numbers: Numbers) -> None:
    """Raises where a contender's results differ from the float64 reference: no time is taken of a wrong result."""
    x, weight, g = tensors
    wide = tuple(n.detach().double().requires_grad_() for n in numbers)
    reference = Contender("reference", composed(case))
    truth = job(operator, reference, x.double(), weight.double(), wide, g.double())()
    for contender in entrants:
        if contender.same:
            results = job(operator, contender, x, weight, numbers, g)()
            worst = max(error(r, t) for r, t in zip(results, truth, strict=False))
            if not worst < TOLERANCE[case.dtype]:
                raise ArithmeticError(f"{case}, {operator}: {contender.name} is wrong by {worst:.1e} (relative RMS)")


def interleaved(jobs: dict[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Rounds of all jobs, one after the other, for about this long: `least` of them at least, 50 at most."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for run in jobs.values():
        run()
    start = time.perf_counter()
    while (done := len(next(iter(times.values())))) < least or (done < 50 and time.perf_counter() - start < seconds):
        for name, run in jobs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return times


def median_interval(values: list[float]) -> list[float]:
    """The 95 % interval of the median, between two of the sorted values, whatever their distribution."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * math.sqrt(n)  # 1.96 standard deviations of a count of n fair coins
    low, high = math.floor((n + 1) / 2 - reach), math.ceil((n + 1) / 2 + reach)  # counted from 1
    return [ordered[max(low, 1) - 1], ordered[min(high, n) - 1]]


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes by which resident memory grows at most while this runs; 0 where the system does not tell (not Linux)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0

    def kib(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", status.read_text())
        return int(found[1]) if found else 0

    gc.collect()
    if hasattr(c := ctypes.CDLL(None), "malloc_trim"):
        c.malloc_trim(0)  # memory that the allocator kept for reuse would hide what this needs
    try:
        clear.write_text("5")  # resets the high-water mark
    except OSError:
        return 0
    before = kib("VmRSS")
    run()
    return max(0, kib("VmHWM") - before) * 1024


def held_for_backward(contender: Contender, x: Tensor, weight: Tensor, numbers: Numbers) -> int:
    """Bytes that autograd keeps of a forward pass, beyond the arguments."""
    x = x.detach().requires_grad_()
    weight = (weight if contender.weight is None else contender.weight).detach().requires_grad_()
    known = {t.untyped_storage().data_ptr() for t in (x, weight, *numbers)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = contender.run(x, weight, numbers)
    del y
    return sum(kept.values())


def machine(threads: int) -> dict:
    torch.set_num_threads(threads)
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    copies = interleaved({"copy": lambda: target.copy_(source), "fresh": lambda: source.clone()}, 1.0)
    return {
        "lconv_fast": lc.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": model,
        "cpu_capability": _C.cpu_capability(),
        "threads": threads,
        "multiply_add_rate": max(_C.fused_multiply_add_rate(0.2) for _ in range(3)) * threads,
        "copy_bandwidth": 2 * source.nbytes / min(copies["copy"]),
        "fresh_copy_bandwidth": 2 * source.nbytes / min(copies["fresh"]),  # into memory that was not touched before
        "huge_pages": _C.huge_page_policy(),
    }


def measure(case: Case, operators: Iterable[str], place: dict, compiled: bool, seconds: float) -> list[Row]:
    """place: what `machine` returned."""
    torch.manual_seed(0)
    generators = case.generators()
    numbers = numbers_of(case, generators)
    x, weight, g = case.tensors()
    everybody = contenders(case, numbers, generators, compiled)
    held = {c.name: held_for_backward(c, x, weight, numbers) for c in everybody if c.same}
    rows = []
    for operator in operators:
        entrants = [c for c in everybody if takes_part(operator, c)]
        verify(case, operator, entrants, (x, weight, g), numbers)
        jobs = {c.name: job(operator, c, x, weight, numbers, g) for c in entrants}
        times = interleaved(jobs, seconds)
        memory = {name: peak_memory(run) for name, run in jobs.items()}
        median = {name: statistics.median(t) for name, t in times.items()}
        same = [c.name for c in entrants if c.same]
        opponents = [name for name in same if name != "lconv_fast"]
        flops = case.flops * {"training step": 3, "generator gradient": 1}.get(operator, 1)
        data = {"training step": 2 * (x.nbytes + g.nbytes)}.get(operator, x.nbytes + g.nbytes)
        rows.append(
            Row(
                case=str(case),
                kind=case.kind,
                points=case.points,
                channels=case.channels,
                generators=case.count,
                operator=operator,
                flops=flops,
                bytes=data,
                seconds=median,
                quantiles={n: [statistics.quantiles(t, n=5)[k] for k in (0, 3)] for n, t in times.items()},
                fraction_of_peak=flops / median["lconv_fast"] / place["multiply_add_rate"],
                fraction_of_copy=data / median["lconv_fast"] / place["copy_bandwidth"],
                peak_memory=memory,
                held_for_backward=held,
                intervals={
                    name: median_interval([a / b for a, b in zip(t, times["lconv_fast"], strict=True)])
                    for name, t in times.items()
                    if name != "lconv_fast"
                },
                same=same,
                opponent=min(opponents, key=median.__getitem__) if opponents else None,
            )
        )
    return rows


def as_json(place: dict, rows: list[Row]) -> dict:
    return {"machine": place, "rows": [{**asdict(row), "ratios": row.ratios} for row in rows]}
