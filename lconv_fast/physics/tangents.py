"""Directional derivatives of any function of tensors: d/dt f(x + t u) at t = 0, by the first method that it allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

Function = Callable[..., list[Tensor]]
Derivative = tuple[list[Tensor], list[Tensor]]  # f(x) and its tangents


def forward_mode(function: Function, x: Sequence[Tensor], u: Sequence[Tensor]) -> Derivative:
    with torch.no_grad(), forward_ad.dual_level():
        results = [
            forward_ad.unpack_dual(y)
            for y in function(*(forward_ad.make_dual(a, b) for a, b in zip(x, u, strict=True)))
        ]
        return [r.primal for r in results], [
            torch.zeros_like(r.primal) if r.tangent is None else r.tangent for r in results
        ]


def double_backward(function: Function, x: Sequence[Tensor], u: Sequence[Tensor]) -> Derivative:
    """u^T J^T w is linear in w: its gradient in w is J u."""
    with torch.enable_grad():
        x = [a.detach().requires_grad_() for a in x]
        y = function(*x)
        w = [torch.zeros_like(b, requires_grad=True) for b in y]
        found = torch.autograd.grad(
            [b for b in y if b.requires_grad],
            x,
            [c for b, c in zip(y, w, strict=True) if b.requires_grad],
            create_graph=True,
            allow_unused=True,
        )
        if any(_fails_later(g) for g in found if g is not None):
            raise RuntimeError("a function is marked as differentiable once")
        pairs = [(g, b) for g, b in zip(found, u, strict=True) if g is not None]
        tangents = torch.autograd.grad(
            [g for g, _ in pairs], w, [b for _, b in pairs], allow_unused=True, materialize_grads=True
        )
    return [b.detach() for b in y], [t.detach() for t in tangents]


def _fails_later(t: Tensor) -> bool:
    """Whether a function that is differentiable once took part: it leaves an error in the graph, off the way to w."""
    seen, stack = set(), [t.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False


def difference(function: Function, x: Sequence[Tensor], u: Sequence[Tensor]) -> Derivative:
    """Central differences of order 4."""
    with torch.no_grad():
        size = max((b.norm() / a.norm().clamp_min(1e-30)).item() for a, b in zip(x, u, strict=True)) or 1.0
        step = torch.finfo(x[0].dtype).eps ** 0.2 / size

        def at(k: int) -> list[Tensor]:
            return [y.clone() for y in function(*(a + k * step * b for a, b in zip(x, u, strict=True)))]

        one, two = ([p - m for p, m in zip(at(k), at(-k), strict=True)] for k in (1, 2))
        return at(0), [(8 * a - b) / (12 * step) for a, b in zip(one, two, strict=True)]


METHODS: dict[str, Callable[[Function, Sequence[Tensor], Sequence[Tensor]], Derivative]] = {
    "forward": forward_mode,
    "double backward": double_backward,
    "difference": difference,
}


def tangent(function: Function, x: Sequence[Tensor], u: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], str]:
    """f(x), d/dt f(x + t u), and the method: forward mode, else double backward, else differences.

    An error of `function` itself is raised by the last of them.
    """
    for name, method in METHODS.items():
        try:
            return *method(function, x, u), name
        except (RuntimeError, NotImplementedError):
            if name == "difference":
                raise
    raise AssertionError
