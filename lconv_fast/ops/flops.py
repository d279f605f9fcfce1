"""The operators' floating-point operations, for torch.utils.flop_counter.FlopCounterMode.

As there for convolutions: the products of eq. (17) of Dehmamy et al. 2021, a multiplication and an addition counted as
two, whichever shorter way the kernels take (`lconv_fast.explain` tells of those); differences and sums are left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from lconv_fast.ops.geometry import Geometry

Shape = Sequence[int]  # the counter hands over shapes in the place of tensors
COUNTER = "torch.utils.flop_counter"


def _products(batch: int, matrices: int, outs: int, ins: int, points: int) -> int:
    """`matrices` products with matrices (outs, ins) at every point."""
    return 2 * batch * matrices * outs * ins * points


def _apply(input: Shape, weight: Shape, coefficients: Shape, bias: Shape | None, *arguments: Any, **_: Any) -> int:
    *geometry, identity, _transposed = arguments
    rows, outs, ins = weight
    return _products(input[0], rows - 1 + identity, outs, ins, math.prod(Geometry(*geometry).out))


def _gram(input: Shape, cotangent: Shape, coefficients: Shape, *arguments: Any, **_: Any) -> int:
    *geometry, identity = arguments
    g = Geometry(*geometry)
    return _products(input[0], coefficients[0] + identity, cotangent[1], input[1] // g.groups, math.prod(g.out))


def _correlate(input: Shape, weight: Shape, cotangent: Shape, *geometry: Any, **_: Any) -> int:
    rows, outs, ins = weight
    return _products(input[0], rows - 1, outs, ins, math.prod(Geometry(*geometry).out))


def _backward(cotangent: Shape, input: Shape, weight: Shape, coefficients: Shape, *arguments: Any, **_: Any) -> int:
    features = _apply(cotangent, weight, coefficients, None, *arguments, True)
    return features + _gram(input, cotangent, coefficients, *arguments)


FORMULAS = {"apply": _apply, "gram": _gram, "correlate": _correlate, "backward": _backward}


def _register(counter: Any) -> None:
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.lconv_fast, name))(formula)


class _OnceImported(MetaPathFinder):
    """Registers the formulas when somebody imports PyTorch's counter: it imports triton, which costs as much as all of
    lconv_fast does twice over."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == COUNTER else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = and_register  # type: ignore[method-assign]
        sys.meta_path.remove(self)
        return spec


if COUNTER in sys.modules:
    _register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _OnceImported())
