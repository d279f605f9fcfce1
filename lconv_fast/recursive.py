"""Finite group elements exp(t L) by composed L-convs, eq. (13) of Dehmamy et al. 2021, and two more of its layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lconv_fast.checks import (
    MOST_NUMBER,
    check_device,
    check_dtype,
    check_float,
    check_groups,
    check_types,
    has_bias,
    per_axis,
    positive_int,
    real,
)
from lconv_fast.functional import lconv
from lconv_fast.generators import Generators, GraphGenerators, GridGenerators
from lconv_fast.windows.place import call_in_place
from lconv_fast.windows.stack import Place


def flow(x: Tensor, generators: Generators, t: Tensor | float, steps: int, *, order: int = 4) -> Tensor:
    """exp(t^i L_i) x: moves x by a finite group element, in `steps` steps of h = 1 / steps.

        x <- [I + h L + (h L)^2 / 2! + ... + (h L)^order / order!] x,     L = t^i L_i

    With order=1 this is (I + (t / p) L)^p, the composition of L-convs of eq. (13) of Dehmamy et al. 2021. The error
    against the exponential of the discrete L falls as steps^-order. Each step is `order` applications of L; steps that
    are longer than the stability limit of the scheme let high frequencies grow, as in any explicit scheme.

    Args:
        x: (N, C, *spatial) or (C, *spatial); on graphs (N, nodes, C) or (nodes, C).
        generators: L_1 .. L_nL.
        t: a number or tensor (): the same for all generators; (n_L,); or (N, n_L), one element for each example.
        steps: p.
        order: of a step, 1 or more.

    Returns:
        a tensor as x, differentiable in x, t and the generators.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """
    if not isinstance(generators, Generators):
        raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
    steps, order = positive_int("steps", steps), positive_int("order", order)
    count, axes = generators.num_generators, getattr(generators, "ndim", None)
    if isinstance(generators, GraphGenerators):
        axes = 1  # the nodes, whose channels come after them
    # Generators without axes of their own take any number, batched.
    dims = tuple(range(3, 16)) if axes is None else (axes + 1, axes + 2)
    check_float("x", x, dims, "(N, C, *spatial) or (C, *spatial) on the generators' grid, or (N, nodes, C)")
    unbatched = axes is not None and x.dim() == axes + 1
    f = x.unsqueeze(0) if unbatched else x
    if not isinstance(t, Tensor):
        t = torch.tensor(real("t", t, -MOST_NUMBER, MOST_NUMBER), dtype=x.dtype, device=x.device)
    check_types(x, t=t)
    if tuple(t.shape) not in ((), (count,)) and (t.dim() != 2 or tuple(t.shape) != (f.shape[0], count)):
        raise ValueError(f"t: expected shape (), ({count},) or ({f.shape[0]}, {count}), got {tuple(t.shape)}")
    rates = t.expand(count) if t.dim() == 0 else t
    for _ in range(steps):
        term = f
        for power in range(1, order + 1):
            term = _generated(term, generators, rates / (steps * power))
            f = f + term
    return f.squeeze(0) if unbatched else f


def _generated(f: Tensor, generators: Generators, rates: Tensor) -> Tensor:
    """rates^i L_i f, with rates (n_L,) or (N, n_L)."""
    if rates.dim() == 2 or not isinstance(generators, GridGenerators):
        return torch.einsum("ni,ni...->n...", rates.expand(f.shape[0], -1), generators(f))
    # One channel: the weights are the rates, and L_i f is never written.
    weight = torch.cat([rates.new_zeros(1), rates]).reshape(-1, 1, 1)
    return lconv(f.reshape(-1, 1, *f.shape[2:]), weight, generators).reshape(f.shape)


class RecursiveLConv(nn.Module):
    """One set of generators applied p times, (I + (t / p) L)^p with L = t^i L_i: eq. (13) of Dehmamy et al. 2021.

    As p grows, exp(t^i L_i): features move by a finite group element. The error falls as p^-order; see `flow`.

    Args:
        generators: L_1 .. L_nL; learnable ones are learned through the layer.
        steps: p.
        t: a number or (n_L,), where the parameter t starts; 0 by default: the identity.
        order: of a step.
        device, dtype: of t and of the generators, which are moved where given.

    Attributes:
        t: (n_L,), a parameter.

    Input and output: (N, C, *spatial) or unbatched, as for `flow`. `forward(x, t)` takes another t, (n_L,) or (N, n_L).
    """

    def __init__(
        self,
        generators: Generators,
        steps: int = 8,
        t: Tensor | float = 0.0,
        *,
        order: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(generators, Generators):
            raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
        self.steps, self.order = positive_int("steps", steps), positive_int("order", order)
        check_dtype(dtype)
        if isinstance(t, Tensor):
            check_float("t", t, (0, 1), "() or (n_L,)")
        else:
            t = real("t", t, -MOST_NUMBER, MOST_NUMBER)
        self.generators = generators.to(device=check_device(device), dtype=dtype)
        numbers, count = self.generators.coefficients(), generators.num_generators
        if isinstance(t, Tensor) and t.is_meta and not numbers.is_meta:
            raise TypeError(f"t: expected device {numbers.device} as the generators, got meta")
        start = torch.as_tensor(t, dtype=dtype or numbers.dtype, device=numbers.device)
        if tuple(start.shape) not in ((), (count,)):
            raise ValueError(f"t: expected shape () or ({count},), got {tuple(start.shape)}")
        self.t = nn.Parameter(start.detach().expand(count).clone())

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return flow(x, self.generators, self.t if t is None else t, self.steps, order=self.order)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, order={self.order}"


class DerivativeLConv(nn.Module):
    """y = sum_i (L_i f) Wi^T at every stride-th point: the variant without the residual term W^0.

    Args:
        in_channels, out_channels, generators: as for LConv; a Generators object on a grid.
        stride: one integer or one per axis.
        groups: channels are mixed within groups alone.
        bias: adds a learnable bias, 0 at first.

    Attributes:
        weight: (n_L, out_channels, in_channels / groups).

    weight starts uniform with variance 1 / (n_L fan_in r_i), which keeps the variance of white noise: r_i is what L_i
    makes of variance 1. Input and output as for LConv.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        generators: Generators,
        *,
        stride: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(generators, GridGenerators):
            raise TypeError(f"generators: expected generators on a grid, got {type(generators).__name__}")
        ins, outs = positive_int("in_channels", in_channels), positive_int("out_channels", out_channels)
        check_groups(groups, ins, outs)
        self.generators, self.groups, self.ndim = generators, positive_int("groups", groups), generators.ndim
        self.stride = per_axis("stride", stride, self.ndim)
        numbers, count = generators.coefficients(), generators.num_generators
        self.weight = nn.Parameter(numbers.new_empty(count, outs, ins // self.groups))
        self.bias = nn.Parameter(numbers.new_zeros(outs)) if has_bias(bias) else None
        with torch.no_grad():
            for weight, rate in zip(self.weight, generators.mean_square().tolist(), strict=True):
                bound = math.sqrt(3 / (count * max(1, weight.shape[1]) * (rate or 1.0)))
                weight.uniform_(-bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        weight = torch.cat([torch.zeros_like(self.weight[:1]), self.weight])

        def call(f: Tensor, window: Place | None, _sample: int | None = None) -> Tensor:
            return lconv(f, weight, self.generators, self.bias, stride=self.stride, groups=self.groups, window=window)

        return call_in_place(self, input, call)


class MaxLConv(nn.Module):
    """y = sum_i max_j L_i L_j f, in each channel and at each point: the max variant, which has no weights.

    L_i L_j f is L_i applied to L_j f. Not linear: the maximum is over the second index, the sum over the first.

    Args:
        generators: L_1 .. L_nL on a grid or graph.
    """

    def __init__(self, generators: Generators) -> None:
        super().__init__()
        if not isinstance(generators, Generators):
            raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
        self.generators = generators

    def forward(self, f: Tensor) -> Tensor:
        """(N, C, *spatial) to the same."""
        first = self.generators(f)  # (N, n_L, C, *spatial)
        second = self.generators(first.flatten(0, 1)).unflatten(0, first.shape[:2])  # (N, j, i, C, *spatial)
        return second.amax(1).sum(1)
