"""A CNN trained on upright digits, moved towards rotation symmetry: accuracy against equivariance error.

python examples/projection.py [--seeds 3] [--picture projection.png]

The CNN's kernels become L-convs with shift generators (exactly). While they are fine-tuned, on upright digits alone,
`lc.convert.project` moves them after each epoch towards L-convs whose generators commute with rotations about the
centre: the means over the two rings of a 3 x 3 neighbourhood, d / d theta and r d / dr. Its strength rises from 0 to 1
over the first half of the epochs; after that, the rotational generators alone are trained. Beside it: the same layers
trained from the start.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc

SIDE, WIDTH, BATCH = 8, 16, 64


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


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    for batch in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


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


def run(seed: int, epochs: int) -> tuple[list[Point], Point]:
    """What was measured at the start, after each epoch, and of the layers that were trained from the start."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    fit, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.3, stratify=labels, random_state=seed)
    train_images, train_labels, test_images, test_labels = images[fit], labels[fit], images[test], labels[test]
    torch.manual_seed(seed)
    angles = torch.rand(len(test)) * 2 * math.pi

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs // 2):
        epoch(model, optimizer, train_images, train_labels)
    points = [measured(model, test_images, test_labels, angles)]
    lc.convert.swap(model, "shifts")
    lc.convert.project(model, GENERATORS, 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for k in range(1, epochs + 1):
        epoch(model, optimizer, train_images, train_labels)
        if 2 * k <= epochs:
            lc.convert.project(model, GENERATORS, 2 * k / epochs)
            renewed(model, train_images)
        points.append(measured(model, test_images, test_labels, angles))

    model = network()
    lc.convert.swap(model, GENERATORS, init="fresh")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs + epochs // 2):
        epoch(model, optimizer, train_images, train_labels)
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
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--picture", default=None, help="writes accuracy against equivariance error")
    arguments = parser.parse_args()
    runs = [run(seed, arguments.epochs) for seed in range(arguments.seeds)]
    print(f"{'epoch':>24}{'upright':>20}{'rotated':>20}{'equivariance error':>20}")
    paths = list(zip(*(points for points, _ in runs), strict=True))
    for k, values in enumerate(paths):
        name = "CNN" if k == 0 else f"{k}, strength {min(1.0, 2 * k / arguments.epochs):.1f}"
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
