"""The blocks of the networks: L-conv, norm and activation, in a row or around a shortcut.

Norms and activations are rows of the tables NORMS and ACTIVATIONS. All of them act alike on every point (norms divide
by means over the points, or over the channels of a point), so that they commute with every permutation of the points:
they keep whatever symmetry the L-convs have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lconv_fast.checks import choice, positive_int
from lconv_fast.generators import Generators
from lconv_fast.modules import LConv1d, LConv2d, LConv3d
from lconv_fast.nets.bases import check_ndim

LAYERS = {1: LConv1d, 2: LConv2d, 3: LConv3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

Factory = Callable[[int], nn.Module]  # the number of channels -> a module that keeps the shape


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each point: (N, C, *spatial) -> (N, C, *spatial)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def _group_norm(channels: int) -> nn.Module:
    """Groups of 4 channels, or of as many as divide the channels."""
    return nn.GroupNorm(channels // next(size for size in (4, 3, 2, 1) if channels % size == 0), channels)


# name: (number of axes, channels) -> module.
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "group": lambda ndim, channels: _group_norm(channels),
    # As many groups as channels is nn.InstanceNorm with weights, but keeps channels-last.
    "instance": lambda ndim, channels: nn.GroupNorm(channels, channels),
    "batch": lambda ndim, channels: BATCH_NORMS[ndim](channels),
    "channel": lambda ndim, channels: ChannelNorm(channels),
    "none": lambda ndim, channels: nn.Identity(),
}

# name: (whether it may overwrite its input) -> module.
ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "relu": lambda inplace: nn.ReLU(inplace),
    "leaky_relu": lambda inplace: nn.LeakyReLU(0.1, inplace),
    "gelu": lambda inplace: nn.GELU(),
    "silu": lambda inplace: nn.SiLU(),
    "tanh": lambda inplace: nn.Tanh(),
    "none": lambda inplace: nn.Identity(),
}


def check_choice(name: str, value: str | Callable[..., Any], table: dict[str, Any]) -> None:
    """A name in the table, or a function."""
    if isinstance(value, str):
        choice(name, value, table)
    elif not callable(value):
        raise TypeError(f"{name}: expected a name or a function, got {value!r}")


def check_made(name: str, made: object) -> None:
    """What a factory made."""
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name}: expected a function that returns an nn.Module, got {type(made).__name__} from it")


def make_norm(norm: str | Factory, ndim: int, channels: int) -> nn.Module:
    """The norm of a name in NORMS, or of a factory that takes the number of channels."""
    check_choice("norm", norm, NORMS)
    made = NORMS[norm](ndim, channels) if isinstance(norm, str) else norm(channels)
    check_made("norm", made)
    return made


def make_activation(activation: str | Factory, channels: int, inplace: bool = False) -> nn.Module:
    """The activation of a name in ACTIVATIONS, or of a factory that takes the number of channels."""
    check_choice("activation", activation, ACTIVATIONS)
    made = ACTIVATIONS[activation](inplace) if isinstance(activation, str) else activation(channels)
    check_made("activation", made)
    return made


class LBlock(nn.Sequential):
    """L-conv, norm, activation. The bias of the layer is left to the norm, where there is one."""

    def __init__(
        self, ndim: int, ins: int, outs: int, generators: Generators, norm: str | Factory, activation: str | Factory
    ) -> None:
        check_ndim(ndim)
        ins, outs = positive_int("ins", ins), positive_int("outs", outs)
        super().__init__(
            LAYERS[ndim](ins, outs, generators, bias=not isinstance(norm, str) or norm == "none"),
            make_norm(norm, ndim, outs),
            # Norms keep their input for backward, and not their output, which may be overwritten.
            make_activation(activation, outs, inplace=isinstance(norm, str) and norm != "none"),
        )


class ResidualBlock(nn.Module):
    """y = activation(S f + norm(L-conv(block(f)))), with S the identity, or a mixing of channels where they change."""

    def __init__(
        self, ndim: int, ins: int, outs: int, generators: Generators, norm: str | Factory, activation: str | Factory
    ) -> None:
        super().__init__()
        self.block = LBlock(ndim, ins, outs, generators, norm, activation)
        self.second = LBlock(ndim, outs, outs, generators, norm, "none")
        self.shortcut = nn.Identity() if ins == outs else CONVS[ndim](ins, outs, 1, bias=False)
        self.activation = make_activation(activation, outs, inplace=True)

    def forward(self, f: Tensor) -> Tensor:
        return self.activation(self.second(self.block(f)) + self.shortcut(f))
