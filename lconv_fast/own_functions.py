"""The autograd.Functions of users: whoever follows a model forward does not see what they do backward."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.utils as unwrapping


@contextmanager
def own_functions(meet: Callable[[type], None]) -> Iterator[None]:
    """Calls meet(class) for each autograd.Function that this thread applies, except those of PyTorch and of this
    library.

    Function.apply itself cannot be replaced: models hold it, as in `f = MyFunction.apply`. What it calls can be.
    """
    kept, thread = unwrapping.unwrap_dead_wrappers, threading.get_ident()
    applies = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]

    def unwrap(args: tuple[Any, ...]) -> tuple[Any, ...]:
        frame = sys._getframe(1)
        if threading.get_ident() == thread and frame.f_code is applies:
            function = frame.f_locals["cls"]
            if function.__module__.partition(".")[0] not in ("torch", "lconv_fast"):
                meet(function)
        return kept(args)

    unwrapping.unwrap_dead_wrappers = unwrap
    try:
        yield
    finally:
        unwrapping.unwrap_dead_wrappers = kept
