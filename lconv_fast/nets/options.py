"""What the networks share: checks of their arguments, generators by level, memory format, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lconv_fast.checks import boolean, check_strided, positive_int
from lconv_fast.generators import Generators, named, normalise
from lconv_fast.nets.bases import check_ndim
from lconv_fast.nets.blocks import ACTIVATIONS, NORMS, Factory, check_choice
from lconv_fast.windows.window import window

Bases = str | Generators | Callable[[int], str | Generators]
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence) or not widths:
        raise TypeError(f"widths: expected the channels of each level, such as (16, 32, 64), got {widths!r}")
    return tuple(positive_int("widths", width) for width in widths)


def check_depths(name: str, value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """One number for all levels, or one for each."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return (positive_int(name, value),) * levels
    if len(value) != levels:
        raise ValueError(f"{name}: expected one integer or {levels}, as many as widths, got {tuple(value)}")
    return tuple(positive_int(name, v) for v in value)


def check_options(
    in_channels: int, out_channels: int, ndim: int, norm: str | Factory, activation: str | Factory, checkpoint: bool
) -> None:
    positive_int("in_channels", in_channels)
    positive_int("out_channels", out_channels)
    check_ndim(ndim)
    check_choice("norm", norm, NORMS)
    check_choice("activation", activation, ACTIVATIONS)
    boolean("checkpoint", checkpoint)


def check_input(caller: str, f: Tensor, channels: int, ndim: int) -> None:
    if not isinstance(f, Tensor):
        raise TypeError(f"{caller}: expected input to be a tensor, got {type(f).__name__}")
    check_strided("input", f)
    if f.dim() != ndim + 2 or f.shape[1] != channels or 0 in f.shape[2:]:
        raise ValueError(
            f"{caller}: expected input (N, {channels}, *spatial) with {ndim} spatial axes, got {tuple(f.shape)}"
        )


def generators_of_level(generators: Bases, level: int, ndim: int, keywords: dict[str, Any]) -> Generators:
    """The basis that the layers of a level share: of a name (normalised), an object, or a function of the level."""
    choice = generators(level) if not isinstance(generators, str | Generators) and callable(generators) else generators
    if isinstance(choice, str):
        basis = named(choice, ndim, **keywords)
        normalise(basis)
        return basis
    if not isinstance(choice, Generators):
        raise TypeError(
            f"generators: expected a name, a Generators object or a function of the level, got {type(choice).__name__}"
        )
    if keywords:
        raise TypeError(f"generators: {', '.join(keywords)}: these go with a name; a Generators object has its own")
    return choice


def channels_last(f: Tensor) -> Tensor:
    """f in the format that the kernels read best; on one axis it stays as it is."""
    return f.contiguous(memory_format=MEMORY_FORMATS[f.dim()]) if f.dim() in MEMORY_FORMATS else f


def run(block: nn.Module, f: Tensor, recompute: bool) -> Tensor:
    """block(f); with `recompute`, its inner activations are made again in the backward pass instead of being kept."""
    if recompute and torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            return checkpoint(block, f, use_reentrant=False)
        return checkpoint(block, f, use_reentrant=False, context_fn=window.contexts)
    return block(f)
