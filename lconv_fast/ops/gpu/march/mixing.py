"""W, and its gradient, between the generators and the affine basis: one launch each.

W_ab = sum_i m[i,a,b] W_i,    dQ/dW_i = sum_ab m[i,a,b] S_ab,    m[i,a,b] = (step along a) v[i,a,b]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.basis import basis_size
from lconv_fast.ops.gpu.views import Coefficients, cdiv

WARPS = 4
ELEMENTS = 512  # of a matrix that a program mixes
SUMMED, PARTS = 64, 32  # elements of a matrix, and parts of their sums, that a program adds up at a time


class Mixture(NamedTuple):
    """Transposed, the kernels leave out the sign of (x_b D_a)^T, too."""

    ndim: int
    weights: Launch
    gradients: Launch

    @staticmethod
    def of(call: Call, steps: Sequence[float], transposed: bool) -> Mixture:
        n = call.geometry.ndim
        factors = tuple(-step if transposed else step for step in steps)
        weights = call.launcher(basis_weight_kernel, WARPS, factors=factors, ndim=n, BLOCK=ELEMENTS)
        gradients = call.launcher(
            weight_gradient_kernel,
            WARPS,
            factors=factors,
            ndim=n,
            identity=int(call.identity),
            rows=basis_size(call.geometry) + call.identity,
            BLOCK=SUMMED,
            PARTS=PARTS,
        )
        return Mixture(n, weights, gradients)

    def weight(self, weight: Tensor, v: Coefficients) -> Tensor:
        """W^0, then W_ab."""
        weight = weight.contiguous()
        count, outs, ins = weight.shape
        rows = 1 + self.ndim * (self.ndim + 1)
        mixed = weight.new_empty((rows, outs, ins))
        programs = rows * cdiv(outs * ins, ELEMENTS)
        self.weights(programs, weight.device, weight, v, mixed, count - 1, outs * ins, rows)
        return mixed

    def gradient(self, sums: Tensor, v: Coefficients, generators: int, dtype: torch.dtype) -> Tensor:
        """Of W^0, zero where it takes no part, and of all W_i, from sums (parts, rows of the basis, outs, ins)."""
        parts, _, outs, ins = sums.shape
        gradient = sums.new_empty((generators + 1, outs, ins), dtype=dtype)
        self.gradients(cdiv(outs * ins, SUMMED), sums.device, sums, v, gradient, generators, outs * ins, parts)
        return gradient


@triton.jit
def _mixing(v, i, a, b, factor):
    entry = v.data + as_type(i, tl.int64) * v.generator + a * v.component + b * v.axes[0]
    return tl.load(entry).to(tl.float32) * factor


@triton.jit
def basis_weight_kernel(
    weight,  # (generators + 1, size), contiguous
    v,
    target,  # (rows, size)
    generators,
    size,
    rows,
    factors: tl.constexpr,
    ndim: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row, block = program % rows, program // rows
    e = block * BLOCK + tl.arange(0, BLOCK)
    there = e < size
    place = target + as_type(row, tl.int64) * size + e
    if row == 0:
        tl.store(place, tl.load(weight + e, mask=there), mask=there)
    else:
        a, b = (row - 1) // (ndim + 1), (row - 1) % (ndim + 1)
        factor = tl.where(a == 0, factors[0], tl.where(a == 1, factors[1], factors[ndim - 1]))
        total = tl.zeros((BLOCK,), tl.float32)
        for i in range(generators):
            w = tl.load(weight + as_type(i + 1, tl.int64) * size + e, mask=there, other=0.0)
            total += _mixing(v, i, a, b, factor) * w.to(tl.float32)
        tl.store(place, total.to(target.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["parts"])
def weight_gradient_kernel(
    sums,  # (parts, rows, size)
    v,
    target,  # (generators + 1, size)
    generators,
    size,
    parts,
    factors: tl.constexpr,
    ndim: tl.constexpr,
    identity: tl.constexpr,
    rows: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = e < size
    narrow: tl.constexpr = target.dtype.element_ty
    totals = ()
    for r in tl.static_range(rows):
        total = tl.zeros((PARTS, BLOCK), tl.float32)
        for first in range(0, parts, PARTS):
            p = (first + tl.arange(0, PARTS)).to(tl.int64)
            entries = sums + (p * rows + r)[:, None] * size + e[None, :]
            total += tl.load(entries, mask=(p < parts)[:, None] & there[None, :], other=0.0)
        totals = totals + (tl.sum(total, 0),)
    own = totals[0] if identity == 1 else tl.zeros((BLOCK,), tl.float32)
    tl.store(target + e, own.to(narrow), mask=there)
    for i in range(generators):
        mixed = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(ndim * (ndim + 1)):
            m = _mixing(v, i, k // (ndim + 1), k % (ndim + 1), factors[k // (ndim + 1)])
            mixed += m * totals[identity + k]
        tl.store(target + as_type(i + 1, tl.int64) * size + e, mixed.to(narrow), mask=there)
