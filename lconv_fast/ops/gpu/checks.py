"""What the operators refuse on a GPU, as csrc/arguments.h does on a CPU; made once for calls that are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import Geometry, require

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(data: Tensor, same_type: dict[str, Tensor | None], others: dict[str, Tensor | None]) -> None:
    require(data.dtype in DTYPES, "expected float32, float64, bfloat16 or float16 tensors")
    for name, other in (same_type | others).items():
        if other is None:
            continue
        require(other.device == data.device, f"{name} is on {other.device}, the data are on {data.device}")
        require(name not in same_type or other.dtype == data.dtype, f"the type of {name} is not that of the data")


def check_data(data: Tensor, channels: int, extent: Sequence[int], name: str) -> None:
    shape = (data.shape[0], channels, *extent)
    require(tuple(data.shape) == shape, f"the shape of {name} does not fit the other arguments")


def check_weight(g: Geometry, weight: Tensor) -> None:
    require(
        weight.dim() == 3 and weight.shape[0] >= 1 and weight.shape[1] % g.groups == 0,
        "expected weight (n_L + 1, out, in / groups), out a multiple of groups",
    )


def check_coefficients(g: Geometry, v: Tensor, generators: int) -> None:
    shape = g.coefficient_shape(generators)
    require(list(v.shape) == shape, "the shape of coefficients does not fit the other arguments")


def check_inverts(g: Geometry) -> None:
    require(
        PaddingMode(g.padding_mode).inverts, "transposed, padding that does not invert is a halo that is folded back"
    )
