"""``torch.ops.lconv_fast.finished``: the layer with its epilogue as one operator, for GPUs.

    finished(input, weight, coefficients, bias, residual, activation, keep, *geometry, identity) -> (y, z)

y = activation(z), z = apply(input, ...) + residual; z is empty unless it is kept. On a CPU it is made of its parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lconv_fast.epilogue import finish_and_keep
from lconv_fast.ops.geometry import Geometry, empty_like_format

_OF_APPLY = str(torch.ops.lconv_fast.apply.default._schema).partition("(")[2].partition(")")[0].split(", ")
_LIBRARY = torch.library.Library("lconv_fast", "FRAGMENT")
_LIBRARY.define(
    f"finished({', '.join(_OF_APPLY[:4])}, Tensor? residual, str? activation, bool keep, {', '.join(_OF_APPLY[4:-1])}) "
    "-> (Tensor, Tensor)"
)


def _parts(
    input: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    keep: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    z = torch.ops.lconv_fast.apply(input, weight, coefficients, bias, *arguments, False)
    return finish_and_keep(z, residual, activation, keep)


_LIBRARY.impl("finished", _parts, "CPU")


@torch.library.register_fake("lconv_fast::finished")
def _(
    input: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    bias: Any,
    residual: Any,
    _activation: Any,
    keep: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    *geometry, _identity = rest
    y = empty_like_format(input, weight.size(1), Geometry(*geometry).out)
    return y, torch.empty_like(y) if keep else y.new_empty(0)
