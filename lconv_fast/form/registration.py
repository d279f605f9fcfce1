"""The operators' own autograd and vmap, for tracing and for direct calls: the rules of `calculus`, registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.form.calculus import F, G, S, Slots, Space, W, evaluate, gradients_of, map_over
from lconv_fast.form.point_sums import sum_points
from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.graph import TENSORS, Graph

# The prefix of the operators' names, what describes the space, and how many tensors come first in that.
_SPACES: tuple[tuple[str, Callable[..., Space], int], ...] = (("", Geometry, 0), ("graph_", Graph, TENSORS))


def _slots_of(
    name: str, space: Callable[..., Space], arguments: Sequence[Any]
) -> tuple[int, Slots, Space, bool, Tensor | None]:
    """An operator's arguments as arguments of `partial`."""
    if name == "apply":
        data, w, s, bias, *geometry, identity, transposed = arguments
        if transposed:
            return F, (s, None, w, data), space(*geometry), identity, bias
        return G, (s, data, w, None), space(*geometry), identity, bias
    if name == "gram":
        f, g, s, *geometry, identity = arguments
        return W, (s, f, None, g), space(*geometry), identity, None
    f, w, g, *geometry = arguments
    return S, (None, f, w, g), space(*geometry), True, None


# For each operator, the slots of its leading tensor arguments; for apply, "data" and "bias" as well.
_TENSORS = {"apply": ("data", W, S, "bias"), "gram": (F, G, S), "correlate": (F, W, G)}


def _register(prefix: str, name: str, space: Callable[..., Space], of_space: int) -> None:
    tensors = _TENSORS[name]
    saved = len(tensors) + of_space

    def slot_of(tensor: int | str, empty: int) -> int | str:
        return (G if empty == F else F) if tensor == "data" else tensor

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:saved])
        ctx.rest = inputs[saved:]

    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *ctx.rest)
        empty, slots, geometry, identity, _ = _slots_of(name, space, arguments)
        where = [slot_of(tensor, empty) for tensor in tensors]
        needed = [slot in where and ctx.needs_input_grad[where.index(slot)] for slot in range(4)]
        gradients = gradients_of(empty, slots, geometry, identity, u, needed)
        result = []
        for k, slot in enumerate(where):
            if slot == "bias":
                result.append(sum_points(u) if ctx.needs_input_grad[k] else None)
            else:
                result.append(gradients[slot])  # type: ignore[index]
        return *result, *[None] * (len(arguments) - len(tensors))

    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        empty, slots, geometry, identity, bias = _slots_of(name, space, arguments)
        by_slot = {slot_of(tensor, empty): dim for tensor, dim in zip(tensors, in_dims, strict=False)}
        dims = [by_slot.get(slot) for slot in range(4)]
        bias_dim = by_slot.get("bias")
        return map_over(evaluate, info.batch_size, dims, empty, slots, geometry, identity, bias, bias_dim), 0

    torch.library.register_autograd(f"lconv_fast::{prefix}{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"lconv_fast::{prefix}{name}", vmap)


def _register_backward(prefix: str, space: Callable[..., Space], of_space: int) -> None:
    saved = 4 + of_space

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:saved])
        ctx.rest = inputs[saved:]

    def backward(ctx: Any, u_features: Tensor, u_weight: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *ctx.rest)
        g, f, w, s, *geometry, identity = arguments
        place = {G: 0, F: 1, W: 2, S: 3}
        needed = [ctx.needs_input_grad[place[slot]] for slot in range(4)]
        result: list[Tensor | None] = [None] * 4
        for empty, slots, u in ((F, (s, None, w, g), u_features), (W, (s, f, None, g), u_weight)):
            for slot, term in enumerate(gradients_of(empty, slots, space(*geometry), identity, u, needed)):
                if term is not None:
                    before = result[place[slot]]
                    result[place[slot]] = term if before is None else before + term
        return *result, *[None] * (len(arguments) - 4)

    def vmap(info: Any, in_dims: tuple[int | None, ...], g: Tensor, f: Tensor, w: Tensor, s: Tensor, *rest: Any) -> Any:
        *geometry, identity = rest
        dims = dict(zip((G, F, W, S), in_dims, strict=False))
        results = []
        for empty, slots in ((F, (s, None, w, g)), (W, (s, f, None, g))):
            where = [None if k == empty else dims[k] for k in range(4)]
            arguments = (info.batch_size, where, empty, slots, space(*geometry), identity, None, None)
            results.append(map_over(evaluate, *arguments))
        return tuple(results), (0, 0)

    torch.library.register_autograd(f"lconv_fast::{prefix}backward", backward, setup_context=setup_context)
    torch.library.register_vmap(f"lconv_fast::{prefix}backward", vmap)


for _prefix, _space, _tensors in _SPACES:
    for _name in _TENSORS:
        _register(_prefix, _name, _space, _tensors)
    _register_backward(_prefix, _space, _tensors)
