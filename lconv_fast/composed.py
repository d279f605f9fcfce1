"""The layer in plain PyTorch operations, and the field of affine generators: what the fused layer is compared with.

    y = f W_0 + sum_i (v_i^a D_a f) W_i,    v_i(x) = matrix_i x + shift_i     (eq. 9 of Dehmamy et al. 2021)

Composed of pads, slices, products and one einsum, as a user without this library would write it; `L_i f` is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lconv_fast.ops.geometry import center_of, half_extent


def vector_field(
    matrix: Tensor, shift: Tensor, spatial: Sequence[int], coordinate_scale: float | None = None
) -> Tensor:
    """v_i(x) = matrix_i x + shift_i at every point: (n_L, n, n) and (n_L, n) to (n_L, n, *spatial), in their dtype.

    x = (index - (size - 1) / 2) / coordinate_scale; None: half the largest extent, as AffineGenerators have it.
    """
    scale = half_extent(spatial) if coordinate_scale is None else coordinate_scale
    axes = [
        (torch.arange(size, dtype=matrix.dtype, device=matrix.device) - middle) / scale
        for size, middle in zip(spatial, center_of(spatial), strict=True)
    ]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.einsum("iab,b...->ia...", matrix, x) + shift.reshape(*shift.shape, *[1] * len(axes))


def composed(f: Tensor, weight: Tensor, v: Tensor, taps: Sequence[Sequence[int]] | None = None) -> Tensor:
    """y = f W_0 + sum_i (L_i f) W_i with zeros outside: f (N, C, *spatial), weight (n_L + 1, C_out, C).

    Without `taps`, v (n_L, n, *spatial) is a field and L_i = v_i^a D_a with central differences of order 2. With them,
    v (n_L, K, *spatial) holds the coefficients of K offsets: (L_i f)[x] = sum_k v[i,k](x) f[x + taps[k]].
    """
    ndim = f.dim() - 2
    units = [tuple(int(a == b) for b in range(ndim)) for a in range(ndim)]
    reach = max((abs(offset) for tap in taps or units for offset in tap), default=0)
    padded = F.pad(f, (reach, reach) * ndim)

    def at(tap: Sequence[int]) -> Tensor:
        shifted = padded
        for axis, offset in enumerate(tap):
            shifted = shifted.narrow(axis + 2, reach + offset, f.shape[axis + 2])
        return shifted

    differences = ((at(unit) - at([-o for o in unit])) / 2 for unit in units)
    parts = list(differences) if taps is None else [at(tap) for tap in taps]
    v = v.to(f.dtype)
    moved = sum(v[:, k].unsqueeze(1).unsqueeze(1) * part for k, part in enumerate(parts))  # (n_L, N, C, *spatial)
    return torch.einsum("inc...,ioc->no...", torch.cat([f.unsqueeze(0), moved]), weight)  # type: ignore[list-item]
