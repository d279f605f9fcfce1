"""The operators' floating-point operations, for torch.utils.flop_counter.FlopCounterMode.

As there for convolutions: the products of eq. (17) of Dehmamy et al. 2021, a multiplication and an addition counted as
two, whichever shorter way the kernels take (`lconv_fast.explain` tells of those); differences and sums are left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.graph import Graph

Shape = Sequence[int]  # the counter hands over shapes in the place of tensors
COUNTER = "torch.utils.flop_counter"


def _products(batch: int, matrices: int, outs: int, ins: int, points: int) -> int:
    """`matrices` products with matrices (outs, ins) at every point."""
    return 2 * batch * matrices * outs * ins * points


class _Formulas:
    """Of the operators on one kind of space, described by their arguments after the tensors."""

    def __init__(self, space: Callable[..., Geometry | Graph], points: Callable[[Any, Shape], int]) -> None:
        self.space, self.points = space, points  # points: (space, shape of the input) -> points of y

    def apply(
        self, input: Shape, weight: Shape, _coefficients: Shape, _bias: Shape | None, *rest: Any, **_: Any
    ) -> int:
        *space, identity, _transposed = rest
        rows, outs, ins = weight
        return _products(input[0], rows - 1 + identity, outs, ins, self.points(self.space(*space), input))

    def finished(
        self,
        input: Shape,
        weight: Shape,
        coefficients: Shape,
        bias: Shape | None,
        _residual: Shape | None,
        _activation: str | None,
        _keep: bool,
        *rest: Any,
        **_: Any,
    ) -> int:
        return self.apply(input, weight, coefficients, bias, *rest, False)

    def gram(self, input: Shape, cotangent: Shape, coefficients: Shape, *rest: Any, **_: Any) -> int:
        *arguments, identity = rest
        space = self.space(*arguments)
        ins = input[1] // space.groups
        return _products(input[0], coefficients[0] + identity, cotangent[1], ins, self.points(space, input))

    def correlate(self, input: Shape, weight: Shape, _cotangent: Shape, *space: Any, **_: Any) -> int:
        rows, outs, ins = weight
        return _products(input[0], rows - 1, outs, ins, self.points(self.space(*space), input))

    def backward(self, cotangent: Shape, input: Shape, weight: Shape, coefficients: Shape, *rest: Any, **_: Any) -> int:
        features = self.apply(cotangent, weight, coefficients, None, *rest, True)
        return features + self.gram(input, cotangent, coefficients, *rest)


OPERATORS = ("apply", "gram", "correlate", "backward")
# The prefix of the operators' names, and their formulas.
SPACES = {
    "": _Formulas(Geometry, lambda geometry, input: math.prod(geometry.out)),
    "graph_": _Formulas(Graph, lambda graph, input: input[2]),
}


def _register(counter: Any) -> None:
    for prefix, formulas in SPACES.items():
        for name in OPERATORS:
            counter.register_flop_formula(getattr(torch.ops.lconv_fast, prefix + name))(getattr(formulas, name))
    counter.register_flop_formula(torch.ops.lconv_fast.finished)(SPACES[""].finished)


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
