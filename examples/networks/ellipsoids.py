"""Solid ellipsoids among shells, in noise, 3D: segmentation by a small U-Net.

Solids and shells have the same outer shapes and brightness, so that a voxel's label depends on its surroundings.
Training shapes stand upright (their longest axis is axis 0); test shapes stand upright, or are turned by any rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from common import CONTENDERS, exchange, experiment, is_quick, predict, train

from lconv_fast import nets
from lconv_fast.demo.volume import BATCH, TRAINING, WIDTHS, dice, kept_bytes, loss, volumes

VALIDATION, TEST = 16, 32
STEPS = 6 if is_quick() else 160


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    inputs, targets = volumes(TRAINING, 10 * seed, False)
    torch.manual_seed(seed)
    model = exchange(nets.LUNet(1, 1, ndim=3, widths=WIDTHS, norm="instance"), CONTENDERS[contender])
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
