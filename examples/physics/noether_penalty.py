"""Training with a small penalty from field theory beside plain training: accuracy against noise, 5 seeds.

The first layer's loss |Q[f]|^2 is a Lagrangian (eq. 19). Penalties, at the training pictures:
    noether: |div J|^2 of the currents of translations and rotation (eq. 22), relative to the currents' own terms,
    robust:  |E|^2, the Euler-Lagrange residual (eq. 21), relative to the loss.
Handwritten digits of 8 x 8 pixels (scikit-learn); noise is added to the test pictures alone.

Run: python examples/physics/noether_penalty.py [folder]. Needs scikit-learn and matplotlib. Writes noether_penalty.png.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import lconv_fast as lc

matplotlib.use("Agg")
from matplotlib import pyplot

P = lc.physics
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
WEIGHT = 0.03


def network():
    return nn.Sequential(
        lc.LConv2d(1, 16, "se", bias=False), nn.ReLU(), lc.LConv2d(16, 16, "se", stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip


def noether(layer, f):
    lagrangian = P.QuadraticLagrangian.from_layer(layer)
    current = P.noether_current(lagrangian, f, layer.generators)
    return P.divergence(current).square().mean() / (current.square().mean() + 1e-12)


def robust(layer, f):
    lagrangian = P.QuadraticLagrangian.from_layer(layer)
    return P.euler_lagrange(lagrangian, f).square().mean() / (lagrangian.density(f).mean() + 1e-12)


PENALTIES = {"plain": None, "noether": noether, "robust": robust}


def train(images, labels, penalty, seed, epochs=12):
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if penalty is not None:
                loss = loss + WEIGHT * penalty(model[0], images[batch[:16]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model, images, labels, noise):
    random = torch.Generator().manual_seed(1)
    noisy = images + noise * torch.randn(images.shape, generator=random)
    return (model(noisy).argmax(1) == labels).double().mean().item()


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "physics_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    found = {}
    for name, penalty in PENALTIES.items():
        models = [train(images[:600], labels[:600], penalty, seed) for seed in range(5)]
        found[name] = np.array([[accuracy(m, images[600:], labels[600:], n) for n in NOISES] for m in models])
        mean, spread = found[name].mean(0), found[name].std(0, ddof=1)
        print(f"{name:8}", "  ".join(f"{n}: {m:.3f} ± {s:.3f}" for n, m, s in zip(NOISES, mean, spread, strict=True)))
    pyplot.figure(figsize=(5.5, 3.8), layout="constrained")
    for name, values in found.items():
        pyplot.errorbar(NOISES, values.mean(0), values.std(0, ddof=1), label=name, capsize=3)
    pyplot.xlabel("standard deviation of the noise")
    pyplot.ylabel("test accuracy, 5 seeds")
    pyplot.legend()
    pyplot.savefig(folder / "noether_penalty.png", dpi=100)
    print("wrote", folder / "noether_penalty.png")


if __name__ == "__main__":
    main()
