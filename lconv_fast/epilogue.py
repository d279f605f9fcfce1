"""What follows the layer before its result is handed over: y = activation(z + residual), z of eq. (17) with its bias.

Activations are rows of ACTIVATIONS. On the CPU they run in place on the fresh result where their derivative is a
function of it: a fused pass would gain a twentieth of a network's step (docs/performance.md). On a GPU the layer's
kernel does the same in its own pass (`form.finished`); this file remains the definition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Each may overwrite its argument, which nothing else holds.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu_, "gelu": F.gelu, "silu": F.silu}


def check_activation(activation: object) -> str | None:
    """`activation` is None or a name in ACTIVATIONS."""
    if activation is None or (isinstance(activation, str) and activation in ACTIVATIONS):
        return activation
    expected = f"activation: expected None or one of {', '.join(ACTIVATIONS)}, got {activation!r}"
    raise (ValueError if isinstance(activation, str) else TypeError)(expected)


def check_residual(caller: str, residual: object, input: Tensor, shape: tuple[int, ...]) -> None:
    """`residual` is a tensor of the output's `shape`, of input's type and on its device."""
    if not isinstance(residual, Tensor):
        raise TypeError(f"{caller}: expected residual to be a tensor, got {type(residual).__name__}")
    if tuple(residual.shape) != shape:
        raise ValueError(f"{caller}: expected residual of the output's shape {shape}, got {tuple(residual.shape)}")
    if residual.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"{caller}: expected residual in {input.dtype}, as input is, got {residual.dtype}")
    if residual.device != input.device:
        raise TypeError(f"{caller}: expected residual on {input.device}, got {residual.device}")


def finish_and_keep(
    output: Tensor, residual: Tensor | None, activation: str | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """activation(output + residual), and output + residual if that is kept, else an empty tensor."""
    total = finish(output, residual, None)
    kept = total.clone() if keep else total.new_empty(0)
    return finish(total, None, activation), kept


def differentiated(u: Tensor, activation: str | None, result: Tensor) -> Tensor:
    """u times the derivative of the activation, whose value (relu) or argument (others) is `result`."""
    if activation is None:
        return u
    return _DERIVATIVES[activation](u, result)


_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda u, y: torch.ops.aten.threshold_backward(u, y, 0),
    "gelu": torch.ops.aten.gelu_backward,
    "silu": torch.ops.aten.silu_backward,
}


def finish(output: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """activation(output + residual); `output` is overwritten."""
    if residual is not None:
        output = output.add_(residual.to(output.dtype))
    return output if activation is None else ACTIVATIONS[activation](output)
