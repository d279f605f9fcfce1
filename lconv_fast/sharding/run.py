"""Running a planned model: each torch function that it calls is looked up in the plan, and done as that says.

A mode of torch functions rather than hooks or other layers, so that functions called in a module's forward are met as
well as layers. Every module enters it by itself, with its own path: so it is there when activation checkpointing calls
a module again in the backward pass, and torch.compile traces through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from lconv_fast.sharding.calls import name_of
from lconv_fast.sharding.plan import Plan


def _pack() -> Any:
    if torch.compiler.is_compiling():
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks[0] if hooks else None


class Running(TorchFunctionMode):
    def __init__(self, plan: Plan, path: str) -> None:
        super().__init__()
        self.plan, self.path = plan, path
        self.pack = _pack()  # what keeps tensors for the backward pass where the module is entered

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # checkpointing, compiled: what it calls is to be met too
            body = args[0]

            def met(*inputs: Any, **options: Any) -> Any:
                with Running(self.plan, self.path):
                    return body(*inputs, **options)

            return func(met, *args[1:], **kwargs)
        with torch._C.DisableTorchFunction():
            entry = self.plan.find(self.path, name_of(func), args, kwargs)
            if entry is None:
                return func(*args, **kwargs)
            pack = _pack()
            if pack is not self.pack and getattr(pack, "__module__", "") == "torch.utils.checkpoint":
                raise RuntimeError(
                    f"{self.path or 'model'}: activation checkpointing of a function, which calls {name_of(func)}: "
                    "its second run would not be sharded; make it a module, and checkpoint that"
                )
            return entry(func, args, kwargs)
