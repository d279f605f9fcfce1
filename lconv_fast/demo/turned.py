"""Digits turned by any angle, after training on upright ones: a network of the found symmetry beside a CNN.

Pairs of digits show the symmetry, `discover` finds its generator, `centralizer` the fields that commute with it. With
the Laplacian, which commutes with every rotation, they make layers that are equivariant under what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import ndimage
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.demo.symmetry import SIDE, digits, find
from lconv_fast.discovery import centralizer

WIDTH, LAYERS, CLASSES, BATCH = 32, 3, 10, 64
RATE = 3e-2  # the best on validation data, for both (examples/networks/digits.py)
CNN, FOUND = "CNN 3x3", "L-conv of the found symmetry"


@dataclass
class TurnedResult:
    """Fractions of test digits that are told right; the training digits stood upright."""

    model: str
    parameters: int
    upright: float
    turned: float


def turn(images: Tensor, seed: int) -> Tensor:
    """Each image (N, 1, H, W) turned by an angle of its own, cubic splines."""
    angles = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) * 360
    pairs = zip(images[:, 0].numpy(), angles.tolist(), strict=True)
    return torch.stack([torch.from_numpy(ndimage.rotate(i, a, reshape=False, order=3)) for i, a in pairs])[:, None]


class WithLengths(nn.Module):
    """Appends the lengths |v_i(x)| of fields as channels: functions of x that the symmetry leaves alone."""

    lengths: Tensor

    def __init__(self, fields: lc.AffineGenerators) -> None:
        super().__init__()
        lengths = fields.sample((SIDE, SIDE)).norm(dim=1)
        self.register_buffer("lengths", (lengths / lengths.amax((1, 2), keepdim=True))[None])

    def forward(self, f: Tensor) -> Tensor:
        return torch.cat([f, self.lengths.expand(len(f), -1, -1, -1)], 1)


class Mean(nn.Module):
    """The mean over the image."""

    def forward(self, f: Tensor) -> Tensor:
        return f.mean((2, 3))


def equivariant_network(fields: lc.AffineGenerators) -> nn.Sequential:
    """Invariant under what commutes with `fields` and with the Laplacian: rotations about a centre."""
    start = WithLengths(fields)
    generators = nets.with_laplacian(fields, (SIDE, SIDE))
    return network(lambda ins: lc.LConv2d(ins, WIDTH, generators, bias=False), 1 + len(fields.matrix), start)


def network(layer: Callable[[int], nn.Module], ins: int = 1, *start: nn.Module) -> nn.Sequential:
    """Three layers with BatchNorm and ReLU, the mean over the image, a linear map."""
    layers = list(start)
    for _ in range(LAYERS):
        layers += [layer(ins), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        ins = WIDTH
    return nn.Sequential(*layers, Mean(), nn.Linear(WIDTH, CLASSES))


def commuting(generators: lc.Generators) -> lc.AffineGenerators:
    """The affine fields that commute with the given ones."""
    found = centralizer(generators, (SIDE, SIDE))
    return lc.AffineGenerators(found.matrix.float(), found.shift.float(), coordinate_scale=found.coordinate_scale)


def steps(quick: bool) -> int:
    return 2 if quick else 12


def run(seed: int, quick: bool, advance: Callable[[], None]) -> list[TurnedResult]:
    """Both networks, the same training for both; calls `advance` after each of `steps(quick)` epochs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images this small gain nothing from a second thread
    try:
        return _run(seed, quick, advance)
    finally:
        torch.set_num_threads(threads)


def _run(seed: int, quick: bool, advance: Callable[[], None]) -> list[TurnedResult]:
    images, labels = digits()
    train, test = train_test_split(range(len(labels)), test_size=0.3, stratify=labels, random_state=seed)
    found = find("digits", images[train], seed).result.generators
    if found is None:
        raise ValueError("no symmetry was found in the digits' pairs")
    f, classes = torch.from_numpy(images).float()[:, None], torch.from_numpy(labels).long()
    torch.manual_seed(seed)
    models = {
        CNN: network(lambda ins: nn.Conv2d(ins, WIDTH, 3, padding=1, bias=False)),
        FOUND: equivariant_network(commuting(found)),
    }
    batches = math.ceil(len(train) / BATCH)
    training = {name: _training(model, steps(quick) * batches) for name, model in models.items()}
    shuffle = torch.Generator().manual_seed(seed)
    index = torch.tensor(train)
    for _ in range(steps(quick)):
        for batch in index[torch.randperm(len(index), generator=shuffle)].split(BATCH):
            for step in training.values():
                step(f[batch], classes[batch])
        advance()
    results = []
    for name, model in models.items():
        model.eval()
        with torch.no_grad():
            right = [
                (model(part).argmax(1) == classes[test]).double().mean().item()
                for part in (f[test], turn(f[test], seed))
            ]
        results.append(TurnedResult(name, sum(p.numel() for p in model.parameters()), *right))
    return results


def _training(model: nn.Module, total: int) -> Callable[[Tensor, Tensor], None]:
    """A step of AdamW with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total)

    def step(images: Tensor, classes: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()
        schedule.step()

    return step
