"""From pairs to a classifier: the symmetry of turned digits is found, and a network that respects it is built.

Nothing tells the network what a rotation is. Pairs (x, y) show it, `discover` finds the generator, `centralizer` the
fields that commute with it, and L-convs of these are equivariant under what was found: after a mean over the image, an
upright digit and a turned one give the same answer, without turned images in the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage import data
from skimage.transform import resize
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.discovery import Result, alignment, centralizer, discover, pictures
from lconv_fast.discovery.fields import fields_of
from lconv_fast.discovery.result import FILES as NUMBERS
from lconv_fast.outputs import filled

SIDE, CLASSES, LAYERS, WIDTH, BATCH = 16, 10, 3, 48, 64
PAIRS, LARGEST_ANGLE, NOISE = 24, 25.0, 0.05  # degrees; noise in units of the images' deviation
SOURCES = ("photographs", "digits")
FILES = ("accuracies.json", *(f"{source}/{name}" for source in SOURCES for name in (*NUMBERS, *pictures.FILES)))
MODELS = ("found symmetry", "true rotation", "translations", "CNN 3x3")


@dataclass
class Accuracy:
    model: str
    seed: int
    parameters: int
    upright: float
    rotated: float


@dataclass
class Done:
    """What was found in each source, the accuracies of each model and seed, and whether Ctrl-C came before the end."""

    found: list[Found]
    accuracies: list[Accuracy]
    interrupted: bool = False


@dataclass
class Found:
    source: str
    result: Result
    angle: float  # degrees, to the true rotation about the centre


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    return ndimage.rotate(image, degrees, reshape=False, order=3)


def _pairs(images: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    x = np.stack([images[k] for k in rng.integers(0, len(images), PAIRS)])
    y = np.stack([_turned(image, rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE)) for image in x])
    noisy = [v + NOISE * images.std() * rng.standard_normal(v.shape) for v in (x, y)]
    return torch.from_numpy(noisy[0][:, None]), torch.from_numpy(noisy[1][:, None])


def photographs(size: int = 64) -> np.ndarray:
    sources = (data.camera(), data.astronaut().mean(-1), data.coffee().mean(-1), data.chelsea().mean(-1))
    return np.stack([resize(s.astype(float) / 255, (size, size), anti_aliasing=True) for s in sources])


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(N, 16, 16) with a margin of zeros, and labels (N,)."""
    bundled = load_digits()
    padded = np.pad(bundled.images / 16, [(0, 0), (2, 2), (2, 2)])
    zoom = SIDE / padded.shape[1]
    images = [ndimage.zoom(image, zoom, order=3, mode="grid-constant", grid_mode=True) for image in padded]
    return np.stack(images), bundled.target


def find(source: str, images: np.ndarray, seed: int) -> Found:
    """The symmetry of unlabelled pairs of images, the second turned by an angle that nobody told."""
    result = discover(*_pairs(images, np.random.default_rng(seed)), progress=False)
    if result.generators is None or result.dimension != 1:
        return Found(source, result, math.nan)
    shape = images.shape[1:]
    return Found(source, result, float(alignment(result.generators, _rotation(), shape).angles[0]))


def _rotation() -> lc.AffineGenerators:
    return lc.AffineGenerators.named("rotation")


class Classifier(nn.Module):
    """Three layers, the mean over the image, Linear. L-convs see the image and the lengths |v_i(x)| of their fields,
    which tell apart places that the symmetry does not join: for a rotation and a scaling, the radius."""

    lengths: Tensor

    def __init__(self, generators: lc.AffineGenerators | None, width: int) -> None:
        super().__init__()
        count = 0
        if generators is not None:
            fields = fields_of(generators, (SIDE, SIDE)).reshape(generators.num_generators, 2, SIDE, SIDE)
            self.register_buffer("lengths", torch.from_numpy(np.linalg.norm(fields, axis=1)).float())
            count = generators.num_generators

        def layer(ins: int) -> nn.Module:
            if generators is None:
                return nn.Conv2d(ins, width, 3, padding=1)
            return lc.LConv2d(ins, width, generators)

        layers: list[nn.Module] = []
        for k in range(LAYERS):
            layers += [layer(width if k else 1 + count), nn.BatchNorm2d(width), nn.ReLU()]
        self.body, self.head, self.fields = nn.Sequential(*layers), nn.Linear(width, CLASSES), count

    def forward(self, x: Tensor) -> Tensor:
        if self.fields:
            x = torch.cat([x, self.lengths.expand(len(x), -1, -1, -1)], 1)
        return self.head(self.body(x).mean((2, 3)))


def _equivariant(generators: lc.Generators) -> lc.AffineGenerators:
    """The generators that commute with the given ones, each moving points by one pixel in the root mean square."""
    fields = centralizer(generators, (SIDE, SIDE))
    speed = torch.from_numpy(np.sqrt(2 * (fields_of(fields, (SIDE, SIDE)) ** 2).mean(1))).float()
    return lc.AffineGenerators(
        fields.matrix / speed[:, None, None], fields.shift / speed[:, None], coordinate_scale=1.0
    )


def _generators(model: str, found: Found) -> lc.AffineGenerators | None:
    if model == "CNN 3x3":
        return None
    if model == "found symmetry":
        if found.result.generators is None:
            raise ValueError("no symmetry was found in the digits' pairs")
        return _equivariant(found.result.generators)
    return _equivariant(_rotation() if model == "true rotation" else lc.AffineGenerators.named("translation"))


def _train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def run(seeds: int = 3, epochs: int = 30, report: Callable[[str, float], None] = lambda what, done: None) -> Done:
    """Finds the symmetry in photographs and in digits, and trains each model for each seed on upright digits;
    accuracies are on upright and on turned test digits. Ctrl-C ends it with what is done, if that is anything."""
    images, labels = digits()
    done = Done([find("photographs 64 x 64", photographs(), 0)], [])
    done.interrupted = done.found[0].result.interrupted
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images this small gain nothing from a second thread
    try:
        for seed in range(seeds):
            if not done.interrupted:
                _one_seed(seed, seeds, epochs, images, labels, done, report)
    except KeyboardInterrupt:
        done.interrupted = True
    finally:
        torch.set_num_threads(threads)
    return done


def _one_seed(
    seed: int,
    seeds: int,
    epochs: int,
    images: np.ndarray,
    labels: np.ndarray,
    done: Done,
    report: Callable[[str, float], None],
) -> None:
    rng = np.random.default_rng(seed)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=seed)
    done.found.append(find(f"digits 16 x 16, seed {seed}", images[train], seed))
    if done.found[-1].result.interrupted:
        done.interrupted = True
        return
    turned = np.stack([_turned(images[k], rng.uniform(0, 360)) for k in test])
    tensors = [torch.from_numpy(v).float()[:, None] for v in (images[train], images[test], turned)]
    targets, expected = torch.from_numpy(labels[train]).long(), torch.from_numpy(labels[test]).long()
    for k, name in enumerate(MODELS):
        report(f"seed {seed}: {name}", (seed * len(MODELS) + k) / (seeds * len(MODELS)))
        torch.manual_seed(seed)
        model = Classifier(_generators(name, done.found[-1]), WIDTH)
        _train(model, tensors[0], targets, epochs, seed)
        with torch.no_grad():
            right = [(model(v).argmax(1) == expected).double().mean().item() for v in tensors[1:]]
        done.accuracies.append(Accuracy(name, seed, sum(p.numel() for p in model.parameters()), *right))


def draw(done: Done, folder: Path) -> None:
    """Writes accuracies.json, with a last row that says so where it was interrupted, and for the first two sources the
    numbers and, if it came to its end, pictures of what was found."""
    with filled(folder, FILES) as place:
        for one, image in zip(done.found[:2], (photographs()[0], digits()[0][0]), strict=False):
            own = place / one.source.split()[0]
            own.mkdir()
            one.result.write(own)
            if not done.interrupted:
                pictures.write(one.result, torch.from_numpy(image), own, _rotation())
        numbers = [asdict(a) for a in done.accuracies] + ([{"interrupted": True}] if done.interrupted else [])
        (place / "accuracies.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
