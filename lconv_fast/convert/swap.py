"""Convolutions of a whole model replaced by L-convs, and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lconv_fast.checks import choice
from lconv_fast.convert.conv import from_conv, like_conv, unlike_conv
from lconv_fast.convert.fit import Projection
from lconv_fast.convert.frame import Frame, Kernel, LConv
from lconv_fast.convert.taps import constant_taps
from lconv_fast.generators import Generators

SHIFTS = "shifts"  # generators of the layer's own kernel: exact, eq. (18) of Dehmamy et al. 2021
INITS = ("fit", "fresh")
Where = Callable[[str, nn.Module], bool] | str | Iterable[str] | None

# What each L-conv stands for, as long as it lives.
_ORIGINALS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@dataclass(frozen=True)
class Replaced:
    """One layer that was replaced. `distance` is |K - W| / |K|, of the operators; None where weights are fresh."""

    path: str  # the first of its module paths
    conv: nn.Module
    layer: LConv
    distance: float | None


@dataclass(frozen=True)
class Left:
    """One convolution that was left as it was, and why."""

    path: str
    reason: str


@dataclass
class Report:
    """What `swap` did to a model. `print(report)` shows it as a table; `undo()` puts the convolutions back."""

    model: nn.Module
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    _places: list[tuple[nn.Module, str, str, nn.Module, nn.Module]] = field(default_factory=list, repr=False)

    def undo(self) -> nn.Module:
        """Puts the very modules back that were replaced, so that parameters are what optimizers hold, to the bit.

        They take the training mode and the device of the layers in their places. A second call does nothing.

        Raises RuntimeError, before anything is changed, where a place holds neither its L-conv nor its convolution.
        """
        for parent, name, path, conv, layer in self._places:
            if parent._modules.get(name) not in (layer, conv):
                raise RuntimeError(f"{path}: holds another module than the one that swap put there; nothing was undone")
        standing = [place for place in self._places if place[0]._modules[place[1]] is place[4]]
        for _, _, _, conv, layer in standing:
            conv.train(layer.training)
            there = next(layer.parameters()).device
            if next(conv.parameters()).device != there:
                conv.to(there)
        put_all((parent, name, conv) for parent, name, _, conv, _ in standing)
        return self.model

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} convolutions replaced, {len(self.left)} left"]
        paths = [entry.path for entry in self.replaced] + [entry.path for entry in self.left]
        width = max(map(len, paths), default=0)
        for entry in self.replaced:
            distance = "fresh weights" if entry.distance is None else f"distance {entry.distance:.2e}"
            kernel = Kernel.of(entry.conv)
            lines.append(f"  {entry.path:{width}}  {'x'.join(map(str, kernel.size)):6}  {distance}")
        lines += [f"  {left.path or '(the model)':{width}}  left: {left.reason}" for left in self.left]
        return "\n".join(lines)


def swap(
    model: nn.Module,
    generators: str | Generators = "affine",
    where: Where = None,
    init: str = "fit",
    **generator_keywords: Any,
) -> Report:
    """Replaces the convolutions of a model by L-convs of the same channels, stride, groups and output sizes, in place.

    With init="fit" an L-conv starts as the best approximation of the trained kernel, in the least-squares sense of
    `Projection`: exactly that kernel, if the generators can express it. With "fresh" its weights are drawn anew; the
    bias is kept in both. Parameters are new; the old ones stay with the report, as optimizers know them.

    A module in several places is replaced by one L-conv in all of them. A convolution is left, with the reason in the
    report, if it cannot be replaced without a change of what it does: a subclass with a forward of its own, hooks,
    parametrizations, a weight that other modules share, further parameters, a kernel of one point (W^0 alone).

    Args:
        model: any nn.Module.
        generators: a name or a Generators object as for LConv, the same object for all layers (moved, if it must be,
            in a copy); or "shifts": for each layer the shifts of its own kernel, which are exact.
        where: which convolutions: a function of module path and module; or a pattern or patterns of module paths, as
            in the shell ("encoder.*"). None: all.
        init: "fit" or "fresh".
        **generator_keywords: accuracy, coordinate_scale, ... with a name; padding_mode is that of each convolution.

    Returns:
        Report, with `replaced`, `left` and `undo()`.

    Raises:
        TypeError, ValueError: before the model is touched: for unknown names, generators that nothing here can take, or
            that have no taps with init="fit".
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    choice("init", init, INITS)
    if not isinstance(generators, (str, Generators)):
        raise TypeError(f"generators: expected a name or a Generators object, got {type(generators).__name__}")
    chosen = chooser(where)
    report = Report(model)
    maker = Maker(generators, init, generator_keywords)
    tied = _tied(model)
    made: dict[nn.Module, nn.Module] = {}
    refused: dict[nn.Module, str] = {}
    failures: list[ValueError] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        if module not in made and module not in refused:
            reason = (
                "it is the model itself: convert it by from_conv"
                if not path
                else "not chosen by where"
                if not chosen(path, module)
                else _reason_to_leave(module, tied)
            )
            if reason is None:
                try:
                    new, distance = maker.make(module)
                    made[module] = new
                    report.replaced.append(Replaced(path, module, new, distance))
                except ValueError as error:
                    reason = str(error)
                    failures.append(ValueError(f"{path}: {error}"))
            if reason is not None:
                refused[module] = reason
                report.left.append(Left(path, reason))
        if module in made:
            parent, _, name = path.rpartition(".")
            report._places.append((model.get_submodule(parent), name, path, module, made[module]))
    if failures and not report.replaced:
        raise failures[0]

    for entry in report.replaced:
        _ORIGINALS[entry.layer] = entry.conv
    put_all((parent, name, layer) for parent, name, _, _, layer in report._places)
    return report


def put_all(places: Iterable[tuple[nn.Module, str, nn.Module]]) -> None:
    """Puts modules in their places, (parent, name, module): all of them, or, if interrupted, none."""
    before: list[tuple[nn.Module, str, nn.Module | None]] = []
    try:
        for parent, name, module in places:
            before.append((parent, name, parent._modules[name]))
            parent._modules[name] = module
    except BaseException:
        for parent, name, old in before:
            parent._modules[name] = old
        raise


def original(layer: nn.Module) -> nn.Module | None:
    """The convolution that `swap` put an L-conv in the place of, None for other modules."""
    return _ORIGINALS.get(layer)


class Maker:
    """L-convs for convolutions; what layers of one geometry share is computed once."""

    def __init__(self, generators: str | Generators, init: str, keywords: dict[str, Any]) -> None:
        if keywords and (generators == SHIFTS or not isinstance(generators, str)):
            raise TypeError(f"generators: {', '.join(keywords)}: these go with the name of a basis")
        if keywords.get("factorized") and init == "fit":
            raise ValueError("swap: a factorized weight cannot be fitted: take init='fresh'")
        self.generators, self.init, self.keywords = generators, init, keywords
        self._copies: dict[tuple[torch.device, torch.dtype], Generators] = {}
        self._projections: dict[Any, Projection] = {}

    def make(self, conv: Any) -> tuple[LConv, float | None]:
        if self.generators == SHIFTS:
            layer = from_conv(conv)
            return (layer, 0.0) if self.init == "fit" else (_fresh(layer, conv), None)
        kernel, generators, keywords = Kernel.of(conv), self.generators, dict(self.keywords)
        # Constant generators are exact on an array that the convolution's own padding has extended.
        constant = isinstance(generators, Generators) and constant_taps(generators) is not None
        frame = Frame.of(kernel, kernel.middle(), getattr(generators, "padding_mode", None) if constant else None)
        if isinstance(generators, str):
            keywords.setdefault("padding_mode", frame.padding_mode)
        else:
            generators = self._moved(generators, conv.weight)
        layer = like_conv(conv, frame, generators, **keywords)
        if self.init == "fresh":
            return _fresh(layer, conv), None
        offsets = kernel.offsets(frame.center)
        # A name gives the same numbers for each layer of one geometry.
        key = (kernel.ndim, tuple(offsets))
        if key not in self._projections:
            self._projections[key] = Projection(layer.generators, offsets)
        weight, distance = self._projections[key].fit(conv.weight.flatten(2).movedim(2, 0))
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer, distance

    def _moved(self, generators: Generators, like: torch.Tensor) -> Generators:
        """The user's own object, or a copy of it on the device and in the dtype of a layer; one for all such layers."""
        numbers = generators.coefficients()
        if (numbers.device, numbers.dtype) == (like.device, like.dtype):
            return generators
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(generators).to(device=like.device, dtype=like.dtype)
        return self._copies[key]


def _fresh(layer: LConv, conv: Any) -> LConv:
    """Weights drawn anew; the bias stays."""
    layer.reset_parameters()
    if conv.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(conv.bias)  # type: ignore[union-attr]
    return layer


def chooser(where: Where) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda path, module: True
    if callable(where):
        return lambda path, module: bool(where(path, module))
    several = isinstance(where, Iterable) and not isinstance(where, str) and getattr(where, "ndim", None) != 0
    patterns: list[Any] = list(where) if several else [where]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"where: expected a function of path and module, or patterns of paths, got {where!r}")
    return lambda path, module: any(fnmatchcase(path, pattern) for pattern in patterns)


def _storage(parameter: torch.Tensor) -> Any:
    if nn.parameter.is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.untyped_storage().data_ptr(), parameter.device


def _tied(model: nn.Module) -> dict[Any, list[tuple[nn.Module, str]]]:
    """The modules, with their paths, that hold each memory of parameters and buffers."""
    holders: dict[Any, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None:
                holders.setdefault(_storage(tensor), []).append((module, path))
    return holders


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _reason_to_leave(conv: Any, tied: dict[Any, list[tuple[nn.Module, str]]]) -> str | None:
    """Why a convolution cannot be replaced without a change of what it does, None where it can."""
    if reason := unlike_conv(conv):
        return reason
    if torch.nn.utils.parametrize.is_parametrized(conv):
        return "it has parametrizations"
    if hooks := [name for name in _HOOKS if getattr(conv, name, None)]:
        return f"it has hooks ({hooks[0].strip('_')})"
    if not isinstance(conv.__dict__["_parameters"].get("weight"), nn.Parameter):
        return "its weight is no parameter"
    if extra := [*(set(conv._parameters) - {"weight", "bias"}), *conv._buffers, *conv._modules]:
        return f"it holds more than weight and bias: {extra[0]}"
    for name in ("weight", "bias"):
        parameter = getattr(conv, name)
        if parameter is None:
            continue
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"its {name} has hooks"
        others = [path for module, path in tied[_storage(parameter)] if module is not conv]
        if others:
            return f"its {name} is shared with {others[0] or 'the model itself'}"
    if conv.weight.is_meta:
        return "its weight is on the meta device"
    if max(conv.kernel_size) == 1:
        return "its kernel is one point: W^0 alone"
    return None
