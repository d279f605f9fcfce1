"""The sum of each channel over batch and points: the gradient of a bias, in an order of its own.

torch.sum would do, but for one thing: its order, and so its last bit, follows the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lconv_fast.ops  # noqa: F401  registers torch.ops.lconv_fast
from lconv_fast.form.recording import Function, nothing_records


def _spread(sums: Tensor, shape: torch.Size) -> Tensor:
    """The transpose: each channel's number at every point."""
    return sums.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)


class _SumPoints(Function):
    """The operator in eager mode, where operators have no forward-mode derivative of their own."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.lconv_fast.sum_points(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return _spread(u, ctx.shape)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return sum_points(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], values: Tensor) -> tuple[Tensor, int]:
        return _map(info, in_dims, values, sum_points)


def _map(info: Any, in_dims: tuple[int], values: Tensor, call: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """Examples are more channels."""
    merged = values.movedim(in_dims[0], 1).flatten(1, 2)
    return call(merged).unflatten(0, (info.batch_size, -1)), 0


def sum_points(values: Tensor) -> Tensor:
    """(N, C, *spatial), up to three spatial axes, to (C,), differentiable to every order."""
    if torch.compiler.is_compiling():
        return torch.ops.lconv_fast.sum_points(values)
    if nothing_records():
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.lconv_fast.sum_points(values)
    return _SumPoints.apply(values)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


torch.library.register_autograd(
    "lconv_fast::sum_points", lambda ctx, u: _spread(u, ctx.shape), setup_context=_setup_context
)
torch.library.register_vmap(
    "lconv_fast::sum_points",
    lambda info, in_dims, values: _map(info, in_dims, values, torch.ops.lconv_fast.sum_points),
)
