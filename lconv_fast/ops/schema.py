"""Shapes and memory formats of the operators' results, for tracing without data.

The schemas stand in ``csrc/operators.cpp``. All operators take the same geometry, in this order:

``kind`` (0 constant, 1 sampled, 2 affine coefficients), ``taps`` (T * n offsets), ``tap_weights`` (T), ``components``
(T), ``spatial`` (n), ``padding_mode`` (0 zeros, 1 circular, 2 replicate, 3 reflect), ``halo`` (low and high per axis:
points that the array of ``f`` has around the grid), ``center`` (n, affine only), ``scale``, ``stride`` (n), ``groups``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(t: Tensor) -> bool:
    """Whether results shaped after `t` are laid out channels-last (in any number of axes); as in csrc/operators.cpp."""
    return t.size(1) > 1 and t.stride(1) == 1 and t.stride(-1) != 1


def empty_like_format(like: Tensor, channels: int, spatial: Sequence[int]) -> Tensor:
    if is_channels_last(like):
        return like.new_empty((like.size(0), *spatial, channels)).movedim(-1, 1)
    return like.new_empty((like.size(0), channels, *spatial))


def output_size(spatial: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """ceil(spatial / stride): every stride-th point of the grid, from the first on."""
    return tuple((size - 1) // step + 1 for size, step in zip(spatial, stride, strict=True))


@torch.library.register_fake("lconv_fast::apply")
def _(
    input: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    kind: int,
    taps: Sequence[int],
    tap_weights: Sequence[float],
    components: Sequence[int],
    spatial: Sequence[int],
    padding_mode: int,
    halo: Sequence[int],
    center: Sequence[float],
    scale: float,
    stride: Sequence[int],
    groups: int,
    identity: bool,
    transposed: bool,
) -> Tensor:
    if transposed:
        array = [size + halo[2 * a] + halo[2 * a + 1] for a, size in enumerate(spatial)]
        return empty_like_format(input, weight.size(2) * groups, array)
    return empty_like_format(input, weight.size(1), output_size(spatial, stride))


@torch.library.register_fake("lconv_fast::gram")
def _(input: Tensor, cotangent: Tensor, coefficients: Tensor, *geometry) -> Tensor:
    groups = geometry[10]
    return input.new_empty((coefficients.size(0) + 1, cotangent.size(1), input.size(1) // groups))


@torch.library.register_fake("lconv_fast::correlate")
def _(
    input: Tensor,
    weight: Tensor,
    cotangent: Tensor,
    kind: int,
    taps: Sequence[int],
    tap_weights: Sequence[float],
    components: Sequence[int],
    spatial: Sequence[int],
    padding_mode: int,
    halo: Sequence[int],
    center: Sequence[float],
    scale: float,
    stride: Sequence[int],
    groups: int,
) -> Tensor:
    shape: list[int] = [weight.size(0) - 1, components[-1] + 1 if components else 0]
    if kind == 1:
        shape.extend(spatial)
    elif kind == 2:
        shape.append(len(spatial) + 1)  # the matrix row, then the shift
    return input.new_empty(shape, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("lconv_fast::backward")
def _(cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    *geometry, identity = arguments
    ops = torch.ops.lconv_fast
    features = ops.apply(cotangent, weight, coefficients, None, *geometry, identity, True)
    return features, ops.gram(input, cotangent, coefficients, *geometry, identity)
