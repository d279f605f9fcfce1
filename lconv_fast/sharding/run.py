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


class Running(TorchFunctionMode):
    def __init__(self, plan: Plan, path: str) -> None:
        super().__init__()
        self.plan, self.path = plan, path

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
            return func(*args, **kwargs) if entry is None else entry(func, args, kwargs)
