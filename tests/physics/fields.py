"""Fields with exact derivatives, and relative sizes, for the tests of physics."""

import math

import torch


def band_limited(batch, components, spatial, highest, dtype=torch.float64, seed=0):
    """Random periodic fields with wave numbers up to `highest` on every axis."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.complex128
    spectrum = torch.randn(batch, components, *spatial, dtype=kind, generator=random)
    for axis, size in enumerate(spatial):
        wave = (torch.fft.fftfreq(size) * size).round().abs() <= highest
        spectrum = spectrum * wave.reshape([-1 if d == axis + 2 else 1 for d in range(spectrum.dim())])
    f = torch.fft.ifftn(spectrum, dim=list(range(2, spectrum.dim())), norm="forward")
    f = f / f.abs().square().mean().sqrt()
    return f if dtype.is_complex else f.real.to(dtype)


def packets(spatial, components=1, count=4, width=5.0, spread=6.0, seed=0):
    """Sums of Gaussians well inside the grid: smooth, and zero to rounding at the boundary."""
    random = torch.Generator().manual_seed(seed)
    axes = [torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in spatial]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    f = torch.zeros(1, components, *spatial, dtype=torch.float64)
    for component in range(components):
        for _ in range(count):
            place = (torch.rand(len(spatial), dtype=torch.float64, generator=random) - 0.5) * spread
            weight = torch.randn((), dtype=torch.float64, generator=random)
            away = x - place.reshape(-1, *[1] * len(spatial))
            f[0, component] += weight * torch.exp(-away.square().sum(0) / (2 * width**2))
    return f


def plane_waves(spatial, waves, weights, phases):
    """sum_j weights_j cos(k_j . x + phases_j), k in turns of the periodic grid: (*spatial)."""
    index = torch.stack(torch.meshgrid(*[torch.arange(s, dtype=torch.float64) for s in spatial], indexing="ij"))
    f = torch.zeros(spatial, dtype=torch.float64)
    for wave, weight, phase in zip(waves, weights, phases, strict=True):
        angle = sum(2 * math.pi * k * i / s for k, i, s in zip(wave, index, spatial, strict=True))
        f += weight * torch.cos(angle + phase)
    return f


def relative(error, *terms):
    """|error| / sqrt(sum |term|^2)."""
    scale = math.sqrt(sum(t.norm().item() ** 2 for t in terms))
    return error.norm().item() / scale
