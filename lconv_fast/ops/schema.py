"""Shapes and memory formats of the operators' results, for tracing without data.

The schemas stand in ``csrc/operators.cpp``: a few tensors, then the fields of ``lconv_fast.ops.geometry.Geometry``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconv_fast.ops.geometry import Geometry, accumulate_type, empty_like_format


@torch.library.register_fake("lconv_fast::apply")
def _(input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *geometry, _identity, transposed = arguments
    g = Geometry(*geometry)
    if transposed:
        return empty_like_format(input, weight.size(2) * g.groups, g.array)
    return empty_like_format(input, weight.size(1), g.out)


@torch.library.register_fake("lconv_fast::gram")
def _(input: Tensor, cotangent: Tensor, coefficients: Tensor, *arguments: Any) -> Tensor:
    *geometry, _identity = arguments
    groups = Geometry(*geometry).groups
    return input.new_empty((coefficients.size(0) + 1, cotangent.size(1), input.size(1) // groups))


@torch.library.register_fake("lconv_fast::correlate")
def _(input: Tensor, weight: Tensor, cotangent: Tensor, *geometry: Any) -> Tensor:
    shape = Geometry(*geometry).coefficient_shape(weight.size(0) - 1)
    return input.new_empty(shape, dtype=accumulate_type(input.dtype))


@torch.library.register_fake("lconv_fast::backward")
def _(cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *geometry, identity = arguments
    ops = torch.ops.lconv_fast
    features = ops.apply(cotangent, weight, coefficients, None, *geometry, identity, True)
    return features, ops.gram(input, cotangent, coefficients, *geometry, identity)


@torch.library.register_fake("lconv_fast::sum_points")
def _(cotangent: Tensor) -> Tensor:
    return cotangent.new_empty((cotangent.size(1),))
