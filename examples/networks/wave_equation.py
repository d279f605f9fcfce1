"""The wave equation f_tt = div(c^2 grad f) on a torus, 2D and 3D, c(x) given, learned from triples in time.

With A = - div c^2 grad, f(t + 1) - 2 f(t) + f(t - 1) = 2 (cos(A^(1/2)) - 1) f(t), which is a symmetric operator,
negative, and at least -4. So is the learned one, the same for all contenders: the leapfrog

    f(t + 1) = 2 f(t) - f(t - 1) - B^T (w o B f(t)),    w(x) > 0 a function of c^2(x) at the point,

B two linear layers of the contender, B^T their exact transpose by automatic differentiation. It conserves a quadratic
energy, and is stable where the largest eigenvalue of B^T w B is below 4: after training, w is multiplied by the factor
that the power method gives for that on training data (1 where it holds already). Measured: errors of one step and of
20, and the size after 200 steps over that of the start.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from common import CONTENDERS, experiment, is_quick, train
from torch import Tensor, nn
from torus import gradient, growth, relative, runge_kutta, smooth

from lconv_fast.demo.volume import kept_bytes
from lconv_fast.nets.blocks import CONVS

SIZES = {2: 32, 3: 16}
SUBSTEPS, WIDTH, CHANNELS = 12, 8, 16
TRAINING, TEST = {2: 192, 3: 64}, 16
STEPS, BATCH = 4 if is_quick() else 300, {2: 8, 3: 2}
ROLLOUT, LONG, LARGEST, POWERS = 20, 4 if is_quick() else 200, 3.99, 40


def advance(f: Tensor, velocity: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """f and f_t after a unit of time; square = c^2 (N, *spatial)."""

    def rate(state: Tensor) -> Tensor:
        flux = [square * g for g in gradient(state[0])]
        return torch.stack([state[1], sum(gradient(g)[a] for a, g in enumerate(flux))])

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
        make = CONTENDERS[contender]
        self.layers = nn.Sequential(make(ndim, 1, WIDTH, "circular"), make(ndim, WIDTH, CHANNELS, "circular"))
        conv = CONVS[ndim]
        self.weight = nn.Sequential(conv(1, WIDTH, 1), nn.GELU(), conv(WIDTH, CHANNELS, 1), nn.Softplus())
        self.factor = 1.0

    def forward(self, input: Tensor) -> Tensor:
        f, square = input[:, :1], input[:, 1:]
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            f = f.detach().requires_grad_()
            features = self.layers(f)
            weighted = self.factor * self.weight(square) * features
            # The layers are linear: their transpose is their gradient, at any f.
            (result,) = torch.autograd.grad(features, f, weighted, create_graph=learning)
        return -result

    @torch.no_grad()
    def bound(self, square: Tensor) -> None:
        """Largest eigenvalue at most LARGEST, for the given c^2."""
        f = torch.randn(square.shape, generator=torch.Generator().manual_seed(0))[:, None]
        length = f
        for _ in range(POWERS):
            f = -self(torch.cat([f / f.flatten(1).norm(dim=1).reshape(-1, *[1] * (f.dim() - 1)), square[:, None]], 1))
            length = f.flatten(1).norm(dim=1)
        self.factor *= min(1.0, LARGEST / (1.05 * length.max().item()))


def triples(count: int, ndim: int, seed: int) -> tuple[Tensor, Tensor]:
    f, velocity, square = states(count, ndim, seed)
    after, before = advance(f, velocity, square)[0], advance(f, -velocity, square)[0]
    return torch.stack([f, square], 1), (after - 2 * f + before)[:, None]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


@torch.no_grad()
def rollout(model: Leapfrog, ndim: int, seed: int) -> dict[str, float]:
    before, velocity, square = states(TEST, ndim, seed)
    truth, velocity = advance(before, velocity, square)
    f, start, result = truth, before, {}
    for count in range(1, LONG + 1):
        second = model(torch.stack([f, square], 1))[:, 0]
        f, before = 2 * f - before + second, f
        if count <= ROLLOUT:
            truth, velocity = advance(truth, velocity, square)
        if count == ROLLOUT:
            result["rollout_20"] = relative(f, truth)
    return result | {"growth_200": growth(f, start), "eigenvalue_factor": model.factor}


def trial(ndim: int, contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = triples(TRAINING[ndim], ndim, 10 * seed)
    torch.manual_seed(seed)
    model = Leapfrog(contender, ndim)
    seconds = train(model, inputs, targets, loss, rate=rate, steps=STEPS, batch=BATCH[ndim], seed=seed)
    model.bound(inputs[:TEST, 1])

    def error(part: int) -> float:
        images, truth = triples(TEST, ndim, 10 * seed + part)
        return relative(model(images).detach(), truth)

    result: dict[str, Any] = {"validation": error(1)}
    if not tuning:
        result |= {"one_step": error(2)} | rollout(model, ndim, 10 * seed + 3)
    return result | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[: BATCH[ndim]]) / 2**20,
    }


if __name__ == "__main__":
    for ndim in SIZES:
        experiment(
            f"wave{ndim}d",
            __doc__ or "",
            list(CONTENDERS),
            partial(trial, ndim),
            higher=False,
            rates=(1e-2, 3e-2),
            tuning_seeds=(100,),
        )
