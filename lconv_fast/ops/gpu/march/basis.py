"""The affine basis x_b D_a, D_a: products with its members, at a factor each, in the place of those with L_i."""

from __future__ import annotations

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


def with_own(sums: Tensor, identity: int) -> Tensor:
    """Rows of dQ/dW, with a first one of zeros if W^0 takes no part."""
    return sums if identity else torch.cat([sums.new_zeros(1, *sums.shape[1:]), sums])
