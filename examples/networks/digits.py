"""Digits of scikit-learn, upright in training, upright and turned by any angle in the test, without augmentation.

Three layers of 32 channels, the mean over the image and a linear map, 16 x 16 points. Equivariant L-convs beside
ordinary ones and convolutions; docs/networks.md has the proofs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from common import CONTENDERS, accuracy, cross_entropy, experiment, is_long, is_quick, predict, train
from sklearn.model_selection import train_test_split
from torch import nn

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.demo.symmetry import digits
from lconv_fast.demo.turned import BATCH, WIDTH, WithLengths, network, turn
from lconv_fast.demo.volume import kept_bytes

STEPS = 4 if is_quick() else 800 if is_long() else 400


def about_centre() -> lc.AffineGenerators:
    generators = nets.equivariant("rotation")
    assert isinstance(generators, lc.AffineGenerators)
    return generators


# name: (generators, whether differential invariants follow the first layer).
EQUIVARIANT = {
    "rotation": (about_centre, False),
    "rotation + laplacian": (lambda: nets.with_laplacian(about_centre()), False),
    "rotation + laplacian, invariants": (lambda: nets.with_laplacian(about_centre()), True),
    "isotropic": (lambda: nets.isotropic(2), False),
    "isotropic, invariants": (lambda: nets.isotropic(2), True),
}

ESCNN = "escnn, C_8"  # steerable.py says how to install it


def make_model(contender: str) -> nn.Module:
    if contender == ESCNN:
        from steerable import Steerable

        return Steerable(fields=7)  # 8,823 parameters, the nearest to those of "rotation + laplacian"
    generators, with_invariants = EQUIVARIANT.get(contender, (None, False))

    def layer(ins: int) -> nn.Module:
        if generators is None:
            return CONTENDERS[contender](2, ins, WIDTH, "zeros")
        return lc.LConv2d(ins, WIDTH, generators(), bias=False)

    start = [WithLengths(about_centre())] if contender.startswith("rotation") else []
    model = network(layer, 1 + 2 * len(start), *start)
    if with_invariants:
        # After the first layer: 8 channels and their invariants.
        model[len(start) + 2] = nn.Sequential(
            nn.ReLU(), nn.Conv2d(WIDTH, 8, 1), lc.DifferentialInvariants(8, WIDTH), nn.ReLU()
        )
    return model


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
        result["turned"] = accuracy(predict(model, turn(f[test], seed), 128), classes[test])
    parameters = sum(p.numel() for p in model.parameters())
    return result | {
        "parameters": parameters,
        "step_ms": 1e3 * seconds,
        "kept_mib": kept_bytes(model, f[:BATCH]) / 2**20,
    }


if __name__ == "__main__":
    others = [ESCNN] if find_spec("lie_learn") else []
    contenders = [*CONTENDERS, *EQUIVARIANT, *others]
    name = "digits_long" if is_long() else "digits"
    experiment(name, __doc__ or "", contenders, trial, rates=(1e-2, 3e-2), tuning_seeds=(100,))
