"""A CNN trained on upright digits, moved towards rotation symmetry: accuracy against equivariance error.

python examples/projection.py [--seeds 3] [--picture projection.png]

The CNN's kernels become L-convs with shift generators (exactly). After each epoch of fine-tuning on upright digits,
`lc.convert.project` moves them by `strength` towards L-convs whose generators commute with rotations about the centre:
the means over the two rings of a 3 x 3 neighbourhood, d / d theta and r d / dr. Training moves them back where it can,
so each strength settles at a balance; with 1, the rotational generators alone are left from the start.
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
STRENGTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


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


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float, strength: float = 0.0) -> None:
    """Adam; `strength` is moved after each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        if strength:
            lc.convert.project(model, GENERATORS, strength)
    with torch.no_grad():  # batch statistics of the last step
        model.train()
        for _ in range(3):
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


def run(seed: int, epochs: int) -> dict[float, tuple[float, float, float]]:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    fit, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.3, stratify=labels, random_state=seed)
    fit, test = torch.from_numpy(fit), torch.from_numpy(test)
    torch.manual_seed(seed)
    angles = torch.rand(len(test)) * 2 * math.pi
    model = network()
    train(model, images[fit], labels[fit], epochs, 3e-3)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    results = {}
    for strength in STRENGTHS:
        model = network()
        model.load_state_dict(trained)
        lc.convert.swap(model, "shifts")
        lc.convert.project(model, GENERATORS, 0.0 if strength < 1 else 1.0)
        train(model, images[fit], labels[fit], epochs, 1e-3, strength if strength < 1 else 0.0)
        results[strength] = measured(model, images[test], labels[test], angles)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--picture", default=None, help="writes accuracy against equivariance error")
    arguments = parser.parse_args()
    runs = [run(seed, arguments.epochs) for seed in range(arguments.seeds)]
    print(f"{'strength':>10}{'upright':>16}{'rotated':>16}{'equivariance error':>22}")
    for strength in STRENGTHS:
        cells = []
        for column in zip(*(r[strength] for r in runs), strict=True):
            spread = statistics.stdev(column) if len(column) > 1 else 0.0
            cells.append((statistics.mean(column), spread))
        (a, da), (b, db), (e, de) = cells
        print(
            f"{strength:10.2f}{100 * a:9.1f} +- {100 * da:3.1f}{100 * b:9.1f} +- {100 * db:3.1f}{e:13.3f} +- {de:5.3f}"
        )
    if arguments.picture:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 4))
        for column, name in ((0, "upright"), (1, "rotated")):
            x = [statistics.mean(r[s][2] for r in runs) for s in STRENGTHS]
            axes.plot(x, [100 * statistics.mean(r[s][column] for r in runs) for s in STRENGTHS], "o-", label=name)
        axes.set(xlabel="equivariance error under quarter turns", ylabel="test accuracy (%)")
        axes.legend()
        figure.tight_layout()
        figure.savefig(arguments.picture, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
