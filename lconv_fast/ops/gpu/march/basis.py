"""Bases that the generators are sums of: products with their members, in the place of those with every L_i f.

Of affine fields x_b D_a and D_a, by axes a and then b, the member without x_b last. Of constant stencils f(x + tap) for
every tap but that of f itself, of which they take part, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lconv_fast.ops.geometry import CoefficientKind, Geometry
from lconv_fast.ops.gpu.call import Call
from lconv_fast.ops.gpu.march.way import offsets_of, steps_of
from lconv_fast.ops.gpu.tables import March
from lconv_fast.ops.gpu.views import AFFINE_BASIS, TAP_BASIS

# (row, component, place among its numbers, factor): row `row` is made of factor v[i, component, place]; row 0 is f.
Term = tuple[int, int, int, float]


def basis_size(g: Geometry, basis: int) -> int:
    """Members, without f itself."""
    return g.ndim * (g.ndim + 1) if basis == AFFINE_BASIS.value else len(members_of(g))


def members_of(g: Geometry) -> tuple[tuple[int, ...], ...]:
    """The taps of constant stencils but that of f itself, each once."""
    return tuple(dict.fromkeys(offset for offset in offsets_of(g) if any(offset)))


def basis_for(call: Call, entry: March) -> int | str:
    """The kind that a kernel works in: the call's own, or a basis where its products are fewer; why not, if neither
    fits."""
    g, generation = call.geometry, call.card.generation
    if g.kind == CoefficientKind.CONSTANT:
        taps, most = len(members_of(g)), entry.most_taps[generation]
        return TAP_BASIS.value if taps < most else f"{taps + 1} taps spill registers, {most} do not"
    affine = g.kind == CoefficientKind.AFFINE
    most = (entry.most_affine if affine else entry.most_fields)[generation]
    if affine and entry.basis[generation] and call.generators > min(most, g.ndim + 1):
        return AFFINE_BASIS.value
    if call.generators <= most:
        return int(g.kind)
    return f"{call.generators} generators spill registers, {most} do not"


def terms_of(g: Geometry, basis: int, transposed: bool) -> tuple[Term, ...]:
    """How members make up the generators. Transposed, kernels leave out the sign of (x_b D_a)^T."""
    if basis == AFFINE_BASIS.value:
        steps, sign = steps_of(g), -1.0 if transposed else 1.0
        assert steps is not None
        places = [(a, b) for a in range(g.ndim) for b in range(g.ndim + 1)]
        return tuple((1 + k, a, b, sign * steps[a]) for k, (a, b) in enumerate(places))
    rows = {offset: 1 + k for k, offset in enumerate(members_of(g))}
    taps = zip(offsets_of(g), g.components, g.tap_weights, strict=True)
    return tuple((rows.get(offset, 0), component, 0, weight) for offset, component, weight in taps)


def with_own(sums: Tensor, identity: int) -> Tensor:
    """Rows of dQ/dW, with a first one of zeros if W^0 takes no part."""
    return sums if identity else torch.cat([sums.new_zeros(1, *sums.shape[1:]), sums])
