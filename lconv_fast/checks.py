"""Checks of what users pass in: each raises before anything runs, naming the argument, what came and what was due."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, value: object, ndims: tuple[int, ...], shape: str) -> None:
    """`value` is a real floating-point tensor with one of `ndims` axes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(value).__name__}")
    if value.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name}: expected a real floating-point tensor, got {value.dtype}")
    if value.dim() not in ndims:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def check_generators(name: str, value: object, ndims: tuple[int, ...], shape: str) -> None:
    """The same, with one generator or more in dimension 0."""
    check_float(name, value, ndims, shape)
    if value.shape[0] == 0:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: expected at least one generator, got shape {tuple(value.shape)}")  # type: ignore[attr-defined]


def positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def per_axis(name: str, value: object, ndim: int) -> tuple[int, ...]:
    """One positive integer for all axes, or one for each."""
    if isinstance(value, (tuple, list)):
        if len(value) != ndim:
            raise ValueError(f"{name}: expected one integer or {ndim}, got {tuple(value)}")
        return tuple(positive_int(name, v) for v in value)
    return (positive_int(name, value),) * ndim


def check_groups(groups: object, in_channels: int, out_channels: int) -> None:
    """`groups` divides both numbers of channels."""
    count = positive_int("groups", groups)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % count:
            raise ValueError(f"groups: expected a divisor of {name}, got groups={count} and {name}={channels}")


def check_types(input: Tensor, **others: Tensor | None) -> None:
    """All on input's device and of its dtype; generators may be float32 beside a half type."""
    for name, value in others.items():
        if value is None:
            continue
        if value.device != input.device:
            raise TypeError(f"{name}: expected device {input.device} as input, got {value.device}")
        half = input.dtype in (torch.float16, torch.bfloat16)
        if value.dtype != input.dtype and not (name == "generators" and half and value.dtype == torch.float32):
            raise TypeError(f"{name}: expected dtype {input.dtype} as input, got {value.dtype}")
