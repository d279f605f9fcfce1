"""One script for a machine with a GPU: is everything right, and how fast is it?

    python tools/gpu_check.py --out DIR [--budget 540]

In this order, a JSON row flushed after each step: versions, copy bandwidth and matrix product rates; every kernel and
gradient against float64 on the CPU, twice for equal bits; opcheck, gradcheck, CUDA graphs, streams, tensors past 2^31
elements; a training step of the largest examples; then timings with a cold second-level cache as fractions of the
floor, beside what else a user could take. Builds the compiled module first where it is missing. The exit code is 1 for
a wrong result, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))


def built() -> None:
    """Makes `import lconv_fast` work: the compiled module in place, without a network."""
    try:
        import lconv_fast  # noqa: F401
    except ImportError:
        options = ["--no-build-isolation", "--no-deps", "--no-index", "-e", str(ROOT)]
        command = [sys.executable, "-m", "pip", "install", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"could not build the compiled module:\n{done.stdout}\n{done.stderr}")
        import importlib

        importlib.invalidate_caches()


class Record:
    """Rows of results, in a file that is whole after each."""

    def __init__(self, out: Path, budget: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.rows, self.end = out / "gpu_check.json", [], time.monotonic() + budget
        self.wrong = 0

    def add(self, section: str, **values: Any) -> None:
        if values.get("right") is False:
            self.wrong += 1
        self.rows.append({"section": section, **values})
        self.file.write_text(json.dumps(self.rows, indent=0))
        print(section, " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()))
        sys.stdout.flush()

    def left(self) -> float:
        return self.end - time.monotonic()


def guarded(record: Record, section: str, name: str, body: Callable[[], dict[str, Any]]) -> None:
    """A step's values; an exception is a wrong result and does not stop the rest."""
    if record.left() < 0:
        record.add(section, name=name, skipped="no time left")
        return
    try:
        record.add(section, name=name, **body())
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        record.add(section, name=name, out_of_memory=str(error).splitlines()[0])
    except Exception as error:
        record.add(section, name=name, right=False, error=f"{type(error).__name__}: {error}"[:600])
        traceback.print_exc()


# ---- the machine ----------------------------------------------------------------------------------------------------


def median_seconds(body: Callable[[], Any], repetitions: float = 60) -> float:
    """With the second-level cache cleared before each run."""
    from triton.testing import do_bench

    return do_bench(body, warmup=15, rep=repetitions, return_mode="median") / 1e3


def machine(record: Record) -> tuple[float, dict[torch.dtype, float]]:
    import triton

    import lconv_fast

    properties = torch.cuda.get_device_properties(0)
    record.add(
        "machine",
        lconv_fast=lconv_fast.__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=triton.__version__,
        python=sys.version.split()[0],
        gpu=properties.name,
        multiprocessors=properties.multi_processor_count,
        memory=properties.total_memory,
        date=time.strftime("%Y-%m-%d"),
    )
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / median_seconds(lambda a=source, b=target: b.copy_(a))
    record.add("machine", copy_bytes_per_second=bandwidth)
    del source, target
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        n = 8192 if dtype.itemsize == 2 else 4096
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        rates[dtype] = 2 * n**3 / median_seconds(lambda a=a, b=b: a @ b)
        record.add("machine", dtype=str(dtype), products_per_second=rates[dtype])
    return bandwidth, rates


# ---- correctness ----------------------------------------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}


def layer_gradients(problem, dtype, device, size, stride, groups, last, ins, outs) -> list[Tensor]:
    """The layer's output and all its gradients, from the same numbers on every device and in every type."""
    import lconv_fast as lc

    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        # Rounded to the type under test first, so that all compute with the same numbers.
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    numbers = [n.to(torch.float32 if dtype != torch.float64 else dtype) for n in problem.numbers()]
    half = dtype in (torch.float16, torch.bfloat16)
    wide = torch.float64 if device == "cpu" else (torch.float32 if half else dtype)
    generators = problem.make([n.to(device=device, dtype=wide) for n in numbers], learnable=True)
    x, w, b = random(2, ins * groups, *size), random(problem.count + 1, outs * groups, ins), random(outs * groups)
    w = w / (ins * (problem.count + 1)) ** 0.5
    u = random(2, outs * groups, *[(n - 1) // stride + 1 for n in size])
    place = {"device": device, "dtype": torch.float64 if device == "cpu" else dtype}
    x, w, b, u = (t.to(dtype).to(**place) for t in (x, w, b, u))
    if last:
        x, u = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, u))
    leaves = [t.requires_grad_() for t in (x, w, b)] + list(generators.parameters())
    y = lc.functional.lconv(x, w, generators, b, stride=stride, groups=groups)
    return [y.detach(), *torch.autograd.grad(y, leaves, u)]


@dataclass(frozen=True)
class Check:
    """A layer whose output and gradients are compared with those in float64."""

    kind: str
    ndim: int
    mode: str
    accuracy: int
    count: int
    dtype: torch.dtype
    ins: int
    outs: int
    stride: int = 1
    groups: int = 1
    last: bool = True
    larger: bool = False  # several tiles of columns and strips of rows

    def __str__(self) -> str:
        dtype, larger = str(self.dtype).removeprefix("torch."), " larger" if self.larger else ""
        return (
            f"{self.kind} {self.ndim}D {self.mode} order {self.accuracy} n_L={self.count} C={self.ins}>{self.outs} "
            f"{dtype} stride {self.stride} groups {self.groups}{larger}"
        )

    def run(self) -> dict[str, Any]:
        from problems import Problem, relative_rms

        class Larger(Problem):
            @property
            def grid(self) -> tuple[int, ...]:
                return {2: (67, 150), 3: (5, 6, 70)}[self.ndim]

        torch.set_num_threads(1)
        problem = (Larger if self.larger else Problem)(self.kind, self.ndim, self.mode, self.accuracy, self.count)
        arguments = (problem.grid, self.stride, self.groups, self.last, self.ins, self.outs)
        found, again = (layer_gradients(problem, self.dtype, "cuda", *arguments) for _ in range(2))
        truth = layer_gradients(problem, self.dtype, "cpu", *arguments)
        errors = [relative_rms(a.cpu(), b) for a, b in zip(found, truth, strict=True)]
        same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        # The few numbers of an affine gradient are sums over all points that may cancel: rounding weighs more.
        limits = [TOLERANCE[self.dtype] * (1 if k < 4 else 2.5) for k in range(len(errors))]
        right = same and all(error < limit for error, limit in zip(errors, limits, strict=True))
        return {"error": max(errors), "same_bits": same, "right": right}


def checks() -> Iterator[Check]:
    from problems import problems

    # What the marching kernels serve, and where their tables leave off, first: they compile longest.
    bfloat16, float16 = torch.bfloat16, torch.float16
    for kind, ndim, mode, count, dtype, ins, outs, groups in (
        ("affine", 2, "zeros", 3, bfloat16, 64, 64, 1),
        ("affine", 2, "circular", 2, float16, 32, 32, 1),
        ("affine", 2, "zeros", 6, bfloat16, 64, 64, 1),
        ("affine", 2, "circular", 6, float16, 32, 32, 1),
        ("affine", 2, "zeros", 4, bfloat16, 128, 64, 1),
        ("affine", 2, "circular", 3, bfloat16, 64, 128, 1),
        ("affine", 2, "zeros", 1, float16, 32, 20, 2),
        ("field", 2, "zeros", 3, bfloat16, 64, 64, 1),
        ("field", 2, "circular", 6, bfloat16, 64, 128, 1),
        ("field", 2, "zeros", 2, float16, 32, 32, 2),
        ("affine", 3, "zeros", 3, bfloat16, 32, 32, 1),
        ("affine", 3, "circular", 3, float16, 64, 64, 1),
        ("affine", 3, "zeros", 6, bfloat16, 64, 128, 1),
        ("affine", 3, "circular", 12, bfloat16, 32, 32, 1),
        ("field", 3, "zeros", 3, float16, 32, 32, 1),
        ("field", 3, "circular", 6, bfloat16, 64, 64, 1),
    ):
        yield Check(kind, ndim, mode, 2, count, dtype, ins, outs, groups=groups, larger=True)
    rest = []
    for problem in problems():
        for dtype in TOLERANCE:
            about = (problem.kind, problem.ndim, problem.mode, problem.accuracy, problem.count, dtype)
            rest += [Check(*about, 5, 7), Check(*about, 4, 3, stride=2, groups=2, last=False)]
    # In an order that leaves no kind or type to the end, where the time may be over.
    yield from random.Random(0).sample(rest, len(rest))


def correctness(record: Record, share: float) -> None:
    """In several processes at once, since most of the time goes into compiling; for a share of the time left."""
    end = time.monotonic() + share * record.left()
    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [(check, pool.submit(check.run)) for check in checks()]
        skipped = 0
        for check, future in running:
            if time.monotonic() > end and future.cancel():
                skipped += 1
            else:
                guarded(record, "correct", str(check), future.result)
        record.add("correct", checks=len(running), skipped_for_time=skipped)


def contracts(record: Record) -> None:
    import lconv_fast as lc
    from lconv_fast import form
    from lconv_fast.ops.geometry import Geometry

    def case(dtype=torch.float64, size=(5, 6)):
        generators = lc.AffineGenerators.named("se", 2, learnable=True).to("cuda", dtype)
        v = generators.coefficients().detach().requires_grad_()
        x = torch.randn(2, 3, *size, device="cuda", dtype=dtype, requires_grad=True)
        w = torch.randn(4, 4, 3, device="cuda", dtype=dtype, requires_grad=True)
        return generators, v, x, w, Geometry.of(generators.stencil(), size, [1, 1], 1)

    def opcheck():
        _, v, x, w, geometry = case()
        u = torch.randn(2, 4, 5, 6, device="cuda", dtype=torch.float64, requires_grad=True)
        ops = torch.ops.lconv_fast
        torch.library.opcheck(ops.apply, (x, w, v, None, *geometry, True, False))
        torch.library.opcheck(ops.gram, (x, u, v, *geometry, True))
        torch.library.opcheck(ops.correlate, (x, w, u, *geometry))
        torch.library.opcheck(ops.backward, (u, x, w, v, *geometry, True))
        return {"right": True}

    def gradcheck():
        generators, v, x, w, _ = case()

        def layer(v, x, w):
            return form.lconv(v, x, w, None, generators.stencil(), (1, 1), 1)

        first = torch.autograd.gradcheck(layer, (v, x, w), fast_mode=True, nondet_tol=0.0)
        return {"right": first and torch.autograd.gradgradcheck(layer, (v, x, w), fast_mode=True)}

    def compiled():
        layer = lc.LConv2d(32, 32, "se").cuda().bfloat16()
        x = torch.randn(2, 32, 64, 64, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        return {"right": torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))}

    def learner(basis, dtype):
        """A layer that learns all it has, and its input; in bfloat16 for the marching kernels."""
        layer = lc.LConv2d(32, 32, basis, learnable=True).cuda().to(dtype)
        layer.generators.float()
        x = torch.randn(2, 32, 64, 64, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        return layer, x.requires_grad_()

    def graph(basis="se", dtype=torch.float32):
        layer, x = learner(basis, dtype)

        def step():
            y = layer(x)
            return (y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            results = step()
        captured.replay()
        first = [t.clone() for t in results]
        for _ in range(100):
            captured.replay()
            if not all(torch.equal(a, b) for a, b in zip(first, results, strict=True)):
                return {"right": False}
        return {"right": all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))}

    def graph_of_the_marching_kernels():
        return {"right": graph("se", torch.bfloat16)["right"] and graph("affine", torch.bfloat16)["right"]}

    def stream():
        layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(8, 32, 256, 256, device="cuda")
        expected, side = layer(x), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = layer(x)
        side.synchronize()
        return {"right": torch.equal(found, expected)}

    def second_device():
        if torch.cuda.device_count() < 2:
            return {"skipped": "one device"}
        layer, x = lc.LConv2d(32, 32, "se").cuda(1), torch.randn(2, 32, 64, 64, device="cuda:1")
        return {"right": torch.equal(layer(x).cpu(), layer.cuda(0)(x.cuda(0)).cpu())}

    def autocast():
        layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(2, 32, 64, 64, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = layer(x)
        return {"right": y.dtype == torch.bfloat16 and bool(((y - layer(x)).norm() / y.float().norm()) < 1e-2)}

    def no_synchronisation():
        for basis, dtype in (("affine", torch.float32), ("se", torch.bfloat16), ("affine", torch.bfloat16)):
            layer, x = learner(basis, dtype)
            layer(x).sum().backward()
            torch.cuda.set_sync_debug_mode("error")
            try:
                layer(x).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return {"right": True}

    def bad_input():
        layer, x = lc.LConv2d(32, 32, "se").cuda(), torch.randn(2, 32, 8, 8)
        try:
            layer(x)
        except TypeError as error:
            y = layer(x.cuda())
            return {"right": "device" in str(error) and bool(y.isfinite().all())}
        return {"right": False}

    graphs = (graph, graph_of_the_marching_kernels)
    for body in (opcheck, gradcheck, compiled, *graphs, stream, second_device, autocast, no_synchronisation, bad_input):
        guarded(record, "contract", body.__name__, body)


def huge(record: Record) -> None:
    """Past 2^31 elements, compared in windows: the first and the last points, and the middle ones."""
    import lconv_fast as lc

    def body(size, channels, outs, dtype):
        generators = lc.AffineGenerators.named("translation", len(size))
        x = torch.empty(1, *size, channels, device="cuda", dtype=dtype)
        for part in x.flatten().split(1 << 28):
            part.normal_()
        x = x.movedim(-1, 1)
        w = torch.randn(len(size) + 1, outs, channels, device="cuda").to(dtype) / channels**0.5
        v = generators.coefficients()
        from lconv_fast.ops.geometry import Geometry

        geometry = Geometry.of(generators.stencil(), size, [1] * len(size), 1)
        y = torch.ops.lconv_fast.apply(x, w, v.cuda(), None, *geometry, True, False)
        back = torch.ops.lconv_fast.apply(y, w, v.cuda(), None, *geometry, True, True)
        both = torch.ops.lconv_fast.backward(y, x, w, v.cuda(), *geometry, True)
        gram = torch.ops.lconv_fast.gram(x, y, v.cuda(), *geometry, True)
        errors = [float((both[1].double() - gram.double()).norm() / gram.double().norm())]
        errors.append(float((both[0] - back).norm() / back.norm()))
        del both
        for where in (0.0, 0.5, 1.0):
            starts = [int(where * (n - 12)) for n in size]
            box = tuple(slice(s, s + 12) for s in starts)
            inside = tuple(
                slice(0 if s == 0 else 1, 12 if s + 12 == n else 11) for s, n in zip(starts, size, strict=True)
            )
            center = [c - s for c, s in zip(geometry.center, starts, strict=True)]
            small = geometry._replace(spatial=[12] * len(size), center=center)
            for given, result, transposed in ((x, y, False), (y, back, True)):
                window = given[(slice(None), slice(None), *box)].cpu().double()
                truth = torch.ops.lconv_fast.apply(window, w.cpu().double(), v.double(), None, *small, True, transposed)
                index = (slice(None), slice(None), *inside)
                found = result[(slice(None), slice(None), *box)].cpu().double()
                errors.append(float((found[index] - truth[index]).norm() / truth[index].norm()))
        return {"elements": x.numel(), "error": max(errors), "right": max(errors) < TOLERANCE[dtype]}

    guarded(record, "huge", "2D bfloat16", lambda: body((8256, 8256), 32, 32, torch.bfloat16))
    torch.cuda.empty_cache()
    guarded(record, "huge", "2D bfloat16, few channels", lambda: body((32768, 24576), 3, 8, torch.bfloat16))
    torch.cuda.empty_cache()


# ---- speed ----------------------------------------------------------------------------------------------------------


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


def speed_cases() -> Iterator[tuple[str, tuple[int, ...], int, int, torch.dtype]]:
    """Basis, size, batch, channels, type."""
    for basis in ("se", "affine", "translation"):
        for channels in (64, 32, 128, 16):
            yield basis, (1024, 1024), 8, channels, torch.bfloat16
    for basis in ("se", "translation"):
        for channels in (32, 64):
            yield basis, (128, 128, 128), 2, channels, torch.bfloat16
    yield "se", (1024, 1024), 4, 64, torch.float32
    yield "se", (1024, 1024), 8, 256, torch.bfloat16


def speed(record: Record, bandwidth: float, rates: dict[torch.dtype, float]) -> None:
    import lconv_fast as lc

    for basis, size, batch, channels, dtype in speed_cases():
        ndim = len(size)
        layer = lc.LConv2d if ndim == 2 else lc.LConv3d
        l_conv = layer(channels, channels, basis, bias=False, learnable=False).cuda().to(dtype)
        l_conv.generators.float()
        count = l_conv.generators.num_generators
        memory_format = torch.channels_last if ndim == 2 else torch.channels_last_3d
        x = torch.randn(batch, channels, *size, device="cuda", dtype=dtype).to(memory_format=memory_format)
        u = torch.randn_like(x)
        points, moved = batch * math.prod(size), x.numel() * x.element_size()
        flops = 2 * points * (count + 1) * channels**2
        floors = {
            "forward": max(2 * moved / bandwidth, flops / rates[dtype]),
            "input gradient": max(2 * moved / bandwidth, flops / rates[dtype]),
            "weight gradient": max(2 * moved / bandwidth, flops / rates[dtype]),
            "backward": max(3 * moved / bandwidth, 2 * flops / rates[dtype]),
        }
        name = (
            f"{basis} n_L={count} {batch}x{'x'.join(map(str, size))} C={channels} {str(dtype).removeprefix('torch.')}"
        )

        def ours(x=x, u=u, l_conv=l_conv, floors=floors):
            x_, w = x.detach().requires_grad_(), l_conv.weight
            result = {}
            with torch.no_grad():
                result["forward"] = median_seconds(lambda: l_conv(x))
            y = l_conv(x_)
            for operator, inputs in (("input gradient", (x_,)), ("weight gradient", (w,)), ("backward", (x_, w))):
                result[operator] = median_seconds(lambda i=inputs: torch.autograd.grad(y, i, u, retain_graph=True))
            return {
                **{f"{k} ms": v * 1e3 for k, v in result.items()},
                **{f"{k} of floor": floors[k] / v for k, v in result.items()},
            }

        guarded(record, "speed", name, ours)
        seconds = record.rows[-1].get("forward ms")
        if not seconds or record.left() < 60:
            continue

        def convolution(x=x, u=u, ndim=ndim, channels=channels, dtype=dtype, memory_format=memory_format):
            torch.backends.cudnn.benchmark = True
            conv = (torch.nn.Conv2d if ndim == 2 else torch.nn.Conv3d)(channels, channels, 3, padding=1, bias=False)
            conv = conv.cuda().to(dtype).to(memory_format=memory_format)
            with torch.no_grad():
                forward = median_seconds(lambda: conv(x))
            x_ = x.detach().requires_grad_()
            y = conv(x_)
            backward = median_seconds(lambda: torch.autograd.grad(y, (x_, conv.weight), u, retain_graph=True))
            return {"forward ms": forward * 1e3, "backward ms": backward * 1e3}

        guarded(record, "speed of a convolution", name, convolution)
        if channels == 64 and basis in ("se", "affine") and dtype == torch.bfloat16:
            v, scale = l_conv.generators.coefficients(), (max(size) - 1) / 2

            def plain(x=x, l_conv=l_conv, v=v, scale=scale):
                with torch.no_grad():
                    expected, found = l_conv(x[:1]), composed(x[:1], l_conv.weight, v, scale)
                    error = float((expected.float() - found.float()).norm() / expected.float().norm())
                    result = {"eager forward ms": 1e3 * median_seconds(lambda: composed(x, l_conv.weight, v, scale))}
                    if record.left() > 150:
                        best = torch.compile(composed, mode="max-autotune-no-cudagraphs")
                        result["compiled forward ms"] = 1e3 * median_seconds(lambda: best(x, l_conv.weight, v, scale))
                return {"error": error, "right": error < 2e-2, **result}

            guarded(record, "speed of the composed form", name, plain)
        del x, u, l_conv
        torch.cuda.empty_cache()


def prepared(record: Record) -> None:
    """Against the generators as matrices made ready beforehand: torch.sparse, and dense on the paper's small images."""
    import lconv_fast as lc
    from bench.cases import Case
    from bench.contenders import dense, numbers_of, sparse

    for make, case in (
        (sparse, Case("affine", (1024, 1024), 8, 32)),
        (sparse, Case("affine", (128, 128, 128), 2, 32)),
        (dense, Case("affine", (64, 64), 32, 64)),
    ):

        def body(make=make, case=case):
            with torch.device("cuda"):
                generators = case.generators().cuda().requires_grad_(False)
                x, weight, _ = case.tensors()
                other, numbers = make(case, numbers_of(case, generators)), numbers_of(case, generators)
            with torch.no_grad():
                found, expected = lc.functional.lconv(x, weight, generators), other(x, weight, numbers)
                error = float((found - expected).norm() / expected.norm())
                seconds = median_seconds(lambda: lc.functional.lconv(x, weight, generators))
                return {
                    "error": error,
                    "right": error < 1e-3,
                    "forward ms": seconds * 1e3,
                    "its forward ms": median_seconds(lambda: other(x, weight, numbers)) * 1e3,
                }

        guarded(record, f"speed of {make.__name__}", str(case), body)
        torch.cuda.empty_cache()


def training(record: Record) -> None:
    """The largest examples: forward and backward on one card, and what memory they take beyond the data."""
    import lconv_fast as lc

    def body(layer, size, batch, channels):
        l_conv = layer(channels, channels, "rotation", bias=False).cuda().bfloat16()
        l_conv.generators.float()
        x = torch.empty(batch, *size, channels, device="cuda", dtype=torch.bfloat16).movedim(-1, 1).requires_grad_()
        with torch.no_grad():
            for part in x.movedim(1, -1).flatten().split(1 << 28):
                part.normal_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        data = x.numel() * 2
        start = time.perf_counter()
        y = l_conv(x)
        held = torch.cuda.memory_allocated() - 2 * data
        gradients = torch.autograd.grad(y, (x, l_conv.weight), y.detach())
        torch.cuda.synchronize()
        return {
            "seconds, first call": time.perf_counter() - start,
            "data_bytes": data,
            "held_beyond_input_and_output": held,
            "peak_over_data": torch.cuda.max_memory_allocated() / data,
            "right": all(bool(g.isfinite().all()) for g in (gradients[1], gradients[0][..., -1])),
        }

    for name, arguments in (
        ("512^3 x 32", (lc.LConv3d, (512, 512, 512), 1, 32)),
        ("8 x 64 x 4096 x 4096", (lc.LConv2d, (4096, 4096), 8, 64)),
    ):
        guarded(record, "training", name, lambda arguments=arguments: body(*arguments))
        torch.cuda.empty_cache()


SECTIONS = ["correct", "contract", "huge", "training", "prepared", "speed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--only", default="", help=f"sections, joined by commas: {', '.join(SECTIONS)}")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False")
    record = Record(options.out, options.budget)
    built()
    only = options.only.split(",") if options.only else SECTIONS
    bandwidth, rates = machine(record)
    for name, section in (
        ("correct", lambda: correctness(record, 0.45 if len(only) > 1 else 0.95)),
        ("contract", lambda: contracts(record)),
        ("huge", lambda: huge(record)),
        ("training", lambda: training(record)),
        ("prepared", lambda: prepared(record)),
        ("speed", lambda: speed(record, bandwidth, rates)),
    ):
        if name in only:
            section()
    record.add("end", wrong=record.wrong, seconds_left=record.left())
    return 1 if record.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
