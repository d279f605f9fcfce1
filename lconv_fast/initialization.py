"""How weights start, and the size of generators: each term of the layer gets an equal part of white noise."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lconv_fast.generators import (
    AffineGenerators,
    DenseGenerators,
    DifferentialGenerators,
    FieldGenerators,
    Generators,
    StencilGenerators,
)

# Kinds whose tensors (n_L, ...) are linear in L_i.
LINEAR = (AffineGenerators, FieldGenerators, StencilGenerators, DifferentialGenerators, DenseGenerators)


def keep_variance(weight: Tensor, generators: Generators, fan_in: int) -> None:
    """Fills weight (n_L + 1, out, in): Var W^0 = 1 / ((n_L + 1) fan_in) and Var W^i = 1 / ((n_L + 1) fan_in r_i).

    r_i = `generators.mean_square()`: the variance that L_i gives to white noise of variance 1.
    """
    if weight.is_meta:  # nothing to fill yet, as in nn.init
        return
    with torch.no_grad():
        if noise := rates(generators):
            for part, r in zip(weight, [1.0, *noise], strict=True):
                uniform(part, 1 / ((len(noise) + 1) * fan_in * r))


def keep_variance_factorized(weight0: Tensor, epsilon: Tensor, generators: Generators, fan_in: int) -> None:
    """The same variance of W^i = W^0 eps^i: Var eps^i = 1 / (fan_in r_i). weight0 (out, in), epsilon (n_L, in, in)."""
    if weight0.is_meta:
        return
    with torch.no_grad():
        if noise := rates(generators):
            uniform(weight0, 1 / ((len(noise) + 1) * fan_in))
            for part, r in zip(epsilon, noise, strict=True):
                uniform(part, 1 / (fan_in * r))


def normalise(generators: Generators) -> Generators:
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
            size = torch.tensor(noise, dtype=tensor.dtype, device=tensor.device).sqrt()
            tensor /= size.reshape(-1, *[1] * (tensor.dim() - 1))


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


def uniform(weight: Tensor, variance: float) -> None:
    """Independent entries, uniform about 0."""
    bound = math.sqrt(3 * variance)
    weight.uniform_(-bound, bound)
