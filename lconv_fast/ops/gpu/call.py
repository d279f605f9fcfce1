"""What plans depend on: a call without the numbers in its tensors, and without its grid's place in a full one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.geometry import Geometry, is_channels_last
from lconv_fast.ops.gpu.card import Card
from lconv_fast.ops.gpu.tables import Table

HALVES = (torch.float16, torch.bfloat16)


class Layout(NamedTuple):
    """Of a tensor."""

    shape: Sequence[int]
    strides: Sequence[int]
    dtype: torch.dtype
    aligned: bool  # to 16 bytes
    channels_last: bool  # whether results are laid out so, too

    @staticmethod
    def of(t: Tensor) -> Layout:
        return Layout(t.shape, t.stride(), t.dtype, t.data_ptr() % 16 == 0, is_channels_last(t))


class Epilogue(NamedTuple):
    """What follows the layer in its own pass."""

    activation: str | None
    keep: bool  # whether what the activation is given is written, too


class Call(NamedTuple):
    operator: str  # forward, transposed, gram, correlate, backward, or finished: forward with an epilogue
    geometry: Geometry
    generators: int  # n_L
    identity: bool  # whether f itself takes part
    ins: int  # channels of f in a group
    outs: int  # channels of y and g in a group
    source: Layout  # what is seen through taps: f, or g where the operator is transposed
    partner: Layout | None = None  # the other one, if it is an argument
    coefficients: Layout | None = None
    bias: bool = False
    epilogue: Epilogue | None = None
    residual: Layout | None = None
    precision: str = "ieee"  # of products of float32: ieee or tf32
    card: Card = None  # type: ignore[assignment]
    table: Table = None  # type: ignore[assignment]
    launcher: Callable[..., Any] = None  # type: ignore[assignment]

    @property
    def transposed(self) -> bool:
        return self.operator in ("transposed", "backward")

    @property
    def batch(self) -> int:
        return self.source.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def wide(self) -> tl.dtype:
        """Type of sums."""
        return tl.float64 if self.dtype == torch.float64 else tl.float32

    @property
    def index(self) -> tl.dtype:
        """Type of offsets within an example and a group: int32 while they and the points fit."""
        g = self.geometry
        spans = [math.prod(g.array), math.prod(g.out) * max(self.ins, self.outs) * g.groups]
        spans.append(math.prod(g.array) * self.ins * g.groups)
        for layout in (self.source, self.partner, self.residual):
            if layout is not None:
                spans.append(sum((n - 1) * abs(s) for n, s in zip(layout.shape[1:], layout.strides[1:], strict=True)))
        if self.coefficients is not None:  # those of one generator and component
            v = self.coefficients
            spans.append(sum((n - 1) * abs(s) for n, s in zip(v.shape[2:], v.strides[2:], strict=True)))
        return tl.int64 if max(spans) >= self.table.least_long_index else tl.int32


def precision_of(dtype: torch.dtype) -> str:
    """Of float32's products, what PyTorch's own switch for matrix products says."""
    if dtype != torch.float32:
        return "ieee"
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting == "none":
        setting = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return "tf32" if setting == "tf32" else "ieee"
