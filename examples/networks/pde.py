"""One step of advection and diffusion in 2D, on a torus: f_t = - u . grad f + kappa Laplacian f, learned from pairs.

u (divergence-free) is given to the network beside f; it predicts the change of f over a time in which f moves by about
a pixel. Truth: Fourier derivatives and Runge-Kutta steps. Measured: the error of one step, of a rollout of 20 steps,
and whether 200 steps stay bounded.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from common import CONTENDERS, exchange, experiment, is_quick, predict, train
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast import nets
from lconv_fast.demo.volume import kept_bytes

SIZE, KAPPA, STEP, SUBSTEPS = 32, 0.05, 1.0, 8
TRAINING, VALIDATION, TEST = 256, 64, 64
STEPS, BATCH = (6, 16) if is_quick() else (300, 16)
K = 2 * math.pi * torch.fft.fftfreq(SIZE)
KY, KX = K[:, None], K[None, :]
ROLLOUT, LONG = 20, 200


def smooth(count: int, width: float, random: torch.Generator) -> Tensor:
    """Random fields (count, size, size) of variance 1, with details of `width` pixels."""
    noise = torch.fft.fft2(torch.randn(count, SIZE, SIZE, generator=random))
    f = torch.fft.ifft2(noise * torch.exp(-0.5 * width**2 * (KY**2 + KX**2))).real
    return (f - f.mean((1, 2), keepdim=True)) / f.std((1, 2), keepdim=True)


def rate_of_change(f: Tensor, u: Tensor) -> Tensor:
    hat = torch.fft.fft2(f)
    gradient = [torch.fft.ifft2(1j * k * hat).real for k in (KY, KX)]
    laplacian = torch.fft.ifft2(-(KY**2 + KX**2) * hat).real
    return KAPPA * laplacian - u[:, 0] * gradient[0] - u[:, 1] * gradient[1]


def advance(f: Tensor, u: Tensor) -> Tensor:
    """f after STEP, by the classical Runge-Kutta method."""
    h = STEP / SUBSTEPS
    for _ in range(SUBSTEPS):
        a = rate_of_change(f, u)
        b = rate_of_change(f + h / 2 * a, u)
        c = rate_of_change(f + h / 2 * b, u)
        d = rate_of_change(f + h * c, u)
        f = f + h / 6 * (a + 2 * b + 2 * c + d)
    return f


def states(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """f (count, size, size) and u (count, 2, size, size), of mean square speed 1 pixel per unit of time."""
    random = torch.Generator().manual_seed(seed)
    f, stream = smooth(count, 1.5, random), smooth(count, 4.0, random)
    hat = torch.fft.fft2(stream)
    u = torch.stack([torch.fft.ifft2(1j * KX * hat).real, -torch.fft.ifft2(1j * KY * hat).real], 1)
    return f, u / u.square().sum(1).mean((1, 2)).sqrt()[:, None, None, None]


class Step(nn.Module):
    """(f, u) (N, 3, size, size) -> the change of f, (N, 1, size, size)."""

    def __init__(self, contender: str) -> None:
        super().__init__()
        net = nets.LResNet(
            3, 1, widths=(16, 16), read_out="points", norm="none", activation="gelu", padding_mode="circular"
        )
        self.net = exchange(net, CONTENDERS[contender])

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    f, u = states(count, seed)
    return torch.cat([f[:, None], u], 1), (advance(f, u) - f)[:, None]


def relative(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


@torch.no_grad()
def rollout(model: nn.Module, seed: int) -> dict[str, float]:
    """Error after 20 steps, relative to the truth's size; the largest value after 200 steps over that of the start."""
    f, u = states(16, seed)
    start, truth = f.abs().max(), f.clone()
    errors = {}
    for step in range(LONG):
        f = f + model(torch.cat([f[:, None], u], 1))[:, 0]
        if step < ROLLOUT:
            truth = advance(truth, u)
        if step == ROLLOUT - 1:
            errors["rollout_20"] = min(relative(f, truth), 1e6)
    return errors | {"growth_200": min(float((f.abs().max() / start).nan_to_num(1e6)), 1e6)}


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = pairs(TRAINING, 10 * seed)
    torch.manual_seed(seed)
    model = Step(contender)
    seconds = train(model, inputs, targets, F.mse_loss, rate=rate, steps=STEPS, batch=BATCH, seed=seed)
    images, truth = pairs(VALIDATION, 10 * seed + 1)
    result: dict[str, Any] = {"validation": relative(predict(model, images), truth)}
    if not tuning:
        images, truth = pairs(TEST, 10 * seed + 2)
        result |= {"one_step": relative(predict(model, images), truth)} | rollout(model, 10 * seed + 3)
    parameters = sum(p.numel() for p in model.parameters())
    return result | {
        "parameters": parameters,
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    experiment("pde", __doc__ or "", list(CONTENDERS), trial, higher=False, tuning_seeds=(100,))
