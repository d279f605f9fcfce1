"""The layer itself, as a partial of Q."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lconv_fast import grid
from lconv_fast.form.calculus import F, G, partial
from lconv_fast.ops.geometry import Geometry, Stencil, Window


@lru_cache(maxsize=256)
def _remembered(stencil: Stencil, spatial: tuple[int, ...], stride: tuple[int, ...], groups: int) -> Geometry:
    """Small calls would spend a tenth of their time here."""
    return Geometry.of(stencil, list(spatial), list(stride), groups)


def geometry_of(
    stencil: Stencil,
    input: Tensor,
    stride: Sequence[int],
    groups: int,
    window: Window | None,
    halo: Sequence[int] | None,
) -> Geometry:
    """Of a call on this input."""
    if halo is None and window is None and type(input) is Tensor and not torch.compiler.is_compiling():
        return _remembered(stencil, input.shape[2:], tuple(stride), groups)
    spatial = list(input.shape[2:])
    if halo is None:
        return Geometry.of(stencil, spatial, stride, groups, window)
    inner = [size - halo[2 * a] - halo[2 * a + 1] for a, size in enumerate(spatial)]
    return Geometry.of(stencil, inner, stride, groups, window)._replace(halo=halo)


def lconv(
    coefficients: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stencil: Stencil,
    stride: Sequence[int],
    groups: int,
    window: Window | None = None,
    halo: Sequence[int] | None = None,
) -> Tensor:
    """y = f W0^T + sum_i (L_i f) Wi^T + bias, at every stride-th point: eq. (17) of Dehmamy et al. 2021.

    coefficients: (n_L, m), (n_L, m, *spatial) or (n_L, m, n + 1) by `stencil.kind`; input (N, C_in, *spatial), with the
    (low, high) points of `halo` around it on each axis; weight (n_L + 1, C_out, C_in / groups); returns
    (N, C_out, *ceil(spatial / stride)). Arguments have been checked.
    """
    geometry = geometry_of(stencil, input, stride, groups, window, halo)
    if not stencil.transposed:
        return partial(G, (coefficients, input, weight, None), geometry, True, bias)
    # L_i^T f is dQ/df with f in the place of g, and W with its channel axes exchanged.
    rows, outs, ins = weight.shape
    swapped = weight.reshape(rows, groups, outs // groups, ins).transpose(2, 3)
    swapped = swapped.reshape(rows, groups * ins, outs // groups)
    everywhere = geometry._replace(stride=[1] * geometry.ndim)
    output = grid.every(partial(F, (coefficients, None, swapped, input), everywhere), stride)
    return output if bias is None else output + bias.reshape(-1, *[1] * geometry.ndim)
