"""What lies outside the grid, for the kernels: the rules of ``lconv_fast/ops/boundary.py`` in Triton. Nothing else in
this folder knows one mode from another."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.boundary import PaddingMode

CIRCULAR = tl.constexpr(int(PaddingMode.CIRCULAR))
REPLICATE = tl.constexpr(int(PaddingMode.REPLICATE))
REFLECT = tl.constexpr(int(PaddingMode.REFLECT))


@triton.jit
def shown(at, size, padding: tl.constexpr):
    """The index that the array shows at `at`, and whether there is one."""
    inside = (at >= 0) & (at < size)
    if padding == CIRCULAR:
        at = ((at % size) + size) % size
        inside = at >= 0
    elif padding == REPLICATE:
        at = tl.minimum(tl.maximum(at, 0), size - 1)
        inside = at >= 0
    elif padding == REFLECT:
        at = (size - 1) - tl.abs((size - 1) - tl.abs(at))
        inside = at >= 0
    return at, inside


@triton.jit
def showing(at, size, padding: tl.constexpr):
    """The rule backwards, of modes that invert: the index reckoned at `at`, if it lies in the grid at all."""
    if padding == CIRCULAR:
        at = ((at % size) + size) % size
    return at


@triton.jit
def beside(i, size, padding: tl.constexpr):
    """Of modes that invert, both rules without a division, for an index that is at most one step outside (two, if what
    is there is never needed)."""
    if padding == CIRCULAR:
        i = tl.where(i < 0, i + size, tl.where(i >= size, i - size, i))
    return i, (i >= 0) & (i < size)
