"""Sums over ranks, and their transposes.

Of a value that is the same on every rank (parameters, statistics), each rank's share of the domain gives a part of the
gradient: `shared` is the identity forward and a sum over the ranks backward. `total` is its transpose: a sum over the
ranks forward; what is computed from that sum is computed by every rank alike, each has its whole gradient, and
backward is the identity. Sums run over one mesh axis after the other, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor

from lconv_fast.ops.geometry import accumulate_type


def sum_over(t: Tensor, groups: Sequence[Any]) -> Tensor:
    """The sum over ranks, the same bits on each; half types in float32."""
    result = t.to(accumulate_type(t.dtype)).contiguous()
    for group in groups:
        result = collectives.wait_tensor(collectives.all_reduce(result, "sum", group))
    return result.to(t.dtype)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Sequence[Any], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return tuple(t.view_as(t) for t in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # One message for all values of an operation.
        flat = torch.cat([g.reshape(-1).to(accumulate_type(g.dtype)) for g in gradients])
        parts = sum_over(flat, ctx.groups).split([g.numel() for g in gradients])
        return None, *(p.view(g.shape).to(g.dtype) for p, g in zip(parts, gradients, strict=True))


def shared(groups: Sequence[Any], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The values, for use on every rank's own part of the domain."""
    if not groups or not values or not torch.is_grad_enabled():
        return tuple(values)
    return _Shared.apply(groups, *values)  # type: ignore[no-untyped-call]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Sequence[Any], value: Tensor) -> Tensor:
        return sum_over(value, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def total(groups: Sequence[Any], value: Tensor) -> Tensor:
    return _Total.apply(groups, value)  # type: ignore[no-untyped-call]
