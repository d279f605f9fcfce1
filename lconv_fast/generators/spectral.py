"""Band-limited derivatives on periodic axes, by FFT: accuracy="spectral".

Along an axis of d points, the Shannon-Whittaker interpolation of f is sum_k fhat[k] exp(2 pi i k x / d), |k| < d / 2,
and its derivative of order p multiplies fhat[k] by (2 pi i k / d)^p: section 4 of Dehmamy et al. 2021.

The Nyquist mode: on an even axis there is one more, k = d / 2, the signs +-+-... Between the points it is taken for a
cosine, whose first derivative is 0 at each point, and whose second is -pi^2 times itself. So first derivatives are
antisymmetric matrices and second ones symmetric, for odd and even d; exp(m d/dx) is the shift by m points for odd d,
and for even d on all functions without that mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast.ops.geometry import accumulate_type

NAME = "spectral"


def check_periodic(padding_mode: str) -> None:
    if padding_mode != "circular":
        raise ValueError(
            f"padding_mode: expected 'circular' with accuracy='spectral', whose functions are periodic, "
            f"got {padding_mode!r}"
        )


def derivative(f: Tensor, dim: int, order: int) -> Tensor:
    """The derivative of `order` along axis `dim` < 0 of a real tensor."""
    if order == 0 or 0 in f.shape:  # FFT libraries refuse to transform nothing
        return f
    size = f.shape[dim]
    k = torch.arange(size // 2 + 1, dtype=f.dtype, device=f.device)
    # Libraries differ in what they make of i k at k = size / 2, where only a real number is the spectrum of a real
    # function: 0 is put there. Without a branch on even or odd, so that one traced graph serves both.
    alias = (2 * k == size) if order % 2 else torch.zeros_like(k, dtype=torch.bool)
    factor = torch.where(alias, 0.0, (k * (2 * math.pi / size)).pow(order))
    factor = factor * (1, 1j, -1, -1j)[order % 4]
    # On the last axis, contiguous: the strides of a spectrum of another one cannot be compared while sizes are symbols.
    lines = f.movedim(dim, -1).contiguous()
    return torch.fft.irfft(torch.fft.rfft(lines) * factor, n=size).movedim(-1, dim)


def partial(f: Tensor, alpha: Sequence[int]) -> Tensor:
    """d^alpha f over the last axes."""
    for axis, order in enumerate(alpha):
        f = derivative(f, axis - len(alpha), order)
    return f


def act(v: Tensor, orders: Sequence[Sequence[int]], f: Tensor, transposed: bool) -> Tensor:
    """L_i f = sum_m v[i,m] d^alpha_m f, or L_i^T f = sum_m (-1)^|alpha_m| d^alpha_m (v[i,m] f).

    v (n_L, m, *spatial), f (N, C, *spatial) -> (N, n_L, C, *spatial), in f's dtype, half types in float32.
    """
    dtype = accumulate_type(f.dtype)
    f = f.to(dtype).unsqueeze(1)
    result = None
    for m, alpha in enumerate(orders):
        weight = v[:, m].to(dtype).unsqueeze(1)  # (n_L, 1, *spatial)
        term = (-1) ** sum(alpha) * partial(weight * f, alpha) if transposed else weight * partial(f, alpha)
        result = term if result is None else result + term
    assert result is not None
    return result


def noise(orders: Sequence[Sequence[int]]) -> Tensor:
    """The mean of d^alpha_m f d^alpha_k f for white noise f of variance 1 on a large grid: (m, m)."""

    def mean(a: int, b: int) -> float:  # of (i k)^a (-i k)^b, k uniform on [-pi, pi]
        return 0.0 if (a + b) % 2 else (-1) ** ((a - b) // 2) * math.pi ** (a + b) / (a + b + 1)

    rows = [[math.prod(map(mean, alpha, beta)) for beta in orders] for alpha in orders]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")
