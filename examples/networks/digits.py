"""Digits of scikit-learn, upright in training, upright and turned by any angle in the test, without augmentation.

Three layers of 48 channels, the mean over the image and a linear map, 16 x 16 points. Equivariant L-convs beside
ordinary ones and convolutions; docs/networks.md has the proofs.
"""

from __future__ import annotations

from typing import Any

import torch
from common import CONTENDERS, accuracy, cross_entropy, experiment, is_quick, kept_bytes, predict, train
from scipy import ndimage
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.demo.symmetry import digits

SIDE, WIDTH, LAYERS, BATCH, CLASSES = 16, 48, 3, 64, 10
STEPS = 6 if is_quick() else 480


def turned(images: Tensor, seed: int) -> Tensor:
    """Each image (N, 1, 16, 16) turned by an angle of its own, cubic splines."""
    angles = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) * 360
    pairs = zip(images[:, 0].numpy(), angles.tolist(), strict=True)
    return torch.stack([torch.from_numpy(ndimage.rotate(i, a, reshape=False, order=3)) for i, a in pairs])[:, None]


class Radius(nn.Module):
    """Appends the distance from the centre, in half widths, as a channel: a function that rotations leave alone."""

    radius: Tensor

    def __init__(self) -> None:
        super().__init__()
        x = torch.linspace(-1, 1, SIDE)
        self.register_buffer("radius", (x[:, None].square() + x.square()).sqrt()[None, None])

    def forward(self, f: Tensor) -> Tensor:
        return torch.cat([f, self.radius.expand(len(f), -1, -1, -1)], 1)


class Mean(nn.Module):
    def forward(self, f: Tensor) -> Tensor:
        return f.mean((2, 3))


def about_centre() -> lc.Generators:
    return nets.equivariant("rotation")


def about_centre_and_laplacian() -> lc.Generators:
    return nets.with_laplacian(nets.equivariant("rotation"), (SIDE, SIDE))  # type: ignore[arg-type]


# Of SO(2) about the centre, of SE(2); with and without differential invariants as nonlinearity.
EQUIVARIANT = {
    "rotation": (about_centre, False),
    "rotation + laplacian": (about_centre_and_laplacian, False),
    "rotation + laplacian, invariants": (about_centre_and_laplacian, True),
    "isotropic": (lambda: nets.isotropic(2), False),
    "isotropic, invariants": (lambda: nets.isotropic(2), True),
}


def make_model(contender: str) -> nn.Module:
    layers: list[nn.Module] = []
    ins = 1
    if contender.startswith("rotation"):
        layers.append(Radius())
        ins = 2
    for _ in range(LAYERS):
        if contender in EQUIVARIANT:
            generators, with_invariants = EQUIVARIANT[contender]
            layers.append(lc.LConv2d(ins, WIDTH, generators(), bias=False))
        else:
            with_invariants = False
            layers.append(CONTENDERS[contender](2, ins, WIDTH, "zeros"))
        layers += [nn.BatchNorm2d(WIDTH), nn.ReLU()]
        if with_invariants:
            layers += [lc.DifferentialInvariants(WIDTH)]
        ins = WIDTH
    return nn.Sequential(*layers, Mean(), nn.Linear(WIDTH, CLASSES))


def trial(contender: str, rate: float, seed: int, tuning: bool) -> dict[str, Any]:
    images, labels = digits()
    f, classes = torch.from_numpy(images).float()[:, None], torch.from_numpy(labels).long()
    rest, test = train_test_split(range(len(f)), test_size=0.3, stratify=classes, random_state=seed)
    training, validation = train_test_split(rest, test_size=0.2, stratify=classes[rest], random_state=seed)
    torch.manual_seed(seed)
    model = make_model(contender)
    seconds = train(
        model, f[training], classes[training], cross_entropy, rate=rate, steps=STEPS, batch=BATCH, seed=seed
    )
    result = {"validation": accuracy(predict(model, f[validation], 128), classes[validation])}
    if not tuning:
        result["upright"] = accuracy(predict(model, f[test], 128), classes[test])
        result["turned"] = accuracy(predict(model, turned(f[test], seed), 128), classes[test])
    parameters = sum(p.numel() for p in model.parameters())
    return result | {
        "parameters": parameters,
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, f[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    experiment("digits", __doc__ or "", [*CONTENDERS, *EQUIVARIANT], trial)
