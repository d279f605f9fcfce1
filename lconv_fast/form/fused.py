"""y = activation(z + residual), z the layer, in one pass over a GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lconv_fast.epilogue import differentiated, finish
from lconv_fast.form.calculus import G, gradients_of
from lconv_fast.form.layer import geometry_of, lconv
from lconv_fast.form.point_sums import sum_points
from lconv_fast.ops.geometry import Geometry, Stencil, Window

_HALVES = (torch.float16, torch.bfloat16)


def on_gpu(input: Tensor) -> bool:
    return input.is_cuda


def finished(
    coefficients: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    stencil: Stencil,
    stride: Sequence[int],
    groups: int,
    window: Window | None = None,
    halo: Sequence[int] | None = None,
) -> Tensor:
    """`form.lconv`, then `epilogue.finish`: in one pass where that can be."""
    if (residual is None and activation is None) or not _in_one_pass(stencil, input):
        y = lconv(coefficients, input, weight, bias, stencil, stride, groups, window, halo)
        return finish(y, residual, activation)
    if residual is not None:
        residual = residual.to(input.dtype)
    geometry = geometry_of(stencil, input, stride, groups, window, halo)
    tensors = (input, weight, coefficients, bias, residual)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    keep = recorded and activation not in (None, "relu")
    y, _ = torch.ops.lconv_fast.finished(*tensors, activation, keep, *geometry, True)
    return y


def _in_one_pass(stencil: Stencil, input: Tensor) -> bool:
    """Not on CPUs, in float32 and float64, for transposed generators, under forward-mode derivatives and functorch's
    transforms, nor in exported graphs, whose readers know the parts."""
    if stencil.transposed or input.dtype not in _HALVES or not on_gpu(input) or torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or not (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.activation, _, *ctx.geometry, ctx.identity = inputs[5:]
    ctx.save_for_backward(*inputs[:5], output[0] if ctx.activation == "relu" else output[1])


def _backward(ctx: Any, u: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    f, w, s, bias, residual, result = ctx.saved_tensors
    rest = [None] * (3 + len(ctx.geometry))
    if u is None:
        return *[None] * 5, *rest
    if torch.is_grad_enabled():
        return *_composed_gradients(ctx, u, (f, w, s, bias, residual)), *rest
    u = differentiated(u, ctx.activation, result)
    of_f, of_w, of_s, of_bias, of_residual = ctx.needs_input_grad[:5]
    needed = (of_s, of_f, of_w, False)
    g_s, g_f, g_w, _ = gradients_of(G, (s, f, w, None), Geometry(*ctx.geometry), ctx.identity, u, needed)
    return g_f, g_w, g_s, sum_points(u) if of_bias else None, u if of_residual else None, *rest


def _composed_gradients(ctx: Any, u: Tensor, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Those of the parts, which have derivatives of every order; the layer is computed again."""
    f, w, s, bias, residual = tensors
    y = torch.ops.lconv_fast.apply(f, w, s, bias, *ctx.geometry, ctx.identity, False)
    y = finish(y, residual, ctx.activation)
    wanted = [t for t, needed in zip(tensors, ctx.needs_input_grad, strict=False) if t is not None and needed]
    found = iter(torch.autograd.grad(y, wanted, u, create_graph=True))
    return [next(found) if t is not None and ctx.needs_input_grad[k] else None for k, t in enumerate(tensors)]


torch.library.register_autograd("lconv_fast::finished", _backward, setup_context=_setup_context)
