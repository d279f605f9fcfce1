"""The size of generators, as white noise sees it."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor

from lconv_fast.generators.affine import AffineGenerators
from lconv_fast.generators.affine_differential import AffineDifferentialGenerators
from lconv_fast.generators.base import Generators
from lconv_fast.generators.dense import DenseGenerators
from lconv_fast.generators.differential import DifferentialGenerators
from lconv_fast.generators.field import FieldGenerators
from lconv_fast.generators.stencil import StencilGenerators

Kind = TypeVar("Kind", bound=Generators)

# Kinds whose tensors (n_L, ...) are linear in L_i.
LINEAR = (
    AffineGenerators,
    AffineDifferentialGenerators,
    FieldGenerators,
    StencilGenerators,
    DifferentialGenerators,
    DenseGenerators,
)


def normalise(generators: Kind) -> Kind:
    """Divides each L_i by sqrt(r_i), in place: white noise keeps its variance, and the weights of all terms have one
    size.

    An optimiser such as Adam moves every weight by steps of one size. Where r_i differ much (1/2 for d_a, 4 n^2 + 2 n
    for the Laplacian), those steps are small beside some weights and large beside others, and normalised generators
    train better.

    Raises TypeError for generators whose numbers are not linear in L_i (products, low rank), or that live on a graph.
    """
    if not isinstance(generators, LINEAR):
        kinds = ", ".join(kind.__name__ for kind in LINEAR)
        raise TypeError(f"generators: expected one of {kinds}, got {type(generators).__name__}")
    generators._changes = (*generators._changes, _normalise_numbers)
    _normalise_numbers(generators)
    return generators


def _normalise_numbers(generators: Generators) -> None:
    numbers = [*generators.parameters(recurse=False), *generators.buffers(recurse=False)]
    if any(tensor.is_meta for tensor in numbers):
        return
    noise = rates(generators)
    with torch.no_grad():
        for tensor in numbers if noise else []:
            size = torch.tensor(noise, dtype=torch.float64, device=tensor.device).sqrt()
            tensor.copy_(tensor.double() / size.reshape(-1, *[1] * (tensor.dim() - 1)))  # rounded once


def rates(generators: Generators) -> list[float]:
    """r_i, 1 for a generator that is zero; none for fake tensors, which have no numbers.

    Of a named basis that is still on the meta device, as where modules are filled one by one, those of its name.

    Raises ValueError for numbers that are not finite, RuntimeError for those that are not there.
    """
    generators.check_filled()
    noise = generators.mean_square()
    if isinstance(noise, FakeTensor):
        return []
    if noise.is_meta:
        noise = _filled(generators).mean_square()
    found = noise.tolist()
    if not all(map(math.isfinite, found)):
        raise ValueError(f"generators: expected finite numbers, their mean squares are {found}")
    return [r or 1.0 for r in found]


def _filled(generators: Generators) -> Generators:
    result = copy.deepcopy(generators).to_empty(device="cpu")
    result.check_filled()
    return result
