"""Who is measured. Each contender is a function of (x, weight) for one case; `same` says whether it computes the layer.

Those that do not are limits and yardsticks: they are shown, and never counted as opponents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import Case
from torch import Tensor, nn

import lconv_fast as lc

# Bytes that the dense matrices of a case may take.
DENSE_LIMIT = 2**30


@dataclass
class Contender:
    name: str
    run: Callable[[Tensor, Tensor], Tensor]
    same: bool = True
    weight: Tensor | None = None  # of its own, in the place of the layer's


def composed(
    case: Case, generators: lc.Generators, dtype: torch.dtype | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Slices, products and one einsum, with the coefficients made ready beforehand; in float64, the reference."""
    ndim = case.ndim
    if case.kind == "stencil":
        taps, v = generators.taps, generators.values
    else:
        taps = [tuple(sign * (a == b) for b in range(ndim)) for a in range(ndim) for sign in (-1, 1)]
        if case.kind == "field":
            field = generators.field
        else:
            scale = (max(case.size) - 1) / 2
            axes = [(torch.arange(n) - (n - 1) / 2) / scale for n in case.size]
            x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            field = torch.einsum("iab,b...->ia...", generators.matrix, x)
            field = field + generators.shift.reshape(*generators.shift.shape, *[1] * ndim)
        v = field
    v = v.to(dtype or case.dtype)

    def shifted(padded: Tensor, tap: tuple[int, ...]) -> Tensor:
        for axis, (offset, size) in enumerate(zip(tap, case.size, strict=True)):
            padded = padded.narrow(axis + 2, 1 + offset, size)
        return padded

    def run(x: Tensor, weight: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (1, 1) * ndim)
        if case.kind == "stencil":
            parts = [shifted(padded, tap) for tap in taps]
        else:
            parts = [(shifted(padded, taps[2 * a + 1]) - shifted(padded, taps[2 * a])) / 2 for a in range(ndim)]
        moved = sum(v[:, k].unsqueeze(1).unsqueeze(1) * part for k, part in enumerate(parts))  # (n_L, N, C, *size)
        return torch.einsum("inc...,ioc->no...", torch.cat([x.unsqueeze(0), moved]), weight)

    return run


def contenders(case: Case, generators: lc.Generators) -> list[Contender]:
    result = [
        Contender("lconv_fast", lambda x, w: lc.functional.lconv(x, w, generators)),
        Contender("composed", composed(case, generators)),
    ]
    points = torch.Size(case.size).numel()
    if case.count * points**2 * 4 <= DENSE_LIMIT and case.dtype == torch.float32:
        dense = lc.DenseGenerators(generators.to_dense(case.size))
        result.append(Contender("dense", lambda x, w: lc.functional.lconv(x, w, dense)))
    depth = (case.count + 1) * case.channels
    ready = torch.randn(case.batch * points, depth, dtype=case.dtype)  # what mm would have to be given
    result.append(Contender("torch.mm (operand ready)", lambda x, w: ready @ w.reshape(-1, case.channels), same=False))
    if case.ndim > 1:
        convolve = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[case.ndim]
        kernel = torch.randn(case.channels, case.channels, *[3] * case.ndim, dtype=case.dtype)
        if case.channels_last:
            kernel = kernel.movedim(1, -1).contiguous().movedim(-1, 1)
        name = f"conv{case.ndim}d 3^{case.ndim}"
        result.append(Contender(name, lambda x, w: convolve(x, w, padding=1), same=False, weight=kernel))
    return result
