"""Fields on a torus of 2 or 3 axes with Fourier derivatives: the truth of the differential equations to be learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def wavenumbers(ndim: int, size: int) -> list[Tensor]:
    """k_a, each with the shape that broadcasts along its axis; 0 for the Nyquist wave, which has no derivative."""
    k = 2 * math.pi * torch.fft.fftfreq(size)
    k[size // 2] = 0
    return [k.reshape([-1 if b == a else 1 for b in range(ndim)]) for a in range(ndim)]


def squares(ndim: int, size: int) -> Tensor:
    """|k|^2, the Nyquist wave's among them."""
    k = 2 * math.pi * torch.fft.fftfreq(size)
    return sum(
        (k.square().reshape([-1 if b == a else 1 for b in range(ndim)]) for a in range(ndim)), torch.zeros([1] * ndim)
    )


def smooth(count: int, ndim: int, size: int, width: float, random: torch.Generator) -> Tensor:
    """Random fields (count, *spatial) of mean 0 and variance 1, with details of `width` pixels."""
    axes = tuple(range(1, ndim + 1))
    square = squares(ndim, size)
    noise = torch.fft.fftn(torch.randn(count, *[size] * ndim, generator=random), dim=axes)
    f = torch.fft.ifftn(noise * torch.exp(-0.5 * width**2 * square), dim=axes).real
    return (f - f.mean(axes, keepdim=True)) / f.std(axes, keepdim=True)


def gradient(f: Tensor) -> list[Tensor]:
    """d_a f of (N, *spatial), for each axis."""
    ndim, size = f.dim() - 1, f.shape[-1]
    axes = tuple(range(1, ndim + 1))
    hat = torch.fft.fftn(f, dim=axes)
    return [torch.fft.ifftn(1j * k * hat, dim=axes).real for k in wavenumbers(ndim, size)]


def divergence(v: Tensor) -> Tensor:
    """d_a v_a of (N, n, *spatial): (N, *spatial)."""
    ndim, size = v.dim() - 2, v.shape[-1]
    hat = torch.fft.fftn(v, dim=tuple(range(2, ndim + 2)))
    total = sum(1j * k * hat[:, a] for a, k in enumerate(wavenumbers(ndim, size)))
    return torch.fft.ifftn(total, dim=tuple(range(1, ndim + 1))).real


def laplacian(f: Tensor) -> Tensor:
    """sum_a d_a d_a f of (N, *spatial)."""
    axes = tuple(range(1, f.dim()))
    return torch.fft.ifftn(-squares(f.dim() - 1, f.shape[-1]) * torch.fft.fftn(f, dim=axes), dim=axes).real


def runge_kutta(rate: Callable[[Tensor], Tensor], f: Tensor, time: float, steps: int) -> Tensor:
    """f after `time` of f_t = rate(f), by the classical method."""
    h = time / steps
    for _ in range(steps):
        a = rate(f)
        b = rate(f + h / 2 * a)
        c = rate(f + h / 2 * b)
        f = f + h / 6 * (a + 2 * b + 2 * c + rate(f + h * c))
    return f


def relative(found: Tensor, truth: Tensor) -> float:
    return min(((found - truth).norm() / truth.norm()).nan_to_num(1e6).item(), 1e6)
