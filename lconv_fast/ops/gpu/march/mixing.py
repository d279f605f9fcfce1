"""W, and its gradient, between the generators and a basis: one launch each.

W_r = sum_i m[i,r] W_i,    dQ/dW_i = sum_r m[i,r] Q_r,    L_i = sum_r m[i,r] B_r, row 0 with W^0 and f besides
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.fields import as_type
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march.basis import basis_size, terms_of
from lconv_fast.ops.gpu.views import Coefficients, cdiv

WARPS = 4
ELEMENTS = 128  # of every matrix that a program mixes
SUMMED, PARTS = 64, 32  # elements of a matrix, and parts of their sums, that a program adds up at a time


class Mixture(NamedTuple):
    rows: int
    weights: Launch
    gradients: Launch

    @staticmethod
    def of(call: Call, basis: int, own: int, transposed: bool) -> Mixture:
        """own: 1 if sums of f itself are among those that make up the gradient."""
        rows = 1 + basis_size(call.geometry, basis)
        terms = terms_of(call.geometry, basis, transposed)
        identity = int(call.identity)
        weights = call.launcher(basis_weight_kernel, WARPS, terms=terms, identity=identity, rows=rows, BLOCK=ELEMENTS)
        gradients = call.launcher(
            weight_gradient_kernel, WARPS, terms=terms, identity=identity, own=own, rows=rows, BLOCK=SUMMED, PARTS=PARTS
        )
        return Mixture(rows, weights, gradients)

    def weight(self, weight: Tensor, v: Coefficients) -> Tensor:
        """W_r of every row."""
        weight = weight.contiguous()
        count, outs, ins = weight.shape
        mixed = weight.new_empty((self.rows, outs, ins))
        programs = cdiv(outs * ins, ELEMENTS)
        self.weights(programs, weight.device, weight, v, mixed, count - 1, outs * ins)
        return mixed

    def gradient(self, sums: Tensor, v: Coefficients, generators: int, dtype: torch.dtype) -> Tensor:
        """Of W^0, zero where it takes no part, and of all W_i, from sums (parts, rows of the basis, outs, ins)."""
        parts, _, outs, ins = sums.shape
        gradient = sums.new_empty((generators + 1, outs, ins), dtype=dtype)
        self.gradients(cdiv(outs * ins, SUMMED), sums.device, sums, v, gradient, generators, outs * ins, parts)
        return gradient


@triton.jit
def _mixing(v, i, row: tl.constexpr, terms: tl.constexpr):
    """m[i,r]."""
    found = tl.zeros((), tl.float32)
    for t in tl.static_range(len(terms)):
        if row == terms[t][0]:
            entry = v.data + as_type(i, tl.int64) * v.generator + terms[t][1] * v.component + terms[t][2] * v.axes[0]
            found += tl.load(entry).to(tl.float32) * terms[t][3]
    return found


@triton.jit
def basis_weight_kernel(
    weight,  # (generators + 1, size), contiguous
    v,
    target,  # (rows, size)
    generators,
    size,
    terms: tl.constexpr,
    identity: tl.constexpr,
    rows: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = e < size
    own = tl.load(weight + e, mask=there, other=0.0).to(tl.float32)
    totals = ()
    for r in tl.static_range(rows):
        totals = totals + (own if identity == 1 and r == 0 else tl.zeros((BLOCK,), tl.float32),)
    for i in range(generators):
        w = tl.load(weight + as_type(i + 1, tl.int64) * size + e, mask=there, other=0.0).to(tl.float32)
        more = ()
        for r in tl.static_range(rows):
            more = more + (totals[r] + _mixing(v, i, r, terms) * w,)
        totals = more
    for r in tl.static_range(rows):
        place = target + as_type(r, tl.int64) * size + e
        tl.store(place, totals[r].to(target.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["parts"])
def weight_gradient_kernel(
    sums,  # (parts, rows, size), without row 0 unless own
    v,
    target,  # (generators + 1, size)
    generators,
    size,
    parts,
    terms: tl.constexpr,
    identity: tl.constexpr,
    own: tl.constexpr,
    rows: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = e < size
    narrow: tl.constexpr = target.dtype.element_ty
    totals = ()
    summed: tl.constexpr = rows - 1 + own
    for r in tl.static_range(summed):
        total = tl.zeros((PARTS, BLOCK), tl.float32)
        for first in range(0, parts, PARTS):
            p = (first + tl.arange(0, PARTS)).to(tl.int64)
            entries = sums + (p * summed + r)[:, None] * size + e[None, :]
            total += tl.load(entries, mask=(p < parts)[:, None] & there[None, :], other=0.0)
        totals = totals + (tl.sum(total, 0),)
    first_row = totals[0] if identity * own == 1 else tl.zeros((BLOCK,), tl.float32)
    tl.store(target + e, first_row.to(narrow), mask=there)
    for i in range(generators):
        mixed = tl.zeros((BLOCK,), tl.float32)
        for r in tl.static_range(summed):
            mixed += _mixing(v, i, r + 1 - own, terms) * totals[r]
        tl.store(target + as_type(i + 1, tl.int64) * size + e, mixed.to(narrow), mask=there)
