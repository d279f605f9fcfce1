"""Handwritten digits, upright and rotated: an L-conv classifier beside a CNN and the paper's dense d x d layer."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.convert.memory import peak_memory

SIDE, CLASSES = 8, 10
LAYERS = 3
BATCH = 64
MODELS = ("L-conv", "CNN 3x3", "dense L")
DATA = ("upright", "rotated")


@dataclass(frozen=True)
class Split:
    """Images (N, 1, 8, 8) and labels (N,); one angle per image in `rotated`."""

    upright: Tensor
    rotated: Tensor
    labels: Tensor

    def images(self, data: str) -> Tensor:
        return self.upright if data == "upright" else self.rotated


@dataclass
class DigitsResult:
    """What one model did. Accuracies are fractions; `test[train_data][test_data]` was measured once, after training."""

    model: str
    parameters: int
    seconds_per_epoch: float = 0.0
    epoch_ratio_to_cnn: float = 0.0
    step_peak_bytes: int = 0
    validation_curves: dict[str, list[float]] = field(default_factory=dict)
    test: dict[str, dict[str, float]] = field(default_factory=dict)


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Each image (N, 1, H, W) turned about its centre by its angle (N,) in radians, bilinear, zeros outside."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def load(seed: int, limit: int | None = None) -> tuple[Split, Split, Split]:
    """Training, validation and test images: stratified 56 / 14 / 30 percent, drawn before anything else happens."""
    digits = load_digits()
    images, labels = digits.images[:limit].astype(np.float32) / 16, digits.target[:limit]
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=seed)
    all_images = torch.from_numpy(images).unsqueeze(1)
    all_labels = torch.from_numpy(labels).long()
    angles = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    turned = rotate(all_images, angles)

    def part(index: np.ndarray) -> Split:
        at = torch.from_numpy(index)
        return Split(all_images[at], turned[at], all_labels[at])

    return part(train), part(validation), part(test)


def make_model(name: str, width: int) -> nn.Sequential:
    """Three layers of `width` channels with ReLU, mean over the image, Linear. Only the kind of layer differs."""

    def layer(ins: int, outs: int) -> nn.Module:
        if name == "CNN 3x3":
            return nn.Conv2d(ins, outs, 3, padding=1)
        if name == "L-conv":
            return lc.LConv2d(ins, outs, "affine")
        # The paper starts from random L_i and learns them; entries of variance 1/d keep the variance of f.
        points = SIDE * SIDE
        matrix = torch.randn(6, points, points) / math.sqrt(points)
        return lc.LConv2d(ins, outs, lc.DenseGenerators(matrix, learnable=True))

    layers: list[nn.Module] = []
    for index in range(LAYERS):
        layers += [layer(1 if index == 0 else width, width), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class Trainer:
    """One model on one kind of training images: Adam with a one-cycle learning rate, the same for all models."""

    def __init__(self, name: str, width: int, train: Split, data: str, epochs: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = make_model(name, width)
        self.images, self.labels = train.images(data), train.labels
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        steps = epochs * math.ceil(len(self.labels) / BATCH)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-2, total_steps=steps)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.seconds: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        start = time.perf_counter()
        self.model.train()
        for batch in torch.randperm(len(self.labels), generator=self.shuffle).split(BATCH):
            self.step(self.images[batch], self.labels[batch])
            self.schedule.step()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def accuracy(self, split: Split, data: str) -> float:
        self.model.eval()
        return (self.model(split.images(data)).argmax(1) == split.labels).double().mean().item()


def step_peak_bytes(trainer: Trainer) -> int:
    """Peak of the bytes that torch's CPU allocator gave out during one training step, beyond what it held before."""
    batch = slice(0, BATCH)
    trainer.model.train()
    return peak_memory(lambda: trainer.step(trainer.images[batch], trainer.labels[batch]))


def run(seed: int, quick: bool, advance: Callable[[], None]) -> list[DigitsResult]:
    """Trains every model of MODELS on every kind of DATA; calls `advance` once for each of `steps(quick)`."""
    threads = torch.get_num_threads()
    # Images this small gain nothing from a second thread, and lose much where something else runs beside them.
    torch.set_num_threads(1)
    try:
        return _run(seed, quick, advance)
    finally:
        torch.set_num_threads(threads)


def _run(seed: int, quick: bool, advance: Callable[[], None]) -> list[DigitsResult]:
    epochs, width = steps(quick), 8 if quick else 24
    train, validation, test = load(seed, 600 if quick else None)
    trainers = {(m, d): Trainer(m, width, train, d, epochs, seed) for m in MODELS for d in DATA}
    curves: dict[tuple[str, str], list[float]] = {key: [] for key in trainers}
    # The models take turns epoch by epoch, so that a change of the machine's speed reaches all of them alike.
    for _ in range(epochs):
        for key, trainer in trainers.items():
            trainer.epoch()
            curves[key].append(trainer.accuracy(validation, key[1]))
        advance()

    results = []
    for model in MODELS:
        mine = {data: trainers[model, data] for data in DATA}
        results.append(
            DigitsResult(
                model,
                parameters=sum(p.numel() for p in mine["upright"].model.parameters()),
                seconds_per_epoch=statistics.median(mine["upright"].seconds + mine["rotated"].seconds),
                validation_curves={data: curves[model, data] for data in DATA},
                test={d: {on: mine[d].accuracy(test, on) for on in DATA} for d in DATA},
                step_peak_bytes=step_peak_bytes(mine["upright"]),
            )
        )
    cnn = next(r for r in results if r.model == "CNN 3x3").seconds_per_epoch
    for result in results:
        result.epoch_ratio_to_cnn = result.seconds_per_epoch / cnn
    return results


def steps(quick: bool) -> int:
    return 2 if quick else 20
