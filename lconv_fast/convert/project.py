"""A converted model moved, step by step, towards one built from the generators of a symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_module, real
from lconv_fast.convert.conv import to_conv
from lconv_fast.convert.frame import LConv
from lconv_fast.convert.swap import Maker, Where, chooser, put_all
from lconv_fast.convert.taps import constant_taps
from lconv_fast.generators import Generators


class Moving(nn.Module):
    """source(x) + target(x): two L-convs in parallel, while weight moves from the one to the other. The bias is the
    source's."""

    def __init__(self, source: LConv, target: LConv) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.source(input) + self.target(input)


@dataclass(frozen=True)
class Moved:
    """One layer after a step: `outside` is the part of the source's operator that the generators cannot express,
    relative to all of it (Frobenius norm); None once the target stands alone."""

    path: str
    outside: float | None


def project(
    model: nn.Module, generators: str | Generators, strength: float, where: Where = None, **generator_keywords: Any
) -> list[Moved]:
    """Moves the L-convs of a converted model a step towards L-convs with the generators of a symmetry, in place.

    For the operator K of a layer with constant generators, and the nearest one P K of the form I W^0 + L_i W^i in the
    least-squares sense (as in `swap`):

        K  <-  (1 - strength) K + strength P K

    K stays as it is, times 1 - strength, beside a second L-conv that holds what was moved; both are trained. Repeated
    while the model is fine-tuned, K fades like (1 - strength)^steps; with strength 1, L-convs with the new generators
    alone are left, and the model has the equivariance of I and L_i: exactly, as far as those commute with the group.

    The first call puts the second L-convs in: give their parameters to the optimizer after it. A first call with
    strength 0 does that and no more.

    Args:
        model: holds L-convs with constant generators, as `swap(model, "shifts")` makes them. Others are left.
        generators: a name or a Generators object, chosen or discovered, as for `swap`; the same at each call.
        strength: 0 to 1.
        where: which layers, as for `swap`.
        **generator_keywords: with a name.

    Returns:
        one entry for each layer that was moved.

    Raises:
        TypeError, ValueError: before the model is touched: as `swap` does; for a strength out of range; where no layer
            can be moved, or the model itself is the layer.
    """
    check_module("model", model)
    strength = real("strength", strength, 0, 1)
    if not isinstance(generators, (str, Generators)):
        raise TypeError(f"generators: expected a name or a Generators object, got {type(generators).__name__}")
    chosen, maker = chooser(where), Maker(generators, "fit", generator_keywords)
    steps: dict[nn.Module, tuple[str, LConv, float]] = {}
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for path, module in model.named_modules(remove_duplicate=False):
        inner = path.rpartition(".")
        if isinstance(model.get_submodule(inner[0]), Moving) or not isinstance(module, LConv | Moving):
            continue
        source: Any = module.source if isinstance(module, Moving) else module
        if not chosen(path, module) or constant_taps(source.generators) is None:
            continue
        if not path:
            raise ValueError("model: expected a model that holds L-convs, got one of them alone")
        if module not in steps:
            try:
                fitted, outside = maker.make(to_conv(source))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            steps[module] = (path, fitted, outside or 0.0)
        places.append((model.get_submodule(inner[0]), inner[2], module))
    if not steps:
        raise ValueError("model: holds no L-conv with constant generators to move: see swap(model, 'shifts')")

    # All new numbers and modules are made before the first is put in its place.
    after: dict[nn.Module, nn.Module] = {}
    numbers: list[tuple[Tensor, Tensor]] = []
    biases: list[tuple[LConv, nn.Parameter | None]] = []
    moved = []
    with torch.no_grad():
        for module, (path, fitted, outside) in steps.items():
            weight = fitted.weight * strength
            if isinstance(module, Moving):
                moving = module
                numbers.append((moving.target.weight, moving.target.weight + weight))
            else:
                fitted.bias = None
                fitted.weight.copy_(weight)
                moving = Moving(module, fitted)  # type: ignore[arg-type]
            source = moving.source
            if strength == 1:
                biases.append((moving.target, source.bias))
                after[module] = moving.target
            else:
                for parameter in source.parameters(recurse=False):
                    if parameter is not source.bias and not (source.factorized and parameter is source.epsilon):
                        numbers.append((parameter, parameter * (1 - strength)))
                after[module] = moving
            moved.append(Moved(path, None if strength == 1 else outside))
        _commit(numbers, biases, [(parent, name, after[module]) for parent, name, module in places])
    return moved


def _commit(
    numbers: list[tuple[Tensor, Tensor]],
    biases: list[tuple[LConv, nn.Parameter | None]],
    places: list[tuple[nn.Module, str, nn.Module]],
) -> None:
    """Writes numbers and modules: all of them, or, if interrupted, none."""
    before = [(tensor, tensor.clone()) for tensor, _ in numbers]
    bare = [(target, target.bias) for target, _ in biases]
    try:
        for tensor, value in numbers:
            tensor.copy_(value)
        for target, bias in biases:
            target.bias = bias
        put_all(places)
    except BaseException:
        for tensor, value in before:
            tensor.copy_(value)
        for target, bias in bare:
            target.bias = bias
        raise
