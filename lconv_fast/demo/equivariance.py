"""Equivariance: the layer with the rotation generator, before and after the photograph is turned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import lconv_fast as lc
from lconv_fast.demo.photo import photograph

ACCURACIES = (2, 4, 6, 8)
ANGLE = 25.0  # degrees
FULL = 512
BLUR = 1 / 32  # standard deviation of the smoothing, in image widths
DISC = 0.4  # radius of the disc that is compared, in image widths


@dataclass
class EquivarianceResult:
    """Relative RMS of layer(turn f) - turn(layer f) over the inner disc."""

    size: int
    accuracy: int
    error: float


def _frequencies(size: int) -> Tensor:
    return 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)


def smooth_photograph(size: int) -> Tensor:
    """The photograph, blurred to be band-limited at every size, fading to 0 at the border: (1, 3, size, size)."""
    image = photograph(FULL, torch.float64)
    x = torch.arange(FULL, dtype=torch.float64) - (FULL - 1) / 2
    radius = (x[:, None].square() + x.square()).sqrt() / FULL
    faded = (image - image.mean((2, 3), keepdim=True)) * torch.exp(-((radius / 0.3) ** 8))
    k = _frequencies(FULL)
    blur = torch.exp(-0.5 * (BLUR * FULL) ** 2 * (k[:, None].square() + k.square()))
    smooth = torch.fft.ifft2(torch.fft.fft2(faded) * blur).real
    # Means over blocks keep the centre of the image at the centre of the grid.
    return torch.nn.functional.avg_pool2d(smooth, FULL // size)


def _shear(image: Tensor, axis: int, amount: float) -> Tensor:
    """g(x) = f(x + amount * other coordinate, along `axis`), exact for band-limited periodic f."""
    size = image.shape[-1]
    shift = amount * (torch.arange(size, dtype=torch.float64) - (size - 1) / 2)
    phase = torch.exp(1j * _frequencies(size)[:, None] * shift)  # (frequency along axis, other coordinate)
    if axis == 1:
        phase = phase.T
    return torch.fft.ifft(torch.fft.fft(image, dim=2 + axis) * phase, dim=2 + axis).real


def turn(image: Tensor, degrees: float) -> Tensor:
    """Turns (N, C, size, size) about its centre, by three shears with Fourier interpolation.

    Unlike a spline, its error is that of the image's band limit alone, far below the finite differences measured here.
    """
    angle = math.radians(degrees)
    for axis, amount in ((0, -math.tan(angle / 2)), (1, math.sin(angle)), (0, -math.tan(angle / 2))):
        image = _shear(image, axis, amount)
    return image


def error(size: int, accuracy: int, seed: int) -> float:
    """Eq. (2) of Dehmamy et al. 2021 on a grid: relative RMS of Q[w.f] - w.Q[f] for the rotation w."""
    torch.manual_seed(seed)
    layer = lc.LConv2d(3, 8, "rotation", coordinate_scale=1.0, accuracy=accuracy, bias=False, dtype=torch.float64)
    with torch.no_grad():
        f = smooth_photograph(size)
        before, after = layer(turn(f, ANGLE)), turn(layer(f), ANGLE)
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    inside = x[:, None].square() + x.square() <= (DISC * size) ** 2
    return ((before - after)[..., inside].norm() / after[..., inside].norm()).item()


def sizes(quick: bool) -> tuple[int, ...]:
    return (64,) if quick else (64, 128, 256)


def run(seed: int, quick: bool, advance: Callable[[], None]) -> list[EquivarianceResult]:
    """Every size and accuracy; calls `advance` after each size."""
    results = []
    for size in sizes(quick):
        results += [EquivarianceResult(size, accuracy, error(size, accuracy, seed)) for accuracy in ACCURACIES]
        advance()
    return results
