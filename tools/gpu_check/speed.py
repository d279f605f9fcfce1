"""Timings by CUDA graphs with a cold second-level cache, as fractions of the floor, beside what else could be taken."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

RATES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def median_seconds(body: Callable[[], Any], repetitions: int = 20) -> float:
    """Of a captured graph, so that the host takes no part; the second-level cache is written over before each."""
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    for start, end in events:
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def machine() -> dict[str, Any]:
    """Versions, copy bandwidth, and rates of matrix products: what floors are made of."""
    import triton

    import lconv_fast

    properties = torch.cuda.get_device_properties(0)
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / median_seconds(lambda source=source, target=target: target.copy_(source))
    del source, target
    rates = {}
    for dtype in RATES:
        n = 8192 if dtype.itemsize == 2 else 4096
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        rates[str(dtype)] = 2 * n**3 / median_seconds(lambda a=a, b=b: a @ b)
    return {
        "lconv_fast": lconv_fast.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "date": time.strftime("%Y-%m-%d"),
        "bandwidth": bandwidth,
        "rates": rates,
    }


class Case(NamedTuple):
    basis: str
    size: tuple[int, ...]
    batch: int
    channels: int
    dtype: torch.dtype
    last: bool = True  # channels-last, else contiguous

    def __str__(self) -> str:
        size, dtype = "x".join(map(str, self.size)), str(self.dtype).removeprefix("torch.")
        return f"{self.basis} {self.batch}x{size} C={self.channels} {dtype}" + ("" if self.last else " contiguous")

    def layer(self):
        import lconv_fast as lc

        make = lc.LConv2d if len(self.size) == 2 else lc.LConv3d
        layer = make(self.channels, self.channels, self.basis, bias=False, learnable=False).cuda().to(self.dtype)
        layer.generators.float()
        return layer

    def data(self) -> tuple[Tensor, Tensor]:
        shape = (self.batch, *self.size, self.channels)
        f, g = (torch.randn(shape, device="cuda").to(self.dtype).movedim(-1, 1) for _ in range(2))
        return (f, g) if self.last else (f.contiguous(), g.contiguous())


def composed(x: Tensor, weight: Tensor, v: Tensor, scale: float) -> Tensor:
    """The affine layer in plain PyTorch: slices, multiplications, one einsum."""
    ndim = x.dim() - 2
    padded = torch.nn.functional.pad(x, [1, 1] * ndim)
    middle = [slice(1, -1)] * ndim
    coordinates = torch.meshgrid(
        *[(torch.arange(n, device=x.device) - (n - 1) / 2) / scale for n in x.shape[2:]], indexing="ij"
    )
    differences = []
    for a in range(ndim):
        low, high = middle.copy(), middle.copy()
        low[a], high[a] = slice(0, -2), slice(2, None)
        differences.append((padded[(..., *high)] - padded[(..., *low)]) / 2)
    terms = [x]
    for i in range(v.shape[0]):
        term = 0
        for a in range(ndim):
            field = v[i, a, -1] + sum(v[i, a, b] * coordinates[b] for b in range(ndim))
            term = term + field.to(x.dtype) * differences[a]
        terms.append(term)
    return torch.einsum("rnc...,roc->no...", torch.stack(terms), weight)


DEFAULT = "unit_laplacian"
CASES = [
    *[
        Case(basis, (1024, 1024), 8, channels, torch.bfloat16)
        for basis in ("se", "affine", "translation")
        for channels in (64, 32, 128, 16)
    ],
    *[Case(basis, (128, 128, 128), 2, c, torch.bfloat16) for basis in ("se", "translation") for c in (32, 64)],
    # A layer's default generators, and PyTorch's default layout.
    *[Case(DEFAULT, (1024, 1024), 8, c, torch.bfloat16, last) for c in (64, 32, 128) for last in (True, False)],
    *[Case(DEFAULT, (128, 128, 128), 2, c, torch.bfloat16, last) for c in (32, 64) for last in (True, False)],
    Case("se", (1024, 1024), 8, 64, torch.bfloat16, False),
    Case("se", (1024, 1024), 4, 64, torch.float32),
    Case("se", (1024, 1024), 8, 256, torch.bfloat16),
]


def ours(case: Case, machine: dict[str, Any]) -> dict[str, Any]:
    layer, (x, u) = case.layer(), case.data()
    count = layer.generators.num_generators
    moved, points = x.numel() * x.element_size(), case.batch * math.prod(case.size)
    bandwidth, rate = machine["bandwidth"], machine["rates"][str(case.dtype)]
    flops = 2 * points * (count + 1) * case.channels**2
    x.requires_grad_()

    def gradients(*inputs: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(layer(x), inputs, u)

    with torch.no_grad():
        forward = median_seconds(lambda: layer(x))
    seconds = {"forward": forward}
    for name, inputs in (("input gradient", (x,)), ("weight gradient", (layer.weight,)), ("both", (x, layer.weight))):
        seconds[name] = median_seconds(gradients(*inputs)) - forward
    floors = {name: max((3 if name == "both" else 2) * moved / bandwidth, flops / rate) for name in seconds}
    floors["both"] = max(floors["both"], 2 * flops / rate)
    return {
        "n_L": count,
        **{f"{name} ms": value * 1e3 for name, value in seconds.items()},
        **{f"{name} of floor": floors[name] / value for name, value in seconds.items()},
    }


def convolution(case: Case) -> dict[str, Any]:
    """By cuDNN, 3 points along each axis."""
    torch.backends.cudnn.benchmark = True
    make = torch.nn.Conv2d if len(case.size) == 2 else torch.nn.Conv3d
    layout = torch.channels_last if len(case.size) == 2 else torch.channels_last_3d
    layout = layout if case.last else torch.contiguous_format
    layer = make(case.channels, case.channels, 3, padding=1, bias=False).cuda().to(case.dtype).to(memory_format=layout)
    x, u = case.data()
    with torch.no_grad():
        forward = median_seconds(lambda: layer(x))
    x.requires_grad_()
    both = median_seconds(lambda: torch.autograd.grad(layer(x), (x, layer.weight), u)) - forward
    return {"forward ms": forward * 1e3, "both ms": both * 1e3}


def composed_form(case: Case) -> dict[str, Any]:
    layer, (x, _) = case.layer(), case.data()
    v, scale = layer.generators.coefficients(), (max(case.size) - 1) / 2
    with torch.no_grad():
        expected, found = layer(x[:1]), composed(x[:1], layer.weight, v, scale)
        error = float((expected.float() - found.float()).norm() / expected.float().norm())
        best = torch.compile(composed, mode="max-autotune-no-cudagraphs")
        return {
            "error": error,
            "right": error < 2e-2,
            "eager forward ms": 1e3 * median_seconds(lambda: composed(x, layer.weight, v, scale)),
            "compiled forward ms": 1e3 * median_seconds(lambda: best(x, layer.weight, v, scale)),
        }


def prepared(kind: str) -> dict[str, Any]:
    """Against the generators as matrices made ready beforehand: torch.sparse, and dense on the paper's small images."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import lconv_fast as lc
    from bench import contenders
    from bench.cases import Case as BenchCase

    shapes = {"sparse": ((1024, 1024), 8, 32), "dense": ((64, 64), 32, 64)}
    case = BenchCase("affine", *shapes[kind])
    with torch.device("cuda"):
        generators = case.generators().cuda().requires_grad_(False)
        x, weight, _ = case.tensors()
        numbers = contenders.numbers_of(case, generators)
        other = getattr(contenders, kind)(case, numbers)
    with torch.no_grad():
        found, expected = lc.functional.lconv(x, weight, generators), other(x, weight, numbers)
        error = float((found - expected).norm() / expected.norm())
        return {
            "error": error,
            "right": error < 1e-3,
            "forward ms": 1e3 * median_seconds(lambda: lc.functional.lconv(x, weight, generators)),
            "its forward ms": 1e3 * median_seconds(lambda: other(x, weight, numbers)),
        }
