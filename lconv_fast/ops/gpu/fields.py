"""v(x), for all kernels: coordinates, and coefficients at points. The stencil is that of tile/ or of march/."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.views import CONSTANT, SAMPLED


@triton.jit
def as_type(x, dtype: tl.constexpr):
    """A scalar in this type, whether it is a constant of this compilation or not."""
    return tl.zeros((), dtype) + x


@triton.jit
def coordinate(v, output, box, b: tl.constexpr, wide: tl.constexpr):
    """x_b = (index_b - center_b) / scale at output points."""
    return ((output[b] * box.step[b]).to(wide) - v.center[b]) * (as_type(v.inverse_scale[0], wide) + v.inverse_scale[1])


@triton.jit
def coefficient(v, i, a: tl.constexpr, output, there, box, stencil: tl.constexpr, wide: tl.constexpr):
    """v[i, a] at output points: (points,)."""
    entry = v.data + as_type(i, tl.int64) * v.generator + a * v.component
    if stencil.kind == CONSTANT:
        value = tl.load(entry).to(wide) + tl.zeros((there.shape[0],), wide)
    elif stencil.kind == SAMPLED:
        x0, x1, x2 = output[0] * box.step[0], output[1] * box.step[1], output[2] * box.step[2]
        value = tl.load(entry + x0 * v.axes[0] + x1 * v.axes[1] + x2 * v.axes[2], mask=there, other=0.0).to(wide)
    else:
        value = tl.load(entry + stencil.ndim * v.axes[0]).to(wide) + tl.zeros((there.shape[0],), wide)
        for b in tl.static_range(3):
            if b >= 3 - stencil.ndim:
                slope = tl.load(entry + (b - 3 + stencil.ndim) * v.axes[0]).to(wide)
                value += slope * coordinate(v, output, box, b, wide)
    return value
