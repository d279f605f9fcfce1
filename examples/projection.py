"""A CNN trained on upright digits, moved towards rotation symmetry: accuracy against equivariance error.

python examples/projection.py [--seeds 3] [--picture projection.png]

The CNN's kernels become L-convs with shift generators (exactly). While they are fine-tuned, on upright digits alone,
`lc.convert.project` moves them step by step towards L-convs whose generators commute with rotations about the
centre: the means over the two rings of a 3 x 3 neighbourhood, d / d theta and r d / dr. What is left of the CNN's own
kernels falls linearly to 0 over the first part of the epochs; after that, the rotational generators alone are trained.
The loss is the cross-entropy with the labels and with what the CNN said (distillation), and the rate falls to 0. Beside
it: the same layers trained from the start, with the same loss, rate and number of epochs.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc

SIDE, WIDTH, BATCH = 8, 16, 64
RATE, DISTILL, TEMPERATURE = 3e-3, 1.0, 2.0
EVERY = 5  # steps of training between two of `project`


def turned(images: Tensor, angle: Tensor) -> Tensor:
    """Each image about its centre by its angle, bilinear, zeros outside."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def rotational() -> lc.StencilGenerators:
    """Rings at distance 1 and sqrt 2, d / d theta and r d / dr, as stencils on the digits' grid."""
    taps = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    axis = (torch.arange(SIDE) - (SIDE - 1) / 2) / ((SIDE - 1) / 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    s = torch.zeros(4, 8, SIDE, SIDE)
    s[0, :4], s[1, 4:] = 1 / 4, 1 / 4
    for k, (across, along) in ((2, (y, -x)), (3, (x, y))):  # components along x and y
        s[k, 0], s[k, 1], s[k, 2], s[k, 3] = across / 2, -across / 2, along / 2, -along / 2
    return lc.StencilGenerators(s, taps)


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(3):
        layers += [nn.Conv2d(WIDTH if index else 1, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


class Tuning:
    """Training on the labels and on a teacher's answers, at a rate that falls to 0 like a cosine over the epochs."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, epochs: int, teacher: nn.Module | None
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.steps, self.step = epochs * math.ceil(len(labels) / BATCH), 0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        with torch.no_grad():
            self.answers = None if teacher is None else (teacher.eval()(images) / TEMPERATURE).softmax(1)

    def epoch(self, after_step: Callable[[], None] = lambda: None) -> None:
        for batch in torch.randperm(len(self.labels)).split(BATCH):
            self.model.train()
            self.optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * self.step / self.steps)) / 2
            found = self.model(self.images[batch])
            loss = F.cross_entropy(found, self.labels[batch])
            if self.answers is not None:
                soft = (found / TEMPERATURE).log_softmax(1)
                loss = loss + DISTILL * TEMPERATURE**2 * F.kl_div(soft, self.answers[batch], reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            after_step()


@torch.no_grad()
def renewed(model: nn.Module, images: Tensor) -> None:
    """Batch statistics after a step of `project`."""
    model.train()
    for _ in range(5):
        model(images)


GENERATORS = rotational()


@torch.no_grad()
def measured(model: nn.Module, images: Tensor, labels: Tensor, angles: Tensor) -> tuple[float, float, float]:
    """Accuracy upright and turned, and the equivariance error |Q[R f] - R Q[f]| / |Q[f]| of the features before pooling
    under quarter turns R, which the grid allows exactly."""
    model.eval()
    upright = (model(images).argmax(1) == labels).double().mean().item()
    rotated = (model(turned(images, angles)).argmax(1) == labels).double().mean().item()
    features = model[:9]
    f = features(images)
    error = (features(images.rot90(1, (2, 3))) - f.rot90(1, (2, 3))).norm() / f.norm()
    return upright, rotated, error.item()


Point = tuple[float, float, float]


def run(seed: int, epochs: int, fade: float) -> tuple[list[Point], Point]:
    """What was measured at the start, after each epoch, and of the layers that were trained from the start."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    fit, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.3, stratify=labels, random_state=seed)
    train_images, train_labels, test_images, test_labels = images[fit], labels[fit], images[test], labels[test]
    torch.manual_seed(seed)
    angles = torch.rand(len(test)) * 2 * math.pi

    teacher = network()
    tuning = Tuning(teacher, train_images, train_labels, epochs // 2, None)
    for _ in range(epochs // 2):
        tuning.epoch()
    points = [measured(teacher, test_images, test_labels, angles)]

    model = copy.deepcopy(teacher)
    lc.convert.swap(model, "shifts")
    lc.convert.project(model, GENERATORS, 0.0)
    tuning = Tuning(model, train_images, train_labels, epochs, teacher)
    parts = int(fade * tuning.steps) // EVERY  # so many parts of the kernels go, one after the other

    def move() -> None:
        part = tuning.step // EVERY
        if tuning.step % EVERY == 0 and part <= parts:
            lc.convert.project(model, GENERATORS, 1 / (parts - part + 1))

    for _ in range(epochs):
        tuning.epoch(move)
        renewed(model, train_images)
        points.append(measured(model, test_images, test_labels, angles))

    model = network()
    lc.convert.swap(model, GENERATORS, init="fresh")
    tuning = Tuning(model, train_images, train_labels, epochs, teacher)
    for _ in range(epochs):
        tuning.epoch()
    return points, measured(model, test_images, test_labels, angles)


def shown(values: list[Point]) -> str:
    cells = []
    for column, factor, places in zip(zip(*values, strict=True), (100, 100, 1), (1, 1, 2), strict=True):
        spread = statistics.stdev(column) if len(column) > 1 else 0.0
        cells.append(f"{factor * statistics.mean(column):.{places}f} +- {factor * spread:.{places}f}")
    return "".join(f"{cell:>20}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--fade", type=float, default=0.5, help="the part of the epochs in which the kernels fade")
    parser.add_argument("--picture", default=None, help="writes accuracy against equivariance error")
    arguments = parser.parse_args()
    runs = [run(seed, arguments.epochs, arguments.fade) for seed in range(arguments.seeds)]
    print(f"{'epoch':>24}{'upright':>20}{'rotated':>20}{'equivariance error':>20}")
    paths = list(zip(*(points for points, _ in runs), strict=True))
    for k, values in enumerate(paths):
        name = "CNN" if k == 0 else f"{k}, {max(0.0, 1 - k / arguments.epochs / arguments.fade):.2f} of the kernels"
        print(f"{name:>24}{shown(list(values))}")
    print(f"{'from the start':>24}{shown([last for _, last in runs])}")
    if arguments.picture:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 4))
        for column, name in ((0, "upright"), (1, "rotated")):
            x, y = ([statistics.mean(p[c] for p in values) for values in paths] for c in (2, column))
            axes.plot(x, [100 * value for value in y], "o-", label=name)
        axes.set(xlabel="equivariance error under quarter turns", ylabel="test accuracy (%)")
        axes.legend()
        figure.tight_layout()
        figure.savefig(arguments.picture, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
