"""The L-conv route: the paper's recursive layer (I + t/p L)^p with a learnable structured generator, by fused kernels.

Section 4 of Dehmamy et al. 2021, with affine, field or stencil generators in the place of a dense L: it reaches grids
where dense L cannot be stored. Coarse to fine: blurred images see far, and the blur is lowered in steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators, StencilGenerators

ROUGHNESS = 1.0  # weight of a free field's mean square second difference, in pixels^2: zero for affine fields


@dataclass
class Learned:
    generators: Generators
    residual: float
    route: str
    notes: list[str] = field(default_factory=list)


def recursive_lconv(x: Tensor, t: Tensor, generators: Generators, recursions: int) -> Tensor:
    """(I + 1/p sum_i t[n,i] L_i)^p x for images x (N, C, *spatial), each with its own t (N, n_L)."""
    step = t.to(x.dtype) / recursions
    shape = (*step.shape, *[1] * (x.dim() - 1))
    for _ in range(recursions):
        x = x + (step.reshape(shape) * generators(x)).sum(1)
    return x


def _start(kind: str, count: int, spatial: tuple[int, ...], dtype: torch.dtype) -> Generators:
    ndim = len(spatial)
    if kind == "affine":
        zeros = torch.zeros(count, ndim, ndim, dtype=dtype), torch.zeros(count, ndim, dtype=dtype)
        return AffineGenerators(*zeros, accuracy=8, padding_mode="replicate", learnable=True)
    if kind == "field":
        field_ = torch.zeros(count, ndim, *spatial, dtype=dtype)
        return FieldGenerators(field_, accuracy=8, padding_mode="replicate", learnable=True)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * ndim).reshape(-1, ndim)
    return StencilGenerators(
        torch.zeros(count, len(offsets), *spatial, dtype=dtype), offsets, padding_mode="replicate", learnable=True
    )


def _smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur along each axis."""
    if sigma < 0.3:
        return images
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(
        -(torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device) ** 2) / (2 * sigma**2)
    )
    kernel = kernel / kernel.sum()
    for axis in range(2, images.dim()):
        moved = images.movedim(axis, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        padded = torch.nn.functional.pad(rows, [reach, reach], mode="replicate")
        images = torch.nn.functional.conv1d(padded, kernel[None, None]).reshape(moved.shape).movedim(-1, axis)
    return images


def learn_by_lconv(
    x: Tensor,
    y: Tensor,
    t: Tensor,
    kind: str,
    recursions: int | None,
    device: Any,
    seed: int,
    report: Callable[[str, float], None],
) -> Learned:
    """Minimises |y - (I + t/p L)^p x|^2 over the interior by L-BFGS, at falling blurs; `seed` is for stencils' ties."""
    torch.manual_seed(seed)
    dtype = torch.float64 if x[0].numel() <= 4096 else torch.float32
    device = device or x.device
    x, y, t = x.to(device, dtype), y.to(device, dtype), t.to(device, dtype)
    spatial, size = tuple(x.shape[2:]), t.abs().max(0).values
    scaled = t / size
    generators = _start(kind, t.shape[1], spatial, dtype).to(device)
    steps = recursions or min(64, max(16, 2 * max(spatial)))
    border = max(1, min(spatial) // 8)
    inside: tuple[Any, ...] = (Ellipsis, *[slice(border, -border)] * len(spatial))
    blurs = [b for b in (max(spatial) / 10, max(spatial) / 20, max(spatial) / 40) if b > 1.0] + [1.0]
    residual = 1.0
    parameters = list(generators.parameters())
    for level, blur in enumerate(blurs):
        report(f"L-conv, blur {blur:.1f}", level / len(blurs))
        source, target = _smooth(x, blur), _smooth(y, blur)
        variance = target[inside].var()
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=40, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-12
        )

        def loss(source: Tensor = source, target: Tensor = target, variance: Tensor = variance) -> Tensor:
            error = recursive_lconv(source, scaled, generators, steps)[inside] - target[inside]
            value = error.square().mean() / variance
            if kind != "affine":  # a free field is not determined where the image is flat
                value = value + ROUGHNESS * sum(_roughness(p) for p in parameters)
            return value

        def closure(optimizer: torch.optim.Optimizer = optimizer, loss: Callable[[], Tensor] = loss) -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        with torch.no_grad():
            error = recursive_lconv(source, scaled, generators, steps)[inside] - target[inside]
            residual = float(error.square().mean() / variance)
    found, notes = _finished(generators, size, spatial, steps)
    return Learned(found, residual, f"a recursive L-conv of {steps} steps", notes)


def _roughness(p: Tensor) -> Tensor:
    """Mean square of second differences along the grid's axes."""
    total = p.new_zeros(())
    for axis in range(2, p.dim()):
        total = total + p.diff(n=2, dim=axis).square().mean()
    return total


def _finished(
    generators: Generators, size: Tensor, spatial: tuple[int, ...], steps: int
) -> tuple[Generators, list[str]]:
    """For parameters in their own unit, and in pixels."""
    notes: list[str] = []
    with torch.no_grad():
        if isinstance(generators, AffineGenerators):
            half = (max(spatial) - 1) / 2
            matrix, shift = generators.matrix / size[:, None, None], generators.shift / size[:, None]
            corner = (generators.matrix.abs().sum(-1) + generators.shift.abs()).max() / steps
            found: Generators = AffineGenerators((matrix / half).float(), shift.float(), coordinate_scale=1.0)
        elif isinstance(generators, FieldGenerators):
            corner = generators.field.abs().max() / steps
            found = FieldGenerators((generators.field / size.reshape(-1, *[1] * (len(spatial) + 1))).float())
        else:
            assert isinstance(generators, StencilGenerators)
            corner = torch.zeros(())
            values = generators.values / size.reshape(-1, *[1] * (generators.values.dim() - 1))
            found = StencilGenerators(values.float(), torch.tensor(generators.taps), padding_mode="replicate")
    if corner > 1:
        raise ValueError(
            f"recursions: {steps} steps move points by up to {float(corner):.1f} pixels each, more than differences "
            "see: expected more recursions, or smaller parameters"
        )
    return found, notes


__all__ = ["Learned", "learn_by_lconv", "recursive_lconv"]
