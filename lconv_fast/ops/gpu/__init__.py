"""The operators on CUDA tensors, by Triton kernels. Triton is imported when the first such tensor arrives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lconv_fast.ops.gpu.dispatch import Operators


def operators() -> Operators:
    try:
        from lconv_fast.ops.gpu.dispatch import OPERATORS
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] != "triton":
            raise
        raise RuntimeError(
            "lconv_fast: tensors on a GPU need the package triton, which is not installed (pip install triton)"
        ) from missing
    return OPERATORS


@torch.library.impl("lconv_fast::apply", "CUDA")
def _apply(*arguments: Any) -> Tensor:
    return operators().apply(*arguments)


@torch.library.impl("lconv_fast::finished", "CUDA")
def _finished(*arguments: Any) -> tuple[Tensor, Tensor]:
    return operators().finished(*arguments)


@torch.library.impl("lconv_fast::gram", "CUDA")
def _gram(*arguments: Any) -> Tensor:
    return operators().gram(*arguments)


@torch.library.impl("lconv_fast::correlate", "CUDA")
def _correlate(*arguments: Any) -> Tensor:
    return operators().correlate(*arguments)


@torch.library.impl("lconv_fast::backward", "CUDA")
def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return operators().backward(*arguments)


@torch.library.impl("lconv_fast::sum_points", "CUDA")
def _sum_points(cotangent: Tensor) -> Tensor:
    # The order of PyTorch's own sum depends on the shape alone there.
    return cotangent.sum([0, *range(2, cotangent.dim())])


# On graphs there is one way each.
for _name in ("apply", "gram", "correlate"):

    def _graph(*arguments: Any, name: str = _name) -> Tensor:
        operators()  # says what is missing where Triton is
        module = importlib.import_module(f"lconv_fast.ops.gpu.graph.{name}")
        return getattr(module, name)(*arguments)

    torch.library.impl(f"lconv_fast::graph_{_name}", "CUDA", _graph)


@torch.library.impl("lconv_fast::graph_backward", "CUDA")
def _graph_backward(
    cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    ops = torch.ops.lconv_fast
    features = ops.graph_apply(cotangent, weight, coefficients, None, *arguments, True)
    return features, ops.graph_gram(input, cotangent, coefficients, *arguments)
