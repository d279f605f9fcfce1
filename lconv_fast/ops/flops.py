"""The operators' floating-point operations, for torch.utils.flop_counter.FlopCounterMode.

As there for convolutions: the products of eq. (17) of Dehmamy et al. 2021, a multiplication and an addition counted as
two, whichever shorter way the kernels take (`lconv_fast.explain` tells of those); differences and sums are left out.
"""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from lconv_fast.ops.geometry import Geometry


def _products(batch: int, matrices: int, outs: int, ins: int, points: int) -> int:
    """`matrices` products with matrices (outs, ins) at every point."""
    return 2 * batch * matrices * outs * ins * points


@register_flop_formula(torch.ops.lconv_fast.apply)
def _apply(input, weight, coefficients, bias, *arguments, out_shape=None, **_) -> int:
    *geometry, identity, _transposed = arguments
    rows, outs, ins = weight
    return _products(input[0], rows - 1 + identity, outs, ins, math.prod(Geometry(*geometry).out))


@register_flop_formula(torch.ops.lconv_fast.gram)
def _gram(input, cotangent, coefficients, *arguments, out_shape=None, **_) -> int:
    *geometry, identity = arguments
    g = Geometry(*geometry)
    return _products(input[0], coefficients[0] + identity, cotangent[1], input[1] // g.groups, math.prod(g.out))


@register_flop_formula(torch.ops.lconv_fast.correlate)
def _correlate(input, weight, cotangent, *geometry, out_shape=None, **_) -> int:
    rows, outs, ins = weight
    return _products(input[0], rows - 1, outs, ins, math.prod(Geometry(*geometry).out))


@register_flop_formula(torch.ops.lconv_fast.backward)
def _backward(cotangent, input, weight, coefficients, *arguments, out_shape=None, **_) -> int:
    return _apply(cotangent, weight, coefficients, None, *arguments, True) + _gram(
        input, cotangent, coefficients, *arguments
    )
