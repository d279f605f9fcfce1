"""The partials of Q, their derivatives of every order and their map over examples: the rules stand here once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import lconv_fast.ops  # noqa: F401  registers torch.ops.lconv_fast
from lconv_fast import grid
from lconv_fast.form import affine_basis
from lconv_fast.form.point_sums import sum_points
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.graph import Graph

S, F, W, G = range(4)  # the slots

Space = Geometry | Graph  # what the generators act on, in the order of the operators' arguments
Slots = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _operators(geometry: Space) -> tuple[Callable[..., Any], ...]:
    """apply, gram, correlate and backward."""
    ops = torch.ops.lconv_fast
    if isinstance(geometry, Graph):
        return ops.graph_apply, ops.graph_gram, ops.graph_correlate, ops.graph_backward
    return ops.apply, ops.gram, ops.correlate, ops.backward


def _inverts(geometry: Space) -> bool:
    return isinstance(geometry, Graph) or PaddingMode(geometry.padding_mode).inverts


def evaluate(empty: int, slots: Slots, geometry: Space, identity: bool, bias: Tensor | None) -> Tensor:
    """The partial of Q that leaves slot `empty` open, by the operators; the bias is added to dQ/dg alone."""
    s, f, w, g = slots
    apply, gram, correlate, _ = _operators(geometry)
    if empty == G:
        return apply(f, w, s, bias, *geometry, identity, False)
    if empty == W:
        return gram(f, g, s, *geometry, identity)
    if empty == S:
        return correlate(f, w, g, *geometry)
    if _inverts(geometry):
        return apply(g, w, s, None, *geometry, identity, True)
    assert isinstance(geometry, Geometry)
    # Clamped and mirrored taps do not invert: transpose on the extended array, then fold its border back. Half types
    # stay in float32 until then, so that points are rounded once.
    assert g is not None and w is not None
    extended, dtype = geometry.extended(), g.dtype
    if dtype in (torch.float16, torch.bfloat16):
        g, w = g.float(), w.float()
    array = apply(g, w, s, None, *extended, identity, True)
    return grid.fold(array, geometry.spatial, extended.halo, PaddingMode(geometry.padding_mode)).to(dtype)


def _filled(slots: Slots, index: int, value: Tensor | None) -> Slots:
    return (*slots[:index], value, *slots[index + 1 :])  # type: ignore[return-value]


def gradients_of(
    empty: int, slots: Slots, geometry: Space, identity: bool, u: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """u contracted with the derivatives of a partial in its slots, None where not needed."""
    full = _filled(slots, empty, u)
    result: list[Tensor | None] = [None] * 4
    weight_wanted = needed[W] and empty != W
    if (
        empty != S
        and needed[S]
        and isinstance(geometry, Geometry)
        and affine_basis.pays(geometry, full[S], full[F], weight_wanted)
    ):

        def gram(basis: Tensor) -> Tensor:
            return partial(W, (basis, full[F], None, full[G]), geometry, identity)

        s, w = full[S], full[W]
        assert s is not None and w is not None
        result[S], weight_gradient = affine_basis.gradients(gram, s, w)
        result[W] = weight_gradient if weight_wanted else None
        needed = [k in (F, G) and needed[k] for k in range(4)]
    if empty not in (F, W) and needed[F] and needed[W] and _both_at_once(geometry):
        for slot, gradient in zip((F, W), _backward(full, geometry, identity and empty != S), strict=True):
            result[slot] = gradient.to(slots[slot].dtype)  # type: ignore[union-attr]
        needed = [k in (S, G) and result[k] is None and needed[k] for k in range(4)]
    for slot in range(4):
        value = slots[slot]
        if slot == empty or value is None or not needed[slot]:
            continue
        gradient = partial(slot, _filled(full, slot, None), geometry, identity and empty != S)
        result[slot] = gradient.to(value.dtype)
    return result


def _both_at_once(geometry: Space) -> bool:
    """Whether one operator may give dQ/df and dQ/dW: where no derivatives of them are asked for."""
    recorded = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    return not recorded and _inverts(geometry)


def _backward(full: Slots, geometry: Space, identity: bool) -> tuple[Tensor, Tensor]:
    s, f, w, g = full
    backward = _operators(geometry)[3]
    if torch.compiler.is_compiling():
        return backward(g, f, w, s, *geometry, identity)
    with torch._C._AutoDispatchBelowAutograd():
        return backward(g, f, w, s, *geometry, identity)


def map_over(
    call: Callable[..., Tensor],
    size: int,
    dims: Sequence[int | None],
    empty: int,
    slots: Slots,
    geometry: Space,
    identity: bool,
    bias: Tensor | None,
    bias_dim: int | None,
) -> Tensor:
    """A partial, by `partial` or `evaluate`, for `size` examples, stacked in dimension 0; dims[k] is the example axis
    of slots[k] or None."""
    data = F if empty == G else G
    if empty in (G, F) and bias_dim is None and [k for k in range(4) if dims[k] is not None] == [data]:
        # Only the data differ: examples are one more batch.
        values = slots[data].movedim(dims[data], 0)  # type: ignore[union-attr, arg-type]
        merged = _filled(slots, data, values.flatten(0, 1))
        result = call(empty, merged, geometry, identity, bias)
        return result.unflatten(0, (size, values.shape[1]))

    def example(t: Tensor | None, dim: int | None, k: int) -> Tensor | None:
        return t if t is None or dim is None else t.select(dim, k)

    results = []
    for k in range(size):
        one = tuple(example(t, dim, k) for t, dim in zip(slots, dims, strict=True))
        results.append(call(empty, one, geometry, identity, example(bias, bias_dim, k)))
    return torch.stack(results)


class _Partial(torch.autograd.Function):
    """A partial of Q in eager mode: backward, forward-mode and vmap rules from the functions above."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)  # type: ignore[no-untyped-call]
        # Past the signature inspection of Function.apply, which is for keyword arguments and costs as much as the rest.
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @staticmethod
    def forward(empty: int, geometry: Geometry, identity: bool, bias: Tensor | None, *slots: Any) -> Tensor:
        # This function is the autograd of the call: that of the operators would only cost time.
        with torch._C._AutoDispatchBelowAutograd():
            return evaluate(empty, slots, geometry, identity, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.empty, ctx.geometry, ctx.identity, _, *slots = inputs
        ctx.output_shape = output.shape
        ctx.save_for_backward(*slots)
        ctx.save_for_forward(*slots)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad
        gradients = gradients_of(ctx.empty, ctx.saved_tensors, ctx.geometry, ctx.identity, u, needed[4:])
        return None, None, None, sum_points(u) if needed[3] else None, *gradients

    @staticmethod
    def jvp(
        ctx: Any, _empty: None, _geometry: None, _identity: None, bias_tangent: Tensor | None, *tangents: Any
    ) -> Any:
        slots = ctx.saved_tensors
        terms = [
            partial(ctx.empty, _filled(slots, k, t), ctx.geometry, ctx.identity and k != S)
            for k, t in enumerate(tangents)
            if t is not None
        ]
        if bias_tangent is not None:
            terms.append(bias_tangent.reshape(-1, *[1] * (len(ctx.output_shape) - 2)).expand(ctx.output_shape).clone())
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], empty: int, geometry: Geometry, identity: bool, bias: Any, *slots: Any
    ) -> Any:
        _, _, _, bias_dim, *dims = in_dims
        return map_over(partial, info.batch_size, dims, empty, slots, geometry, identity, bias, bias_dim), 0


def partial(empty: int, slots: Slots, geometry: Space, identity: bool = True, bias: Tensor | None = None) -> Tensor:
    """The partial of Q that leaves slot `empty` open (None in `slots`), differentiable to every order.

    Tracing sees the operators themselves, whose autograd formulas are registered below: Dynamo takes no
    autograd.Function with a jvp of its own, and operators take no jvp. Both roads use the same rules.
    """
    if torch.compiler.is_compiling():
        return evaluate(empty, slots, geometry, identity, bias)
    if _nothing_records():
        with torch._C._AutoDispatchBelowAutograd():
            return evaluate(empty, slots, geometry, identity, bias)
    return _Partial.apply(empty, geometry, identity, bias, *slots)


def _nothing_records() -> bool:
    """Whether no derivative can be asked for, backward or forward: a third of a small call's time is then saved."""
    return not (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )
