"""What is open in a thread: windows, and recordings of the shapes that layers get."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

Ints = tuple[int, ...]
Place = tuple[Ints, Ints]  # origin, full
# (input, window, the sample it is of a batch with a place for each) -> output
Call = Callable[..., Tensor]


class Entry(Protocol):
    """What stands in the stack."""

    def call(self, layer: Any, input: Tensor, call: Call) -> Tensor | None:
        """The layer's output; None: it is none of this entry's layers."""
        ...


class _Thread(threading.local):
    # Set for each thread, and no default of the class: torch.compile guards the attributes of an object.
    def __init__(self) -> None:
        self.stack: tuple[Entry, ...] = ()


THREAD = _Thread()


def identity(module: nn.Module) -> int:
    """The same for a module and the proxies that torch.export puts in its place."""
    return id(vars(module))


def first_tensor(model: nn.Module, ndim: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The patch, among what a model is called with: the first tensor (N, C, *spatial) or (C, *spatial)."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() in (ndim + 1, ndim + 2):
            return value
    raise ValueError(
        f"window: expected {type(model).__name__} to be called with a tensor (N, C, *spatial) of {ndim} spatial axes"
    )
