"""What experiments with classes of voxels share: loss, overlap, and one trial of a U-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import CONTENDERS, exchange, predict, train
from torch import Tensor
from torch.nn import functional as F

from lconv_fast import nets
from lconv_fast.demo.volume import kept_bytes


def soft_dice(p: Tensor, truth: Tensor) -> Tensor:
    return 2 * (p * truth).sum() / (p.sum() + truth.sum() + 1)


def loss(output: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, and 1 minus the mean soft Dice of the classes 1, 2, ..."""
    p, others = output.softmax(1), range(1, output.shape[1])
    overlap = [soft_dice(p[:, c], (classes == c).float()) for c in others]
    return F.cross_entropy(output, classes) + 1 - torch.stack(overlap).mean()


def dice(output: Tensor, classes: Tensor) -> list[float]:
    """Of the classes 1, 2, ..."""
    found = output.argmax(1)
    return [soft_dice((found == c).double(), (classes == c).double()).item() for c in range(1, output.shape[1])]


Draw = Callable[[str, int], tuple[Tensor, Tensor]]  # ("training", "validation" or "test", seed) -> images and classes


def trial(
    draw: Draw, names: tuple[str, ...], widths: tuple[int, ...], steps: int, batch: int
) -> Callable[[str, float, int, bool], dict[str, Any]]:
    """Trains a U-Net and measures its Dice of the classes `names` and their mean, "dice"; the test's only at the end.

    Norms of the batch: those of an image would differ between crops and the larger images of the test.
    """

    def run(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
        inputs, targets = draw("training", seed)
        ndim = inputs.dim() - 2
        torch.manual_seed(seed)
        model = exchange(nets.LUNet(1, 1 + len(names), ndim=ndim, widths=widths, norm="batch"), CONTENDERS[contender])
        seconds = train(model, inputs, targets, loss, rate=rate, steps=steps, batch=batch, seed=seed)

        def measure(part: str) -> list[float]:
            images, classes = draw(part, seed)
            return dice(predict(model, images, 1), classes)

        found = measure("validation")
        result = {"validation": sum(found) / len(found)}
        if not tuning:
            found = measure("test")
            result |= dict(zip(names, found, strict=True)) | {"dice": sum(found) / len(found)}
        return result | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "step_ms": 1e3 * seconds,
            "kept_mib": kept_bytes(model, inputs[:batch]) / 2**20,
        }

    return run
