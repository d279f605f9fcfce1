"""A volume: solid ellipsoids among shells, in noise, found by a U-Net of L-convs and by the same U-Net of convolutions.

Solids and shells have the same outer shapes and brightness, so that a voxel's label depends on its surroundings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast import nets

SIZE, NOISE, SHAPES = 24, 0.6, 6
TRAINING, TEST, BATCH = 48, 16, 2
WIDTHS = (8, 16, 32)
# The best of 0.01, 0.03 and 0.1 on validation data of other seeds, for each (examples/networks/ellipsoids.py).
RATES = {"L-conv": 3e-2, "Conv3d": 1e-2}
CONVS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    lc.LConv1d: nn.Conv1d,
    lc.LConv2d: nn.Conv2d,
    lc.LConv3d: nn.Conv3d,
}


@dataclass
class VolumeResult:
    """What one U-Net did. `dice` on test volumes, measured once, after training; bytes kept for backward by a step."""

    model: str
    parameters: int
    dice: float
    seconds_per_step: float
    kept_bytes: int
    picture: dict[str, list[list[float]]] = field(default_factory=dict)  # a slice: image, truth, found


def rotation(random: torch.Generator) -> Tensor:
    """A rotation drawn uniformly: the Q of a Gaussian matrix, with det 1."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=random))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def volumes(count: int, seed: int, turned: bool = False) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size, size) and labels (count, size, size, size): 1 in solid ellipsoids.

    The longest axis of each shape is axis 0, or points anywhere.
    """
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
    """Cross-entropy and soft Dice."""
    p = output[:, 0].sigmoid()
    dice = 1 - (2 * (p * label).sum() + 1) / (p.sum() + label.sum() + 1)
    return F.binary_cross_entropy_with_logits(output[:, 0], label) + dice


def dice(output: Tensor, label: Tensor) -> float:
    found = output[:, 0] > 0
    return (2 * (found & (label > 0)).sum() / (found.sum() + label.sum())).item()


def exchange(model: nn.Module, make: Callable[[Any], nn.Module]) -> nn.Module:
    """Puts make(layer) in the place of every LConv of the model."""
    for name, child in model.named_children():
        if isinstance(child, tuple(CONVS)):
            setattr(model, name, make(child))
        else:
            exchange(child, make)
    return model


def convolution(layer: Any) -> nn.Module:
    """A 3^n convolution with the channels of an LConv."""
    mode = layer.generators.padding_mode
    return CONVS[type(layer)](
        layer.in_channels, layer.out_channels, 3, padding=1, padding_mode=mode, bias=layer.bias is not None
    )


def kept_bytes(model: nn.Module, batch: Tensor) -> int:
    """Bytes that one forward pass keeps for the backward pass, beyond the parameters."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(batch)
    del result
    return sum(kept.values())


def make_model(name: str) -> nn.Module:
    model = nets.LUNet(1, 1, ndim=3, widths=WIDTHS, norm="instance")
    return model if name == "L-conv" else exchange(model, convolution)


def steps(quick: bool) -> int:
    return 4 if quick else 120


def run(seed: int, quick: bool, advance: Callable[[], None]) -> list[VolumeResult]:
    """Trains both, step by step in turn, so that a change of the machine's speed reaches both alike."""
    images, labels = volumes(TRAINING, 10 * seed)
    models, jobs = {}, {}
    for name, rate in RATES.items():
        torch.manual_seed(seed)
        models[name] = make_model(name)
        optimizer = torch.optim.AdamW(models[name].parameters(), lr=rate, weight_decay=1e-4)
        jobs[name] = optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps(quick))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps(quick)):
        index = torch.randperm(TRAINING, generator=random)[:BATCH]
        for name, (optimizer, schedule) in jobs.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(models[name](images[index]), labels[index]).backward()
            torch.nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
            optimizer.step()
            schedule.step()
            seconds[name].append(time.perf_counter() - start)
        advance()
    tests, truth = volumes(TEST, 10 * seed + 2)
    return [_result(name, model, seconds[name], tests, truth) for name, model in models.items()]


def _result(name: str, model: nn.Module, seconds: list[float], tests: Tensor, truth: Tensor) -> VolumeResult:
    model.eval()
    with torch.no_grad():
        output = torch.cat([model(part) for part in tests.split(BATCH)])
    middle = SIZE // 2
    picture = {"image": tests[0, 0, middle], "truth": truth[0, middle], "found": (output[0, 0, middle] > 0).float()}
    return VolumeResult(
        name,
        parameters=sum(p.numel() for p in model.parameters()),
        dice=dice(output, truth),
        seconds_per_step=statistics.median(seconds),
        kept_bytes=kept_bytes(model, tests[:BATCH]),
        picture={key: value.tolist() for key, value in picture.items()},
    )
