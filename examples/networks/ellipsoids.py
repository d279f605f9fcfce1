"""Solid ellipsoids among shells, in noise, 3D: segmentation by a small U-Net.

Solids and shells have the same outer shapes and brightness, so that a voxel's label depends on its surroundings.
Training shapes stand upright (their longest axis is axis 0); test shapes stand upright, or are turned by any rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from common import CONTENDERS, exchange, experiment, is_quick, kept_bytes, predict, train
from torch import Tensor
from torch.nn import functional as F

from lconv_fast import nets

SIZE, NOISE, SHAPES = 24, 0.6, 6
TRAINING, VALIDATION, TEST = 48, 16, 32
STEPS, BATCH = (6, 2) if is_quick() else (160, 2)


def rotation(random: torch.Generator) -> Tensor:
    """A rotation drawn uniformly: the Q of a Gaussian matrix, with det 1."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=random))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def volumes(count: int, seed: int, turned: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size, size) and labels (count, size, size, size): 1 in solid ellipsoids."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.arange(SIZE, dtype=torch.float32)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    images, labels = torch.zeros(count, SIZE, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, SIZE)
    for image, label in zip(images, labels, strict=True):
        for shape in range(SHAPES):
            center = 3 + torch.rand(3, generator=random) * (SIZE - 7)
            radii = torch.tensor([4.5, 2.6, 2.6]) * (0.8 + 0.4 * torch.rand(3, generator=random))
            x = points - center
            if turned:
                x = x @ rotation(random)
            inside = (x / radii).square().sum(-1) < 1
            core = (x / (radii - 1.3)).square().sum(-1) < 1
            solid = shape % 2 == 0
            image[inside & ~core], label[inside] = 1.0, float(solid)
            image[core] = float(solid)
    images += NOISE * torch.randn(images.shape, generator=random)
    return images[:, None], labels


def loss(output: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, half and half."""
    p = output[:, 0].sigmoid()
    dice = 1 - (2 * (p * label).sum() + 1) / (p.sum() + label.sum() + 1)
    return F.binary_cross_entropy_with_logits(output[:, 0], label) + dice


def dice(output: Tensor, label: Tensor) -> float:
    found = output[:, 0] > 0
    return (2 * (found & (label > 0)).sum() / (found.sum() + label.sum())).item()


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = volumes(TRAINING, 10 * seed, False)
    torch.manual_seed(seed)
    model = exchange(nets.LUNet(1, 1, ndim=3, widths=(8, 16, 32), norm="instance"), CONTENDERS[contender])
    seconds = train(model, inputs, targets, loss, rate=rate, steps=STEPS, batch=BATCH, seed=seed)
    images, labels = volumes(VALIDATION, 10 * seed + 1, False)
    result = {"validation": dice(predict(model, images, BATCH), labels)}
    if not tuning:
        for name, turned, offset in (("upright", False, 2), ("turned", True, 3)):
            images, labels = volumes(TEST, 10 * seed + offset, turned)
            result[name] = dice(predict(model, images, BATCH), labels)
    parameters = sum(p.numel() for p in model.parameters())
    return result | {
        "parameters": parameters,
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, inputs[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    experiment("ellipsoids", __doc__ or "", list(CONTENDERS), trial)
