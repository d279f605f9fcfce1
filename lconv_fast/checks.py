"""Checks of what users pass in: each raises before anything runs, naming the argument, what came and what was due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import MOST_POINTS, MOST_STEPS, Stencil, Window

MOST_NUMBER = 1e30  # in size: within float32
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, value: object, ndims: tuple[int, ...], shape: str) -> None:
    """`value` is a real floating-point tensor with one of `ndims` axes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(value).__name__}")
    if value.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name}: expected a real floating-point tensor, got {value.dtype}")
    check_strided(name, value)
    if value.dim() not in ndims:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def check_generators(name: str, value: object, ndims: tuple[int, ...], shape: str) -> None:
    """The same, with one generator or more in dimension 0."""
    check_float(name, value, ndims, shape)
    if value.shape[0] == 0:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: expected at least one generator, got shape {tuple(value.shape)}")  # type: ignore[attr-defined]


def check_strided(name: str, value: Tensor) -> None:
    """`value` is an ordinary tensor: no sparse one, whose elements have no place of their own."""
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {value.layout}")


def check_input_type(caller: str, input: object) -> None:
    """`input` is a tensor of a type that the layers compute in."""
    if isinstance(input, torch.fx.Proxy):
        raise TypeError(
            f"{caller}: torch.fx.symbolic_trace shows a layer no tensor; keep L-conv layers whole with a Tracer whose "
            "is_leaf_module says so, or use torch.export, which traces through them"
        )
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            f"{caller}: torch.jit.trace keeps no lists of numbers, which the operators take; use torch.export, or "
            "trace the model that lconv_fast.convert.lower makes of it"
        )
    if not isinstance(input, Tensor):
        raise TypeError(f"{caller}: expected input to be a tensor, got {type(input).__name__}")
    if input.dtype not in FLOAT_TYPES:
        raise TypeError(f"{caller}: expected input of a real floating-point type, got {input.dtype}")
    if input.layout != torch.strided:
        raise TypeError(f"{caller}: expected input to be a dense tensor, got one of layout {input.layout}")


def is_integer(value: object) -> bool:
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def boolean(name: str, value: object) -> bool:
    """`value` as True or False. Integers count as in Python; other objects do not, or "no" would be True."""
    if not isinstance(value, (Integral, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def has_bias(bias: object) -> bool:
    """Whether nn.ConvNd would have one: None is False."""
    return bias is not None and boolean("bias", bias)


def unsigned_int(name: str, value: object, most: int = MOST_STEPS) -> int:
    """`value` as an integer from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer from 0 on, got {value!r}")
    if value < 0:
        raise ValueError(f"{name}: expected an integer from 0 on, got {value!r}")
    if int(value) > most:
        raise ValueError(f"{name}: expected an integer from 0 to {most}, got {value!r}")
    return int(value)


def real(name: str, value: object, low: float, high: float) -> float:
    """`value` as a number between two others."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    if not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def choice(name: str, value: object, names: Iterable[str]) -> str:
    """`value`, one of `names`."""
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")
    return value


def check_function(name: str, value: object, of: str) -> None:
    if not callable(value):
        raise TypeError(f"{name}: expected a function of {of}, got {type(value).__name__}")


def check_device(device: object) -> torch.device | None:
    """`device`, None or what names one to PyTorch."""
    if device is None or isinstance(device, torch.device):
        return device
    expected = f"device: expected None, or a device such as 'cpu' or 'cuda:0', got {device!r}"
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise TypeError(expected)
    try:
        return torch.device(device)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{expected} ({str(error).splitlines()[0]})") from None


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected an nn.Module, got {type(value).__name__}")


def positive_int(name: str, value: object, most: int = MOST_STEPS) -> int:
    """`value` as an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    number = int(value)
    if number < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if number > most:
        raise ValueError(f"{name}: expected a positive integer up to {most}, got {value!r}")
    return number


def extents(name: str, value: object, ndim: int | None = None, most: int | None = MOST_POINTS) -> tuple[int, ...]:
    """The shape of a grid of `ndim` axes and at most `most` points, one or more on each axis; None: any number."""
    axes = "positive integers" if ndim is None else f"{ndim} positive integers"
    expected = f"{name}: expected {axes}, the shape of a grid, got {value!r}"
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(expected)
    if getattr(value, "ndim", 1) == 0:  # a tensor or an array, of one number
        raise TypeError(expected)
    sizes = tuple(value)
    if not all(map(is_integer, sizes)):
        raise TypeError(expected)
    if not sizes or len(sizes) != (ndim or len(sizes)) or min(sizes) < 1:
        raise ValueError(expected)
    points = 1
    for size in sizes:
        points *= size
    if most is not None and points > most:
        raise ValueError(f"{name}: expected a grid of at most {most} points, got {value!r}")
    return sizes


def rows_of_integers(name: str, value: object, shape: str) -> tuple[tuple[int, ...], ...]:
    """Nested sequences, or a tensor, of integers."""
    rows = value.tolist() if isinstance(value, Tensor) and value.dim() == 2 else value
    expected = f"{name}: expected integers {shape}, got {value!r}"
    if not isinstance(rows, Iterable) or isinstance(rows, (str, Tensor)):
        raise TypeError(expected)
    result = []
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise TypeError(expected)
        numbers = tuple(row)
        if not all(map(is_integer, numbers)):
            raise TypeError(expected)
        result.append(tuple(map(int, numbers)))
    return tuple(result)


def check_points(name: str, f: Tensor, spatial: Sequence[int]) -> None:
    """At least one point on each axis."""
    if 0 in spatial:
        raise ValueError(f"{name}: expected at least one point on each axis, got {tuple(f.shape)}")


def check_dtype(dtype: object) -> None:
    """`dtype` is None, or a type that the layers compute in."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in FLOAT_TYPES):
        raise TypeError(f"dtype: expected a real floating-point type, got {dtype}")


def per_axis(name: str, value: object, ndim: int) -> tuple[int, ...]:
    """One positive integer for all axes, or one for each."""
    if isinstance(value, (tuple, list)):
        if len(value) != ndim:
            raise ValueError(f"{name}: expected one integer or {ndim}, got {tuple(value)}")
        return tuple(positive_int(name, v) for v in value)
    return (positive_int(name, value),) * ndim


def check_window(window: object, spatial: Sequence[int]) -> Window:
    """The place (origin, full) of a grid of shape `spatial` in a larger one."""
    expected = f"(origin, full) with {len(spatial)} integers each"
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window: expected {expected}, got {window!r}")
    origin, full = window
    for part in (origin, full):
        if not isinstance(part, (tuple, list)) or len(part) != len(spatial) or not all(map(is_integer, part)):
            raise TypeError(f"window: expected {expected}, got {window!r}")
    for first, size, whole in zip(origin, spatial, full, strict=True):
        if whole > MOST_POINTS:
            raise ValueError(f"window: expected a grid of at most 2^48 points, got one of {tuple(full)}")
        if first < 0 or first + size > whole:
            raise ValueError(
                f"window: a grid of {tuple(spatial)} at {tuple(origin)} does not fit into one of {tuple(full)}"
            )
    return Window(list(origin), list(full))


def check_halo(halo: object, array: Sequence[int], stencil: Stencil) -> list[int]:
    """The pairs (low, high) of points that an array of shape `array` has around the grid, in one list."""
    expected = f"{len(array)} pairs of integers from 0 on"
    if not isinstance(halo, (tuple, list)) or len(halo) != len(array):
        raise TypeError(f"halo: expected {expected}, got {halo!r}")
    sides: list[int] = []
    for pair, size in zip(halo, array, strict=True):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(is_integer, pair)):
            raise TypeError(f"halo: expected {expected}, got {halo!r}")
        if min(pair) < 0 or sum(pair) >= size:
            raise ValueError(f"halo: expected {expected} that leave a grid of an array {tuple(array)}, got {halo!r}")
        sides += pair
    if stencil.padding_mode != PaddingMode.ZEROS:
        raise ValueError(f"halo: goes with padding_mode='zeros', got {stencil.padding_mode.name.lower()!r}")
    if stencil.transposed:
        raise ValueError("halo: does not go with transposed generators, which need coefficients around the grid too")
    return sides


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


def check_on_grid(generators: object) -> None:
    """Generators whose functions are (N, C, *spatial)."""
    if getattr(generators, "channel_dim", 1) != 1:
        raise TypeError(
            f"generators: expected generators on a grid, got {type(generators).__name__}; graphs go to LConvGraph"
        )


# What nn.ConvNd takes and an L-conv has no use for, and what stands in its place.
IN_PLACE_OF = {
    "kernel_size": "the generators say which neighbours a point sees (accuracy=4, 6 or 8 reaches further)",
    "padding": "the output has the input's size; padding_mode says what lies outside the grid",
    "dilation": "StencilGenerators take taps at any distance",
}


def check_no_kernel(caller: str, generators: object, keywords: dict[str, object]) -> None:
    """Answers those who write an L-conv as they wrote nn.ConvNd."""
    names = [name for name in IN_PLACE_OF if name in keywords]
    opening = caller
    if is_integer(generators) or (isinstance(generators, (tuple, list)) and all(map(is_integer, generators))):
        names = list(dict.fromkeys(["kernel_size", *names]))
        opening = f"generators: expected a name or a Generators object, got {type(generators).__name__}"
    if names:
        reasons = "; ".join(f"{name}: {IN_PLACE_OF[name]}" for name in names)
        raise TypeError(f"{opening}: an L-conv has no {' and no '.join(names)} ({reasons})")
