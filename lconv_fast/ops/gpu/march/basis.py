"""The affine basis x_b D_a, D_a: products with its members, at a factor each, in the place of those with L_i."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast.ops.geometry import CoefficientKind, Geometry
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.tables import March


def basis_size(g: Geometry) -> int:
    return g.ndim * (g.ndim + 1)


def in_basis(call: Call, entry: March) -> bool | str:
    """Whether products with the basis serve better than those with every L_i f; why not, if neither fits."""
    affine, generation = call.geometry.kind == CoefficientKind.AFFINE, call.card.generation
    most = (entry.most_affine if affine else entry.most_fields)[generation]
    if affine and entry.basis[generation] and call.generators > min(most, call.geometry.ndim + 1):
        return True
    if call.generators <= most:
        return False
    return f"{call.generators} generators spill registers, {most} do not"


def mixing(v: Tensor, steps: Sequence[float], transposed: bool = False) -> Tensor:
    """v[i,a,b], with what the kernels leave out of x_b D_a: the step along a, and transposed the sign."""
    sign = -1 if transposed else 1
    return torch.stack([v[:, a].float() * (sign * step) for a, step in enumerate(steps)], 1)


def basis_weight(weight: Tensor, mixing: Tensor) -> Tensor:
    """W_ab = sum_i mixing[i,a,b] W_i."""
    mixed = torch.einsum("iab,ioc->aboc", mixing, weight[1:].float())
    return torch.cat([weight[:1], mixed.flatten(0, 1).to(weight.dtype)])


def by_axis(g: Geometry, sums: Tensor) -> Tensor:
    """Rows of the basis as (a, b, outs, ins)."""
    return sums.unflatten(0, (g.ndim, g.ndim + 1))


def weight_gradient(g: Geometry, sums: Tensor, mixing: Tensor | None, identity: bool) -> Tensor:
    """dQ/dW of W^0, zero where it takes no part, and of all W_i, sum_ab mixing[i,a,b] sums[ab] from the basis."""
    own = sums[:1] if identity else sums.new_zeros(1, *sums.shape[1:])
    if identity and mixing is None:
        return sums
    if identity:
        sums = sums[1:]
    if mixing is not None:
        sums = torch.einsum("iab,aboc->ioc", mixing, by_axis(g, sums))
    return torch.cat([own, sums])
