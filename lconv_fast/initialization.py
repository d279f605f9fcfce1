"""How weights start: each term of the layer gets an equal part of white noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lconv_fast.generators import Generators
from lconv_fast.generators.normalise import rates


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


def uniform(weight: Tensor, variance: float) -> None:
    """Independent entries, uniform about 0."""
    bound = math.sqrt(3 * variance)
    weight.uniform_(-bound, bound)
