"""Advection and diffusion on a torus, 2D and 3D, learned from pairs: f_t = - u . grad f + kappa Laplacian f, div u = 0.

The network is given f and u and predicts the change of f over a time in which f moves by about a pixel. What keeps a
rollout bounded is the same for all contenders: the mean of f stays and its norm does not grow, as of the equation
itself (d/dt |f|^2 = -2 kappa |grad f|^2), so each step is followed by

    f <- mean + (f - mean) min(1, |f_before - mean| / |f - mean|),

and training goes through two steps, the first from a state with a little noise. Measured: errors of one step and of 20,
and the size after 200 steps over that of the start.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from common import CONTENDERS, exchange, experiment, is_quick, train
from torch import Tensor, nn
from torus import gradient, growth, relative, runge_kutta, smooth

from lconv_fast import nets
from lconv_fast.demo.volume import kept_bytes

SIZES = {2: 32, 3: 16}
KAPPA, SUBSTEPS, NOISE = 0.05, 6, 0.01
TRAINING, TEST = {2: 192, 3: 64}, 16
STEPS, BATCH = 4 if is_quick() else 200, {2: 8, 3: 2}
ROLLOUT, LONG = 20, 4 if is_quick() else 200


def rate_of_change(f: Tensor, u: Tensor) -> Tensor:
    slopes = gradient(f)
    laplacian = sum(gradient(g)[a] for a, g in enumerate(slopes))
    return KAPPA * laplacian - sum(u[:, a] * g for a, g in enumerate(slopes))


def advance(f: Tensor, u: Tensor) -> Tensor:
    return runge_kutta(lambda f: rate_of_change(f, u), f, 1.0, SUBSTEPS)


def states(count: int, ndim: int, seed: int) -> tuple[Tensor, Tensor]:
    """f (count, *spatial) and u (count, ndim, *spatial), free of divergence, of mean square speed 1."""
    random, size = torch.Generator().manual_seed(seed), SIZES[ndim]
    f = smooth(count, ndim, size, 1.5, random)
    slopes = [gradient(smooth(count, ndim, size, 4.0, random)) for _ in range(1 if ndim == 2 else 3)]
    if ndim == 2:
        u = torch.stack([slopes[0][1], -slopes[0][0]], 1)
    else:  # the curl of a vector potential
        u = torch.stack([slopes[(a + 2) % 3][(a + 1) % 3] - slopes[(a + 1) % 3][(a + 2) % 3] for a in range(3)], 1)
    return f, u / u.square().sum(1).flatten(1).mean(1).sqrt().reshape(-1, *[1] * (ndim + 1))


class Step(nn.Module):
    """f (N, 1, *spatial), u (N, ndim, *spatial) -> the next f."""

    def __init__(self, contender: str, ndim: int) -> None:
        super().__init__()
        net = nets.LResNet(
            1 + ndim,
            1,
            ndim=ndim,
            widths=(16, 16),
            read_out="points",
            norm="none",
            activation="gelu",
            padding_mode="circular",
        )
        self.net = exchange(net, CONTENDERS[contender])

    def forward(self, f: Tensor, u: Tensor) -> Tensor:
        new, axes = f + self.net(torch.cat([f, u], 1)), tuple(range(1, f.dim()))
        mean = f.mean(axes, keepdim=True)
        before = (f - mean).square().sum(axes, keepdim=True)
        new = new - new.mean(axes, keepdim=True)
        return mean + new * (before / new.square().sum(axes, keepdim=True).clamp_min(1e-12)).sqrt().clamp_max(1)


class Two(nn.Module):
    """(N, 1 + ndim, *spatial) -> two steps (N, 2, *spatial)."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, input: Tensor) -> Tensor:
        f, u = input[:, :1], input[:, 1:]
        first = self.step(f + NOISE * torch.randn_like(f), u) if self.training else self.step(f, u)
        return torch.cat([first, self.step(first, u)], 1)


def change_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


@torch.no_grad()
def measure(step: Step, ndim: int, seed: int, long: bool) -> dict[str, float]:
    """The error of one step is that of the change of f."""
    f, u = states(TEST, ndim, seed)
    truth, start = f.clone(), f
    result = {}
    for count in range(1, (LONG if long else 1) + 1):
        f = step(f[:, None], u)[:, 0]
        if count <= ROLLOUT:
            truth = advance(truth, u)
        if count == 1:
            result["one_step"] = relative(f - start, truth - start)
        if count == ROLLOUT:
            result["rollout_20"] = relative(f, truth)
    return result | ({"growth_200": growth(f, start)} if long else {})


def trial(ndim: int, contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    f, u = states(TRAINING[ndim], ndim, 10 * seed)
    first = advance(f, u)
    inputs, targets = torch.cat([f[:, None], u], 1), torch.stack([first, advance(first, u)], 1)
    torch.manual_seed(seed)
    step = Step(contender, ndim)
    seconds = train(Two(step), inputs, targets, change_loss, rate=rate, steps=STEPS, batch=BATCH[ndim], seed=seed)
    result: dict[str, Any] = {"validation": measure(step, ndim, 10 * seed + 1, False)["one_step"]}
    if not tuning:
        result |= measure(step, ndim, 10 * seed + 2, True)
    return result | {
        "parameters": sum(p.numel() for p in step.parameters()),
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(Two(step), inputs[: BATCH[ndim]]) / 2**20,
    }


if __name__ == "__main__":
    for ndim in SIZES:
        experiment(
            f"advection{ndim}d",
            __doc__ or "",
            list(CONTENDERS),
            partial(trial, ndim),
            higher=False,
            rates=(1e-2, 3e-2),
            tuning_seeds=(100,),
        )
