"""The operators' own autograd and vmap, for tracing and for direct calls: the rules of `calculus`, registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.form.calculus import F, G, S, Slots, W, evaluate, gradients_of, map_over
from lconv_fast.form.point_sums import sum_points
from lconv_fast.ops.geometry import Geometry


def _slots_of(name: str, arguments: Sequence[Any]) -> tuple[int, Slots, Geometry, bool, Tensor | None]:
    """An operator's arguments as arguments of `partial`."""
    if name == "apply":
        data, w, s, bias, *geometry, identity, transposed = arguments
        if transposed:
            return F, (s, None, w, data), Geometry(*geometry), identity, bias
        return G, (s, data, w, None), Geometry(*geometry), identity, bias
    if name == "gram":
        f, g, s, *geometry, identity = arguments
        return W, (s, f, None, g), Geometry(*geometry), identity, None
    f, w, g, *geometry = arguments
    return S, (None, f, w, g), Geometry(*geometry), True, None


# For each operator, the slots of its leading tensor arguments; for apply, "data" and "bias" as well.
_TENSORS = {"apply": ("data", W, S, "bias"), "gram": (F, G, S), "correlate": (F, W, G)}


def _register(name: str) -> None:
    tensors = _TENSORS[name]

    def slot_of(tensor: int | str, empty: int) -> int | str:
        return (G if empty == F else F) if tensor == "data" else tensor

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: len(tensors)])
        ctx.rest = inputs[len(tensors) :]

    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *ctx.rest)
        empty, slots, geometry, identity, _ = _slots_of(name, arguments)
        where = [slot_of(tensor, empty) for tensor in tensors]
        needed = [slot in where and ctx.needs_input_grad[where.index(slot)] for slot in range(4)]
        gradients = gradients_of(empty, slots, geometry, identity, u, needed)
        result = []
        for k, slot in enumerate(where):
            if slot == "bias":
                result.append(sum_points(u) if ctx.needs_input_grad[k] else None)
            else:
                result.append(gradients[slot])  # type: ignore[index]
        return *result, *[None] * len(ctx.rest)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        empty, slots, geometry, identity, bias = _slots_of(name, arguments)
        by_slot = {slot_of(tensor, empty): dim for tensor, dim in zip(tensors, in_dims, strict=False)}
        dims = [by_slot.get(slot) for slot in range(4)]
        bias_dim = by_slot.get("bias")
        return map_over(evaluate, info.batch_size, dims, empty, slots, geometry, identity, bias, bias_dim), 0

    torch.library.register_autograd(f"lconv_fast::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"lconv_fast::{name}", vmap)


for _name in _TENSORS:
    _register(_name)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _backward_of_backward(ctx: Any, u_features: Tensor, u_weight: Tensor) -> tuple[Tensor | None, ...]:
    g, f, w, s = ctx.saved_tensors
    *geometry, identity = ctx.rest
    place = {G: 0, F: 1, W: 2, S: 3}
    needed = [ctx.needs_input_grad[place[slot]] for slot in range(4)]
    result: list[Tensor | None] = [None] * 4
    for empty, slots, u in ((F, (s, None, w, g), u_features), (W, (s, f, None, g), u_weight)):
        for slot, term in enumerate(gradients_of(empty, slots, Geometry(*geometry), identity, u, needed)):
            if term is not None:
                before = result[place[slot]]
                result[place[slot]] = term if before is None else before + term
    return *result, *[None] * len(ctx.rest)


def _map_backward(
    info: Any, in_dims: tuple[int | None, ...], g: Tensor, f: Tensor, w: Tensor, s: Tensor, *rest: Any
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    *geometry, identity = rest
    dims = dict(zip((G, F, W, S), in_dims, strict=False))
    results = []
    for empty, slots in ((F, (s, None, w, g)), (W, (s, f, None, g))):
        where = [None if k == empty else dims[k] for k in range(4)]
        arguments = (info.batch_size, where, empty, slots, Geometry(*geometry), identity, None, None)
        results.append(map_over(evaluate, *arguments))
    return tuple(results), (0, 0)


torch.library.register_autograd("lconv_fast::backward", _backward_of_backward, setup_context=_setup_backward)
torch.library.register_vmap("lconv_fast::backward", _map_backward)
