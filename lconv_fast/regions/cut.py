"""A part of a tensor along several axes, whose gradient is one array of zeros with the part in its place.

Slices one after the other would make such an array for each axis; they took a third of the time of a streamed step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: tuple[slice, ...]) -> Tensor:
        ctx.index, ctx.shape, ctx.strides = index, tensor.shape, tensor.stride()
        ctx.dense = torch.empty_like(tensor, device="meta").stride() == ctx.strides
        return tensor[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.dense:
            whole = gradient.new_empty_strided(ctx.shape, ctx.strides).zero_()
        else:
            whole = gradient.new_zeros(ctx.shape)
        whole[ctx.index] = gradient
        return whole, None


def cut(tensor: Tensor, parts: dict[int, tuple[int, int]]) -> Tensor:
    """tensor[..., first:stop, ...] for the dimensions in `parts`; itself where that is all of it."""
    parts = {dim: part for dim, part in parts.items() if part != (0, tensor.shape[dim])}
    if not parts:
        return tensor
    index = tuple(slice(*parts[dim]) if dim in parts else slice(None) for dim in range(tensor.dim()))
    return _Cut.apply(tensor, index)  # type: ignore[no-untyped-call]
