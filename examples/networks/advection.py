"""Advection and diffusion on a torus, 2D and 3D: f_t = - u . grad f + kappa Laplacian f, u(x) given, learned from data.

f after a unit of time is exp(X) f, X = kappa Laplacian - u . grad, whose first term is symmetric and whose second is
antisymmetric, since u has no divergence. So is the learned one, the same for all contenders:

    f(t + 1) = f + X f + X^2 f / 2 + X^3 f / 6 + X^4 f / 24,
    X f = (K_0 f + K_0^T f + A f - A^T f) / 2,    A = sum_a u_a K_a,

K_0 .. K_n the results of one layer of the contender, K^T its exact transpose by automatic differentiation: linear in f,
as the equation is, and stable where X is small enough, for X cannot grow what it moves. It is trained through UNROLLED
of its own steps, from states with a little noise, which teaches what data without short waves do not. "one layer" ends
the series with X f. Every run trains for one budget of processor time: as many steps as fit, by the time of a step that
`--time` measured.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from common import LCONVS, experiment, in_budget, train
from equations import LONG, ONE_LAYER, ROLLOUT, layer_of, measures_of_rollout, names
from torch import Tensor, nn
from torus import divergence, gradient, laplacian, relative, runge_kutta, smooth

from lconv_fast.demo.volume import kept_bytes
from lconv_fast.generators import named

SIZES, KAPPA, SPEED, SUBSTEPS = {2: 32, 3: 16}, 0.025, 0.5, 4
TRUE = "the true numbers, order 6"  # nothing is learned: what is left is the error of series and differences
ORDER, UNROLLED, NOISE = 4, 2, 0.02
TRAINING, TEST, BATCH = {2: 64, 3: 32}, 8, {2: 4, 3: 2}


def rate_of_change(f: Tensor, u: Tensor) -> Tensor:
    """u (N, n, *spatial), f (N, *spatial). u . grad f = (u . grad f + div(u f)) / 2, which is antisymmetric on the grid
    too: the first form alone grows there by aliasing."""
    along = (u * torch.stack(gradient(f), 1)).sum(1)
    return KAPPA * laplacian(f) - (along + divergence(u * f[:, None])) / 2


def advance(f: Tensor, u: Tensor) -> Tensor:
    return runge_kutta(partial(rate_of_change, u=u), f, 1.0, SUBSTEPS)


def states(count: int, ndim: int, seed: int) -> tuple[Tensor, Tensor]:
    """f (count, *spatial), and u (count, n, *spatial) without divergence, whose root mean square is SPEED pixels per
    unit of time."""
    random, size = torch.Generator().manual_seed(seed), SIZES[ndim]
    f = smooth(count, ndim, size, 1.5, random)
    # The curl of a potential: of one component along a third axis in 2D, of three in 3D.
    slopes = [gradient(smooth(count, ndim, size, 4.0, random)) for _ in range(1 if ndim == 2 else 3)]
    if ndim == 2:
        u = torch.stack([slopes[0][1], -slopes[0][0]], 1)
    else:
        u = torch.stack([slopes[(a + 2) % 3][(a + 1) % 3] - slopes[(a + 1) % 3][(a + 2) % 3] for a in range(3)], 1)
    size_of_u = u.square().sum(1, keepdim=True).mean(tuple(range(2, ndim + 2)), keepdim=True).sqrt()
    return f, SPEED * u / size_of_u


@lru_cache
def trajectories(count: int, ndim: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
    """(f, u) (count, 1 + n, *spatial) and f after 1 .. length units of time (count, length, *spatial)."""
    f, u = states(count, ndim, seed)
    start, later = f, []
    for _ in range(length):
        f = advance(f, u)
        later.append(f)
    return torch.cat([start[:, None], u], 1), torch.stack(later, 1)


def true_layer(ndim: int) -> nn.Module:
    """K_0 = kappa Laplacian, K_a = - d_a, with differences of order 6."""
    generators = named("laplacian", ndim, padding_mode="circular", accuracy=6)
    layer = LCONVS[ndim](1, 1 + ndim, generators, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[ndim + 1, 0] = KAPPA
        for a in range(ndim):
            layer.weight[1 + a, 1 + a] = -1.0
    return layer


class Flow(nn.Module):
    """(f, u) (N, 1 + n, *spatial) -> f after a unit of time, (N, 1, *spatial)."""

    def __init__(self, contender: str, ndim: int) -> None:
        super().__init__()
        self.order = 1 if contender == ONE_LAYER else ORDER
        if contender == TRUE:
            self.layer = true_layer(ndim)
            return
        self.layer = layer_of(contender)(ndim, 1, 1 + ndim, "circular")
        for weight in self.layer.parameters():
            nn.init.zeros_(weight)  # at first nothing moves

    def rate(self, f: Tensor, u: Tensor) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            f = f if learning and f.requires_grad else f.detach().requires_grad_()
            k = self.layer(f)
            # The layer is linear: its transpose is its gradient, at any f.
            weighted = torch.cat([f, -u * f], 1)
            (transposed,) = torch.autograd.grad(k, f, weighted, create_graph=learning, retain_graph=True)
            result = (k[:, :1] + (u * k[:, 1:]).sum(1, keepdim=True) + transposed) / 2
        return result if learning else result.detach()

    def advance(self, f: Tensor, u: Tensor) -> Tensor:
        term, total = f, f
        for power in range(1, self.order + 1):
            term = self.rate(term, u) / power
            total = total + term
        return total

    def forward(self, input: Tensor) -> Tensor:
        """The states after 1 .. UNROLLED steps, (N, UNROLLED, *spatial), where it learns; else after one."""
        f, u, found = input[:, :1], input[:, 1:], []
        if self.training:
            f = f + NOISE * torch.randn_like(f)
        for _ in range(UNROLLED if self.training else 1):
            f = self.advance(f, u)
            found.append(f)
        return torch.cat(found, 1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


@torch.no_grad()
def rollout(model: Flow, ndim: int, seed: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Found and true states after 1 .. steps, and the start."""
    inputs, truth = trajectories(TEST, ndim, seed, steps)
    f, u, found = inputs[:, :1], inputs[:, 1:], []
    for _ in range(steps):
        f = model.advance(f, u)
        found.append(f)
    return torch.cat(found, 1), truth, inputs[:, 0]


@torch.no_grad()
def one_step(model: Flow, ndim: int, seed: int) -> float:
    """The error of the change of f, relative to that change."""
    inputs, truth = trajectories(TEST, ndim, seed, 1)
    return relative(model(inputs)[:, 0] - inputs[:, 0], truth[:, 0] - inputs[:, 0])


def trial(ndim: int, budget: dict[str, int], contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = trajectories(TRAINING[ndim], ndim, 10 * seed, UNROLLED)
    torch.manual_seed(seed)
    model, steps, seconds = Flow(contender, ndim), budget.get(contender, 0), 0.0
    if steps:
        seconds = train(model, inputs, targets, loss, rate=rate, steps=steps, batch=BATCH[ndim], seed=seed)
    model.eval()
    if tuning:
        found, truth, _ = rollout(model, ndim, 10 * seed + 1, ROLLOUT)
        result = {"validation": relative(found[:, -1], truth[:, -1])}
    else:
        result = {"one_step": one_step(model, ndim, 10 * seed + 2)}
        result |= measures_of_rollout(*rollout(model, ndim, 10 * seed + 3, LONG))
    return result | {
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[: BATCH[ndim]]) / 2**20,
    }


def batch_of(ndim: int) -> tuple[Tensor, Tensor]:
    return trajectories(BATCH[ndim], ndim, 0, UNROLLED)


if __name__ == "__main__":
    for ndim in SIZES:
        name, make = f"advection{ndim}d", partial(Flow, ndim=ndim)
        experiment(
            name,
            __doc__ or "",
            [*names(ndim), TRUE],
            partial(trial, ndim, in_budget(name, __doc__ or "", names(ndim), make, loss, partial(batch_of, ndim))),
            higher=False,
            rates=(1e-2, 3e-2, 1e-1),
            tuning_seeds=(100,),
            seeds=(0, 1, 2, 3, 4) if ndim == 2 else (0, 1, 2),
        )
