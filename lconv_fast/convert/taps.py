"""Generators by their taps: which there are, how far they reach, and the coefficient of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.generators import Generators
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Stencil

Offsets = list[tuple[int, ...]]


def mode_of(stencil: Any) -> str:
    """The padding mode by nn.Conv's name."""
    return PaddingMode(stencil.padding_mode).name.lower()


def halo(offsets: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(low, high) for each axis: how far taps reach beyond a point."""
    return [(max(0, *(-o for o in axis), 0), max(0, *axis, 0)) for axis in zip(*offsets, strict=True)]


def spread(stencil: Stencil, v: Tensor) -> Tensor:
    """Coefficients by tap, s[i,j] = tap_weights[j] v[i, components[j]]: (n_L, m, ...) to (n_L, T, ...)."""
    weights = torch.tensor(stencil.tap_weights, dtype=v.dtype, device=v.device)
    return v[:, list(stencil.components)] * weights.reshape(-1, *[1] * (v.dim() - 2))


def constant_taps(generators: Generators) -> tuple[Offsets, Tensor] | None:
    """Offsets o_k and coefficients s (n_L, K) of L_i f(x) = sum_k s[i,k] f(x + o_k); None where s depends on x.

    Affine fields with matrix 0, the translations, are constant. Transposes are, where taps can be turned round.
    """
    stencil = generators.stencil()
    if stencil is None:
        return None
    v: Any = generators.coefficients()
    if stencil.kind == CoefficientKind.AFFINE:
        if torch.count_nonzero(v[..., :-1]):
            return None
        v = v[..., -1]
    elif stencil.kind != CoefficientKind.CONSTANT:
        return None
    offsets = list(stencil.taps)
    if stencil.transposed:
        if not PaddingMode(stencil.padding_mode).inverts:
            return None
        offsets = [tuple(-o for o in offset) for offset in offsets]
    return offsets, spread(stencil, v)
