"""Whether a call is recorded for derivatives: small calls spend a third of their time on autograd, needed or not."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad


def nothing_records() -> bool:
    """Whether no derivative can be asked for, backward or forward."""
    return not (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


class Function(torch.autograd.Function):
    """torch.autograd.Function, called past the inspection of its signature, which is for keyword arguments and costs as
    much as the rest."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]
