"""A call of a torch function, as planning and running both see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]

# Functions whose arguments say what to do whatever the extents are: calls that differ in them are different entries
# of a
# plan. Names and defaults, since a compiler passes them as the caller wrote them, and PyTorch itself by name.
_CONV = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_UP = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_MAX = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
_AVG = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
STATIC: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    **{f"conv{n}d": (("input", "weight", "bias", *_CONV), _CONV) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (("input", "weight", "bias", *_UP), _UP) for n in (1, 2, 3)},
    **{f"max_pool{n}d": (("input", *_MAX), _MAX) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": (("input", *_AVG), _AVG) for n in (1, 2, 3)},
    **{name: (("input", "dim", "keepdim"), {"dim": None, "keepdim": False}) for name in ("mean", "sum")},
    "pad": (("input", "pad", "mode"), {"pad": None, "mode": "constant"}),
}


def name_of(func: Any) -> str:
    return getattr(func, "__name__", "")


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments and in lists of them, in order."""
    found = []
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tensor):
                found.append(item)
    return found


def with_tensors(
    args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other tensors in the places of `tensors_of`."""
    rest = list(tensors)

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            return rest.pop(0)
        # A size is a tuple whose own class takes no tensors; it has none.
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)([swap(item) if isinstance(item, Tensor) else item for item in value])
        return value

    return tuple([swap(value) for value in args]), {key: swap(value) for key, value in kwargs.items()}


def numbers_of(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, ...]:
    return tuple([v for v in (*args, *kwargs.values()) if isinstance(v, int | float) and not isinstance(v, bool)])


def statics_of(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What is no tensor among the arguments of a function in STATIC."""
    if name == "narrow":
        return (args[1] if len(args) > 1 else kwargs["dim"],)
    if name not in STATIC:
        return ()
    names, defaults = STATIC[name]
    bound = bind(names, args, kwargs, defaults)
    values = [bound[key] for key in defaults]
    return tuple([tuple(v) if isinstance(v, list | tuple) else v for v in values])


def bind(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names."""
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


@dataclass
class Call:
    """While planning: a call on tensors of the whole shape."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        self.tensors = tensors_of(self.args, self.kwargs)

    def run(self) -> Any:
        with torch._C.DisableTorchFunction():
            return self.func(*self.args, **self.kwargs)

    def bound(self, names: Sequence[str], **defaults: Any) -> dict[str, Any]:
        return bind(names, self.args, self.kwargs, defaults)
