"""Robustness to noise as an Euler-Lagrange equation, eq. (21) of Dehmamy et al. 2021."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_function, check_tensor
from lconv_fast.physics.density import Density, check_lagrangian, differentiate, evaluate, leaf, scheme_of
from lconv_fast.physics.derivatives import Accuracy, check_field, check_scheme, coordinates, gradient
from lconv_fast.physics.lagrangian import QuadraticLagrangian


def euler_lagrange(
    lagrangian: QuadraticLagrangian | Density,
    phi: Tensor,
    *,
    accuracy: Accuracy | None = None,
    padding_mode: str | None = None,
) -> Tensor:
    """E = dL/dphi - d_a dL/d(d_a phi), eq. (21): the gradient of the discrete action S = sum_x L(phi, D phi, x).

    It is exactly that gradient: in the place of -d_a stands the transpose D_a^T, which is -D_a on periodic axes and
    away from the boundary. So S[phi + delta] - S[phi] = sum E . delta + O(delta^2) to rounding.

    Args:
        lagrangian: a QuadraticLagrangian (|Q[phi]|^2 of a layer costs a forward pass and its adjoint), or any density:
            phi (N, m, *spatial), dphi (N, m, n, *spatial), x (n, *spatial) centred, in pixels -> (N, *spatial).
        phi: (N, m, *spatial). For a complex phi, E = dS/dRe phi + i dS/dIm phi, so that dS = Re sum conj(E) delta.
        accuracy, padding_mode: of d_a. None: those of the Lagrangian if it has them, else 2 and 'zeros'.

    Returns:
        E, of the shape and dtype of phi; differentiable where phi or parameters of the Lagrangian are.

    Raises:
        TypeError, ValueError: a density of the wrong shape or type, one that is not differentiable, a wrong phi.
    """
    check_lagrangian(lagrangian)
    check_field("phi", phi)
    scheme = scheme_of(accuracy, padding_mode, lagrangian)
    check_scheme(*scheme, phi.dim() - 2)
    recorded, field = phi.requires_grad, leaf(phi)
    if isinstance(lagrangian, QuadraticLagrangian):
        lagrangian.check(phi)
    with torch.enable_grad():
        own = isinstance(lagrangian, QuadraticLagrangian) and scheme == scheme_of(None, None, lagrangian)
        if own and lagrangian.layer is not None:  # type: ignore[union-attr]
            # d|y|^2 = 2 y . dy, without a pass over the squares.
            y = lagrangian.output(field)  # type: ignore[union-attr]
            return differentiate(y, (field,), recorded, 2 * y)[0]
        dphi = gradient(field, *scheme)
        action = evaluate(lagrangian, field, dphi, coordinates(tuple(phi.shape[2:]), phi)).sum()
    return differentiate(action, (field,), recorded)[0]


class Robustness(NamedTuple):
    """How the loss I changes with noise: I[phi + noise] - I[phi] has the standard deviation sigma * number."""

    map: Tensor  # |E| over components, (N, *spatial)
    number: Tensor  # |E| over components and points, (N,)
    residual: Tensor  # E, as phi


def robustness(
    model: nn.Module | QuadraticLagrangian | Density,
    phi: Tensor,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Robustness:
    """The Euler-Lagrange residual of the loss of a layer or model at phi: zero where noise does not change it (eq. 21).

    To first order, white noise of standard deviation sigma per component changes the loss I_n of sample n by a normal
    number of standard deviation sigma |E_n|.

    Args:
        model: a module phi -> y, with the loss I_n = |y_n|^2 or `loss`; or a QuadraticLagrangian.
        phi: (N, m, *spatial).
        loss: y -> one number for each sample, (N,).

    Raises:
        TypeError, ValueError: a loss that is not (N,), or that does not depend on phi differentiably.
    """
    check_field("phi", phi)
    if loss is not None:
        check_function("loss", loss, "the result y")
    if isinstance(model, QuadraticLagrangian):
        residual = euler_lagrange(model, phi)
    else:
        if not callable(model):
            raise TypeError(f"model: expected a module or function of phi, got {type(model).__name__}")
        recorded, field = phi.requires_grad, leaf(phi)
        with torch.enable_grad():
            y = model(field)  # type: ignore[call-arg]
            check_tensor("model", y)
            each = y.abs().square().flatten(1).sum(1) if loss is None else loss(y)
            check_tensor("loss", each)
            if tuple(each.shape) != (phi.shape[0],):
                raise ValueError(
                    f"loss: expected one number for each sample, ({phi.shape[0]},), got {tuple(each.shape)}"
                )
            total = each.sum()
        residual = differentiate(total, (field,), recorded)[0]
    squares = residual.abs().square().sum(1)
    return Robustness(squares.sqrt(), squares.flatten(1).sum(1).sqrt(), residual)
