"""Activations of results in registers: the rows of lconv_fast.epilogue.ACTIVATIONS, in float32."""

from __future__ import annotations

import triton
import triton.language as tl

RELU = tl.constexpr(1)
GELU = tl.constexpr(2)
SILU = tl.constexpr(3)
CODES = {None: 0, "relu": RELU.value, "gelu": GELU.value, "silu": SILU.value}


@triton.jit
def activated(z, activation: tl.constexpr):
    """NaN passes through."""
    if activation == RELU:
        y = tl.where(z < 0, 0.0, z)
    elif activation == GELU:
        y = 0.5 * z * (1 + tl.erf(0.7071067811865476 * z))
    elif activation == SILU:
        y = z / (1 + tl.exp(-z))
    else:
        y = z
    return y
