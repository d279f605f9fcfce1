"""Evaluates a Lagrangian density with its derivatives in phi and d_a phi, and checks what users wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lconv_fast.modules import LConv1d, LConv2d, LConv3d
from lconv_fast.physics.derivatives import Accuracy

Density = Callable[[Tensor, Tensor, Tensor], Tensor]
# Autograd calls their derivative zero, which is no derivative.
STEPS = ("FloorBackward", "CeilBackward", "RoundBackward", "TruncBackward")


class Scheme(NamedTuple):
    """How d_a is taken."""

    accuracy: Accuracy = 2
    padding_mode: str = "zeros"


def scheme_of(accuracy: Accuracy | None, padding_mode: str | None, *sources: object) -> Scheme:
    """What is given; else that of the first source which has it; else the library's defaults, 2 and 'zeros'."""
    found: dict[str, Accuracy | None] = {"accuracy": accuracy, "padding_mode": padding_mode}
    for name, given in found.items():
        for source in sources:
            given = getattr(source, name, None) if given is None else given
        found[name] = given
    return Scheme(**{name: value for name, value in found.items() if value is not None})  # type: ignore[arg-type]


def check_lagrangian(lagrangian: object) -> None:
    if isinstance(lagrangian, LConv1d | LConv2d | LConv3d):
        raise TypeError("lagrangian: a layer is none; expected QuadraticLagrangian.from_layer(layer)")
    if not callable(lagrangian):
        raise TypeError(
            "lagrangian: expected a QuadraticLagrangian or a density (phi, dphi, x) -> (N, *spatial), "
            f"got {type(lagrangian).__name__}"
        )


def evaluate(lagrangian: Density, phi: Tensor, dphi: Tensor, x: Tensor) -> Tensor:
    """The density, (N, *spatial), whose shape and type are checked."""
    value = lagrangian(phi, dphi, x)
    expected = (phi.shape[0], *phi.shape[2:])
    if not isinstance(value, Tensor):
        raise TypeError(f"lagrangian: expected a tensor (N, *spatial), got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"lagrangian: expected a real density, got {value.dtype}; take .real or .abs().square()")
    if tuple(value.shape) != expected:
        raise ValueError(
            f"lagrangian: expected a density of shape (N, *spatial) = {expected}, got {tuple(value.shape)}"
        )
    return value


def leaf(t: Tensor) -> Tensor:
    """t itself where it takes part in autograd, else a leaf of its own that does."""
    return t if t.requires_grad else t.detach().requires_grad_()


def gradients(
    total: Tensor, inputs: tuple[Tensor, ...], recorded: bool, cotangent: Tensor | None = None
) -> tuple[Tensor, ...]:
    """d total / d inputs (for complex inputs d/dRe + i d/dIm), zero where an input takes no part; of a total that is
    no number, contracted with a cotangent.

    They are differentiable again where the caller's tensors are (`recorded`) or where parameters take part.

    Raises:
        ValueError: total depends on none of the inputs in a differentiable way.
    """
    if not total.requires_grad:
        raise ValueError(
            "lagrangian: its density is not differentiable: it depends on neither phi nor dphi by autograd"
        )
    others = _inspect(total, inputs)
    create = torch.is_grad_enabled() and (recorded or others)
    with torch.enable_grad():
        found = torch.autograd.grad(total, inputs, cotangent, create_graph=create, allow_unused=True)
    if all(g is None for g in found):
        raise ValueError(
            "lagrangian: its density is not differentiable: it depends on neither phi nor dphi by autograd"
        )
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True))


def _inspect(total: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether leaves other than `inputs` take part. Raises ValueError for steps, which have no derivative."""
    known = {id(t) for t in inputs}
    seen, stack, others = set(), [total.grad_fn], False
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(STEPS):
            raise ValueError(f"lagrangian: its density is not differentiable: it has {node.name()}, a step function")
        variable = getattr(node, "variable", None)
        others |= variable is not None and id(variable) not in known
        stack += [parent for parent, _ in node.next_functions]
    return others
