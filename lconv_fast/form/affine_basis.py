"""The gradients of affine numbers and of the weight from one gram in the basis x_b D_m, D_m."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lconv_fast.form.point_sums import sum_points
from lconv_fast.ops.geometry import CoefficientKind, Geometry


def pays(geometry: Geometry, s: Tensor | None, f: Tensor | None, with_weight: bool) -> bool:
    """Whether one gram in that basis beats n_L products for dQ/ds and n_L + 1 for dQ/dW. It takes 2 n + 1 products with
    C_in x C_out matrices a point for vector fields, and one for each of its members where there are other derivatives.
    Half types keep their float32 dQ/ds."""
    if geometry.kind != CoefficientKind.AFFINE or s is None or f is None:
        return False
    if f.dtype not in (torch.float32, torch.float64):
        return False
    count, components, ndim = s.shape[0], s.shape[1], geometry.ndim
    products = 2 * ndim if components == ndim else components * (ndim + 1)
    return products + 1 < count + (min(count, products) + 1 if with_weight else 0)


def gradients(gram: Callable[[Tensor], Tensor], s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """dQ/ds and dQ/dW of affine coefficients s[i,a,b], contractions of G_ab = dQ/dW in the basis E_ab:

        dQ/ds[i,a,b] = <W_i, G_ab>,  dQ/dW_i = sum_ab s[i,a,b] G_ab.

    `gram` gives dQ/dW for coefficients. Both contractions are summed in an order that does not depend on the number of
    threads, and in s's own type under autocast, which matrix products would not be.
    """
    count, size = s.shape[0], s.shape[1] * s.shape[2]
    basis = torch.eye(size, dtype=s.dtype, device=s.device).reshape(size, *s.shape[1:])
    found = gram(basis)
    area = w.shape[1] * w.shape[2]
    places, numbers = found[1:].reshape(size, area), s.reshape(count, size)
    s_gradient = torch.stack([sum_points((row * places).unsqueeze(0)) for row in w[1:].reshape(count, area)])
    w_gradient = numbers[:, :1] * places[0]
    for q in range(1, size):
        w_gradient = w_gradient + numbers[:, q : q + 1] * places[q]
    return s_gradient.reshape(s.shape), torch.cat([found[:1], w_gradient.reshape(w[1:].shape)])
