"""The image experiments of Dehmamy et al. 2021 (its supplement D): default, rotated, scrambled, rotated and scrambled.

python examples/image_experiments.py                      scikit-learn's digits, no download
python examples/image_experiments.py --data MNIST --root ~/data      torchvision's folder layout
python examples/image_experiments.py --parameters         parameter counts of the paper's configurations

Rotated: validation and test images by one random angle of the circle each, training images by new angles in each
epoch (--rotations once: by one angle each). Scrambled: all images by one random permutation of pixels, after the
rotation. All models have one body of two layers with a flattened linear head, about equal numbers of parameters, the
same optimizer and schedule; 20 percent of the training images choose the epoch, and the test split is used once.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import math
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.discovery import scrambled as neighbours

DATA = ("digits", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "MNIST-rot-12k")
COLUMNS = ("default", "rotated", "scrambled", "rotated + scrambled")
Split = tuple[Tensor, Tensor]  # images (N, C, side, side) and labels (N,)


# ---- data ------------------------------------------------------------------------------------------------------------


def digits(root: Path, seed: int) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images, labels = torch.from_numpy(found.images).float().unsqueeze(1) / 16, torch.from_numpy(found.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=found.target, random_state=seed)
    return (images[train], labels[train]), (images[test], labels[test])


def idx(path: Path) -> Tensor:
    """MNIST's format: two zeros, the type, the number of axes, the extents, the bytes; gzipped or not."""
    packed = path.with_name(path.name + ".gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, 4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, -1, 4 + 4 * ndim).reshape(shape).copy())


def mnist(name: str) -> Callable[[Path, int], tuple[Split, Split]]:
    def load(root: Path, seed: int) -> tuple[Split, Split]:
        folder = root / name / "raw"
        parts = []
        for part in ("train", "t10k"):
            images = idx(folder / f"{part}-images-idx3-ubyte").float().unsqueeze(1) / 255
            parts.append((images, idx(folder / f"{part}-labels-idx1-ubyte").long()))
        return parts[0], parts[1]

    return load


def cifar(folder: str, train: list[str], test: str, key: bytes) -> Callable[[Path, int], tuple[Split, Split]]:
    def load(root: Path, seed: int) -> tuple[Split, Split]:
        def read(names: list[str]) -> Split:
            # These files are pickles by their format: read those of a source you trust.
            found = [pickle.loads((root / folder / name).read_bytes(), encoding="bytes") for name in names]
            images = np.concatenate([part[b"data"] for part in found]).reshape(-1, 3, 32, 32)
            return torch.from_numpy(images).float() / 255, torch.tensor([n for part in found for n in part[key]])

        return read(train), read([test])

    return load


def mnist_rot(root: Path, seed: int) -> tuple[Split, Split]:
    def read(name: str) -> Split:
        table = torch.from_numpy(np.loadtxt(root / name, dtype=np.float32))
        return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()

    stem = "mnist_all_rotation_normalized_float"
    return read(f"{stem}_train_valid.amat"), read(f"{stem}_test.amat")


LOADERS: dict[str, Callable[[Path, int], tuple[Split, Split]]] = {
    "digits": digits,
    "MNIST": mnist("MNIST"),
    "FashionMNIST": mnist("FashionMNIST"),
    "CIFAR10": cifar("cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", b"labels"),
    "CIFAR100": cifar("cifar-100-python", ["train"], "test", b"fine_labels"),
    "MNIST-rot-12k": mnist_rot,
}


def changed(images: Tensor, column: str, seed: int, draws: torch.Generator) -> Tensor:
    """Rotations differ between images; the permutation is one for all."""
    if "rotated" in column:
        angles = torch.rand(len(images), generator=draws) * 2 * math.pi
        cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
        theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False)
    if "scrambled" in column:
        order = torch.randperm(images[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
        images = images.flatten(2)[..., order].reshape(images.shape)
    return images


# ---- models ----------------------------------------------------------------------------------------------------------


class Nodes(nn.Module):
    """An L-conv on a graph, for images as they come: (N, C, side, side)."""

    def __init__(self, ins: int, outs: int, generators: lc.GraphGenerators) -> None:
        super().__init__()
        self.layer = lc.LConvGraph(ins, outs, generators)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def low_rank(points: int, count: int, rank: int, learnable: bool) -> lc.Generators:
    """Random L_i = U_i V_i with entries of variance 1 / d."""
    left = torch.randn(count, points, rank) / rank**0.5
    right = torch.randn(count, rank, points) / points**0.5
    return lc.LowRankGenerators(left, right, learnable=learnable)


def body(layers: list[nn.Module], width: int, points: int, classes: int, dropout: float) -> nn.Sequential:
    inner: list[nn.Module] = []
    for layer in layers:
        inner += [layer, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*inner, nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * points, classes))


def models(images: Tensor, classes: int, width: int, count: int, rank: int) -> dict[str, Callable[[], nn.Module]]:
    """The training images give the sparse L-conv its graph: each pixel's nearest by their statistics."""
    channels, points = images.shape[1], images[0, 0].numel()

    def l_conv(learnable: bool) -> nn.Module:
        first = lc.LConv2d(channels, width, low_rank(points, count, rank, learnable))
        second = lc.LConv2d(width, width, low_rank(points, count, rank, learnable))
        return body([first, second], width, points, classes, 0.3)

    def sparse() -> nn.Module:
        edges = neighbours.likest(images.flatten(2) + 1e-3 * torch.randn(images.flatten(2).shape), 8)
        layers: list[nn.Module] = []
        for ins in (channels, width):
            weights = torch.randn(count, edges.shape[1]) / 8**0.5
            layers.append(Nodes(ins, width, lc.GraphGenerators(edges, weights, points, learnable=True)))
        return body(layers, width, points, classes, 0.3)

    def cnn() -> nn.Module:
        wide = 3 * width
        convs = [
            nn.Conv2d(channels, wide, 3, padding=1),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.Conv2d(wide, wide, 3, padding=1),
        ]
        inner: list[nn.Module] = []
        for conv in convs:
            inner += [conv, nn.BatchNorm2d(wide), nn.ReLU()]
        return nn.Sequential(
            *inner, nn.Conv2d(wide, width, 1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * points, classes)
        )

    budget = sum(p.numel() for p in l_conv(True).parameters())

    def connected() -> nn.Module:
        hidden = max(8, (budget - classes) // (channels * points + 1 + classes))
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(channels * points, hidden), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(hidden, classes),
        )

    return {
        "L-conv": lambda: l_conv(True),
        "L-conv, random L": lambda: l_conv(False),
        "L-conv, sparse": sparse,
        "CNN": cnn,
        "fully connected": connected,
    }


def accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in split[0].split(1000)])
    return (found == split[1]).double().mean().item()


def train(model: nn.Module, images: Callable[[], Tensor], labels: Tensor, validation: Split, epochs: int) -> nn.Module:
    """Adam with decay and a one-cycle rate; the epoch that is best on the validation images. `images` gives the
    training images of an epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * math.ceil(len(labels) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    best, kept = -1.0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        x = images()
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
        found = accuracy(model, validation)
        if found >= best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


# ---- the paper's parameter counts ------------------------------------------------------------------------------------


def paper_count(points: int, channels: int, filters: int, generators: int, hidden: int) -> int:
    """Parameters of the paper's L-conv layer: `generators` counts the identity; each other L_i = U_i V_i has
    2 d hidden numbers, and each W^i, the identity's too, is a linear layer with a bias of its own."""
    return (generators - 1) * 2 * points * hidden + generators * (channels + 1) * filters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rotations", choices=("each epoch", "once"), default="each epoch")
    parser.add_argument("--columns", nargs="*", default=COLUMNS)
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--parameters", action="store_true", help="print the paper's parameter counts and stop")
    arguments = parser.parse_args()
    if arguments.parameters:
        for name, points, channels in (("MNIST", 784, 1), ("CIFAR-10 and CIFAR-100", 1024, 3)):
            size = paper_count(points, channels, 32, 9, 8)
            print(f"{name}: 32 filters, 9 generators with the identity, hidden 8: {size:,}")
        return
    table: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, int] = {}
    start = time.perf_counter()
    for seed in arguments.seeds:
        whole, test = LOADERS[arguments.data](arguments.root.expanduser(), seed)
        shuffled = torch.randperm(len(whole[1]), generator=torch.Generator().manual_seed(seed))
        held, rest = shuffled[: len(shuffled) // 5], shuffled[len(shuffled) // 5 :]
        for column in arguments.columns:
            images, tested = (
                changed(split[0], column, seed, torch.Generator().manual_seed(10 * seed + part))
                for part, split in enumerate((whole, test))
            )
            classes = int(whole[1].max()) + 1
            makers = models(images[rest], classes, arguments.width, arguments.generators, arguments.rank)
            for name in arguments.models or makers:
                torch.manual_seed(seed)
                model = makers[name]()
                sizes[name] = sum(p.numel() for p in model.parameters())
                draws = torch.Generator().manual_seed(10 * seed + 2)

                def epoch(once=images[rest], upright=whole[0][rest], column=column, seed=seed, draws=draws) -> Tensor:
                    return once if arguments.rotations == "once" else changed(upright, column, seed, draws)

                train(model, epoch, whole[1][rest], (images[held], whole[1][held]), arguments.epochs)
                found = 100 * accuracy(model, (tested, test[1]))
                table.setdefault((name, column), []).append(found)
                print(f"seed {seed}, {column}, {name}: {found:.1f}", flush=True)
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{'':18}{'parameters':>12}" + "".join(f"{column:>22}" for column in arguments.columns))
    for name, size in sizes.items():
        cells = []
        for column in arguments.columns:
            values = table[name, column]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):14.1f} +- {spread:3.1f} ")
        print(f"{name:18}{size:12,}" + "".join(cells))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
