"""Forward and backward on a photograph: LConv2d beside composed PyTorch, the paper's dense matrices, and nn.Conv2d."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.composed import composed, vector_field
from lconv_fast.demo.photo import photograph

CHANNELS = 32
TOLERANCE = 1e-5  # relative RMS in float32
LCONV, COMPOSED, DENSE, CONV = "LConv2d", "composed", "dense L", "Conv2d 3x3"
CANDIDATES = (LCONV, COMPOSED, DENSE, CONV)


class DisagreementError(RuntimeError):
    """Two ways to compute the same layer differ, so that their times mean nothing."""


@dataclass
class SpeedResult:
    """One image size. Ratios are times over LConv2d's: 2 means twice as slow. `errors` are relative RMS differences."""

    size: int
    forward: dict[str, float] = field(default_factory=dict)
    forward_backward: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def dense(f: Tensor, weight: Tensor, matrices: Tensor) -> Tensor:
    """Eq. (17) of Dehmamy et al. 2021 as it stands, with L_i (n_L, d, d)."""
    flat = f.flatten(2)
    moved = torch.einsum("ixy,ncy->nicx", matrices, flat)
    out = torch.einsum("ncx,oc->nox", flat, weight[0]) + torch.einsum("nicx,ioc->nox", moved, weight[1:])
    return out.unflatten(2, f.shape[2:])


def dense_matrices(v: Tensor) -> Tensor:
    """The (n_L, d, d) matrices of central differences with zeros outside, weighted by the field v."""
    count, _, height, width = v.shape
    points = height * width
    matrices = torch.zeros(count, points, points)
    index = torch.arange(points).reshape(height, width)
    for axis, stride in ((0, width), (1, 1)):
        for sign in (1, -1):
            length = v.shape[2 + axis] - 1
            rows = index.narrow(axis, 0 if sign == 1 else 1, length).flatten()
            matrices[:, rows, rows + sign * stride] = sign / 2 * v[:, axis].flatten(1)[:, rows]
    return matrices


def available_bytes() -> int:
    """Memory that can be had without swapping, as far as the system tells."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        # In a container the group's limit may be the smaller one.
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return min(found)


def relative_rms(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).double().norm() / expected.double().norm()).item()


def _forward_backward(function: Callable[[Tensor], Tensor], f: Tensor, cotangent: Tensor) -> None:
    function(f).backward(cotangent)
    f.grad = None


def _check(name: str, size: int, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    parts = ("output", "input gradient", "weight gradient")
    errors = {part: relative_rms(a, b) for part, a, b in zip(parts, found, expected, strict=True)}
    for part, error in errors.items():
        if not error <= TOLERANCE:
            raise DisagreementError(
                f"{size} x {size}: the {part} of {name} differs from {LCONV}'s by {error:.1e} (relative RMS), "
                f"more than {TOLERANCE:.0e}: no times are reported"
            )
    return errors


def _interleaved(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median times as ratios to LConv2d's; the candidates take turns, so that all see the same state of the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: median / medians[LCONV] for name, median in medians.items()}


def measure(size: int, seed: int, memory_limit: int, rounds: int) -> SpeedResult:
    """One image size. Raises DisagreementError before anything is timed."""
    result = SpeedResult(size)
    torch.manual_seed(seed)
    f = F.conv2d(photograph(size), torch.randn(CHANNELS, 3, 1, 1))
    layer = lc.LConv2d(CHANNELS, CHANNELS, "affine", bias=False)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    generators = layer.generators
    assert isinstance(generators, lc.AffineGenerators)
    v = vector_field(generators.matrix.double(), generators.shift.double(), (size, size)).float()
    weight = layer.weight.detach().clone().requires_grad_()
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        LCONV: layer,
        COMPOSED: lambda x: composed(x, weight, v),
        CONV: conv,
    }
    # The matrices, and one more copy's worth of room for the products' own buffers.
    points = size * size
    needed = 4 * generators.num_generators * points * points
    if needed <= memory_limit:
        matrices = dense_matrices(v)
        functions[DENSE] = lambda x: dense(x, weight, matrices)
    else:
        result.skipped[DENSE] = (
            f"{generators.num_generators} matrices of {points} x {points} take {needed / 2**30:,.0f} GiB, "
            f"more than half of the free memory ({2 * memory_limit / 2**30:,.0f} GiB)"
        )

    # Each gets the layout that suits it: channels-last for the two layers, channels-first for the plain operations.
    inputs = {}
    for name in functions:
        layout = torch.channels_last if name in (LCONV, CONV) else torch.contiguous_format
        inputs[name] = f.clone(memory_format=layout).requires_grad_()
    cotangent = torch.randn_like(f)
    cotangents = {name: cotangent.clone(memory_format=torch.preserve_format) for name in functions}
    for name in (LCONV, CONV):
        cotangents[name] = cotangent.contiguous(memory_format=torch.channels_last)

    same = [name for name in functions if name != CONV]
    found = {}
    for name in same:
        out = functions[name](inputs[name])
        tensors = [inputs[name], layer.weight if name == LCONV else weight]
        found[name] = (out.detach(), *torch.autograd.grad(out, tensors, cotangents[name]))
    result.errors = {name: _check(name, size, found[name], found[LCONV]) for name in same if name != LCONV}
    del found

    with torch.no_grad():
        result.forward = _interleaved({n: partial(run, inputs[n]) for n, run in functions.items()}, rounds)
    result.forward_backward = _interleaved(
        {n: partial(_forward_backward, run, inputs[n], cotangents[n]) for n, run in functions.items()}, rounds
    )
    return result


def sizes(quick: bool) -> tuple[int, ...]:
    return (32, 64) if quick else (64, 128, 256, 512)


def run(seed: int, quick: bool, advance: Callable[[], None]) -> list[SpeedResult]:
    """All image sizes; calls `advance` after each."""
    limit = available_bytes() // 2
    results = []
    for size in sizes(quick):
        # Small sizes are quick and noisy; at 128 the dense matrices take seconds a turn.
        rounds = 3 if quick else {64: 25, 128: 2, 512: 3}.get(size, 5)
        results.append(measure(size, seed, limit, rounds))
        advance()
    return results
