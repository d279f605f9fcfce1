"""Rods among plates, in noise, 3D: a task of shape in which the training's directions are of use, and mislead.

Rods and plates have the same brightness; a rod's voxels are to be found. In training all stand upright (rods along axis
0, plates normal to axis 1); in the test upright, or each scene turned by a rotation of its own. No augmentation.
"isotropic, invariants": Laplacian and Laplacian^2, means of cells, and EuclideanInvariants: a network that commutes
with SE(3).
"""

from __future__ import annotations

from typing import Any

import torch
from common import CONTENDERS, exchange, experiment, is_quick, predict, train
from torch import Tensor

from lconv_fast import nets
from lconv_fast.demo.volume import dice, kept_bytes, loss, rotation

SIZE, NOISE, SHAPES = 24, 0.2, 4
BALL, APART = 8.0, 6.0  # centres lie in a ball, so that a scene can be turned, and not nearer to each other than this
RODS, PLATES = (5.5, 1.7, 1.7), (4.0, 1.3, 4.0)
WIDTHS, BATCH = (8, 16, 32), 2
TRAINING, VALIDATION, TEST = 48, 16, 32
STEPS = 6 if is_quick() else 200
EQUIVARIANT = "isotropic, invariants"


def centers(random: torch.Generator) -> list[Tensor]:
    """Uniform in the ball, drawn again where they are too near to others."""
    found: list[Tensor] = []
    while len(found) < SHAPES:
        center = BALL * (2 * torch.rand(3, generator=random) - 1)
        if center.norm() < BALL and all((center - other).norm() > APART for other in found):
            found.append(center)
    return found


def volumes(count: int, seed: int, turned: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size, size), and labels (count, size, size, size): 1 in rods."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE, dtype=torch.float32)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1) - (SIZE - 1) / 2
    images, labels = torch.zeros(count, SIZE, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, SIZE)
    for image, label in zip(images, labels, strict=True):
        turn = rotation(random) if turned else torch.eye(3)
        for shape, center in enumerate(centers(random)):
            x = points @ turn - center
            radii = torch.tensor(PLATES if shape % 2 else RODS) * (0.8 + 0.4 * torch.rand(3, generator=random))
            inside = (x / radii).square().sum(-1) < 1
            image[inside], label[inside] = 1.0, float(shape % 2 == 0)
    images += NOISE * torch.randn(images.shape, generator=random)
    return images[:, None], labels


def make_model(contender: str) -> torch.nn.Module:
    if contender == EQUIVARIANT:
        return nets.LUNet(1, 1, nets.isotropic(3), ndim=3, widths=WIDTHS, norm="instance", pool="mean", invariants=True)
    return exchange(nets.LUNet(1, 1, ndim=3, widths=WIDTHS, norm="instance"), CONTENDERS[contender])


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = volumes(TRAINING, 10 * seed, False)
    torch.manual_seed(seed)
    model = make_model(contender)
    seconds = train(model, inputs, targets, loss, rate=rate, steps=STEPS, batch=BATCH, seed=seed)
    images, labels = volumes(VALIDATION, 10 * seed + 1, False)
    result = {"validation": dice(predict(model, images, BATCH), labels)}
    if not tuning:
        for name, turned, offset in (("upright", False, 2), ("turned", True, 3)):
            images, labels = volumes(TEST, 10 * seed + offset, turned)
            result[name] = dice(predict(model, images, BATCH), labels)
    return result | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    experiment("oriented", __doc__ or "", [*CONTENDERS, EQUIVARIANT], trial, rates=(1e-2, 3e-2), tuning_seeds=(100,))
