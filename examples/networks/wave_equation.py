"""The wave equation f_tt = div(c^2 grad f) on a torus, 2D and 3D, c(x) given, learned from triples in time.

With A = - div c^2 grad, f(t + 1) - 2 f(t) + f(t - 1) = 2 (cos(A^(1/2)) - 1) f(t), which is a symmetric operator,
negative, and at least -4. So is the learned one, the same for all contenders: the leapfrog

    f(t + 1) = 2 f(t) - f(t - 1) - (A - A^2 / 12 + A^3 / 360) f(t),    A = K^T (w o K),

w(x) > 0 a function of c^2 at the point, K one layer of the contender, K^T its exact transpose by automatic
differentiation; "one layer" ends the series with A. It conserves a quadratic energy, and is stable where the largest
eigenvalue of the series is below 4: after training, w is multiplied by the factor that the power method gives for that
on training data (1 where it holds already). Every run trains for SECONDS of processor time (advection.py).
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from common import experiment, in_budget, train
from equations import LONG, ONE_LAYER, layer_of, measures_of_rollout, names
from torch import Tensor, nn
from torus import divergence, gradient, relative, runge_kutta, smooth

from lconv_fast.demo.volume import kept_bytes
from lconv_fast.nets.blocks import CONVS

SIZES = {2: 32, 3: 16}
SUBSTEPS, CHANNELS, WIDTH = 6, 4, 8
SERIES = (1.0, -1 / 12, 1 / 360)  # of 2 - 2 cos(A^(1/2))
TRAINING, TEST, BATCH = {2: 64, 3: 32}, 8, {2: 4, 3: 2}
LARGEST, POWERS = 3.99, 40
SECONDS = 5.0  # of processor time for a run: in 1.5, some of every contender's were still far from done


def advance(f: Tensor, velocity: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """f and f_t after a unit of time; square = c^2 (N, *spatial)."""

    def rate(state: Tensor) -> Tensor:
        return torch.stack([state[1], divergence(square[:, None] * torch.stack(gradient(state[0]), 1))])

    after = runge_kutta(rate, torch.stack([f, velocity]), 1.0, SUBSTEPS)
    return after[0], after[1]


def states(count: int, ndim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """f, f_t and c^2, which lies between 0.1 and 0.5: (count, *spatial) each."""
    random, size = torch.Generator().manual_seed(seed), SIZES[ndim]
    f, velocity = smooth(count, ndim, size, 1.5, random), 0.3 * smooth(count, ndim, size, 1.5, random)
    return f, velocity, 0.1 + 0.4 * smooth(count, ndim, size, 4.0, random).sigmoid()


class Leapfrog(nn.Module):
    """(f, c^2) (N, 2, *spatial) -> f(t + 1) - 2 f(t) + f(t - 1), (N, 1, *spatial)."""

    def __init__(self, contender: str, ndim: int) -> None:
        super().__init__()
        self.series = SERIES[:1] if contender == ONE_LAYER else SERIES
        self.layer = layer_of(contender)(ndim, 1, CHANNELS, "circular")
        conv = CONVS[ndim]
        self.weight = nn.Sequential(conv(1, WIDTH, 1), nn.GELU(), conv(WIDTH, CHANNELS, 1), nn.Softplus())
        self.factor = 1.0

    def operator(self, f: Tensor, weight: Tensor) -> Tensor:
        """A f."""
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            f = f if learning and f.requires_grad else f.detach().requires_grad_()
            k = self.layer(f)
            # The layer is linear: its transpose is its gradient, at any f.
            (result,) = torch.autograd.grad(k, f, weight * k, create_graph=learning)
        return result

    def forward(self, input: Tensor) -> Tensor:
        term, weight, total = input[:, :1], self.factor * self.weight(input[:, 1:]), 0.0
        for number in self.series:
            term = self.operator(term, weight)
            total = total - number * term
        return total

    @torch.no_grad()
    def bound(self, square: Tensor) -> None:
        """Largest eigenvalue at most LARGEST, for the given c^2."""
        f = torch.randn(square.shape, generator=torch.Generator().manual_seed(0))[:, None]
        length = f
        for _ in range(POWERS):
            f = -self(torch.cat([f / f.flatten(1).norm(dim=1).reshape(-1, *[1] * (f.dim() - 1)), square[:, None]], 1))
            length = f.flatten(1).norm(dim=1)
        self.factor *= min(1.0, LARGEST / (1.05 * length.max().item()))


@lru_cache
def triples(count: int, ndim: int, seed: int) -> tuple[Tensor, Tensor]:
    f, velocity, square = states(count, ndim, seed)
    after, before = advance(f, velocity, square)[0], advance(f, -velocity, square)[0]
    return torch.stack([f, square], 1), (after - 2 * f + before)[:, None]


@lru_cache
def trajectories(ndim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """c^2, and f at the times 0 and 1, and 2 .. LONG + 1: (TEST, LONG, *spatial)."""
    f, velocity, square = states(TEST, ndim, seed)
    found = [f]
    for _ in range(LONG + 1):
        f, velocity = advance(f, velocity, square)
        found.append(f)
    return square, torch.stack(found[:2], 1), torch.stack(found[2:], 1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


@torch.no_grad()
def rollout(model: Leapfrog, ndim: int, seed: int) -> dict[str, float]:
    square, start, truth = trajectories(ndim, seed)
    before, f = start.unbind(1)
    found = []
    for _ in range(LONG):
        second = model(torch.stack([f, square], 1))[:, 0]
        f, before = 2 * f - before + second, f
        found.append(f)
    return measures_of_rollout(torch.stack(found, 1), truth, start[:, 0]) | {"eigenvalue_factor": model.factor}


def trial(ndim: int, budget: dict[str, int], contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = triples(TRAINING[ndim], ndim, 10 * seed)
    torch.manual_seed(seed)
    model, steps = Leapfrog(contender, ndim), budget[contender]
    seconds = train(model, inputs, targets, loss, rate=rate, steps=steps, batch=BATCH[ndim], seed=seed)
    model.bound(inputs[:TEST, 1])

    def error(part: int) -> float:
        images, truth = triples(TEST, ndim, 10 * seed + part)
        return relative(model(images).detach(), truth)

    result: dict[str, Any] = {"validation": error(1)}
    if not tuning:
        result |= {"one_step": error(2)} | rollout(model, ndim, 10 * seed + 3)
    return result | {
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[: BATCH[ndim]]) / 2**20,
    }


if __name__ == "__main__":
    for ndim in SIZES:
        name, make = f"wave{ndim}d", partial(Leapfrog, ndim=ndim)
        batch = partial(triples, BATCH[ndim], ndim, 0)
        budget = in_budget(name, __doc__ or "", names(ndim), make, loss, batch, SECONDS)
        experiment(
            name,
            __doc__ or "",
            names(ndim),
            partial(trial, ndim, budget),
            higher=False,
            rates=(3e-2, 1e-1, 3e-1),
            tuning_seeds=(100, 101),
            seeds=(0, 1, 2, 3, 4) if ndim == 2 else (0, 1, 2),
        )
