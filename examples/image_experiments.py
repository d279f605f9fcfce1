"""The image experiments of Dehmamy et al. 2021 (its supplement D): default, rotated, scrambled, rotated and scrambled.

python examples/image_experiments.py --record table.jsonl      scikit-learn's digits; goes on where it stopped
python examples/image_experiments.py --validate                on a fifth of the training images, test images left alone
python examples/image_experiments.py --data MNIST --root ~/data      torchvision's folder layout
python examples/image_experiments.py --parameters              parameter counts of the paper's configurations

Rotated: test images by one random angle of the circle each, training images by new angles in each epoch (--rotations
once: by one angle each). Scrambled: all images by one random permutation of pixels, after the rotation. The CNN's
trained parameters are the budget of all: the others are as wide as it allows. One optimizer and schedule for all; what
is tested is the last epoch, and the test split is the same for all seeds and used once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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


def digits(root: Path) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images, labels = torch.from_numpy(found.images).float().unsqueeze(1) / 16, torch.from_numpy(found.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=found.target, random_state=0)
    return (images[train], labels[train]), (images[test], labels[test])


def idx(path: Path) -> Tensor:
    """MNIST's format: two zeros, the type, the number of axes, the extents, the bytes; gzipped or not."""
    packed = path.with_name(path.name + ".gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, 4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, -1, 4 + 4 * ndim).reshape(shape).copy())


def mnist(name: str) -> Callable[[Path], tuple[Split, Split]]:
    def load(root: Path) -> tuple[Split, Split]:
        folder = root / name / "raw"
        parts = []
        for part in ("train", "t10k"):
            images = idx(folder / f"{part}-images-idx3-ubyte").float().unsqueeze(1) / 255
            parts.append((images, idx(folder / f"{part}-labels-idx1-ubyte").long()))
        return parts[0], parts[1]

    return load


def cifar(folder: str, train: list[str], test: str, key: bytes) -> Callable[[Path], tuple[Split, Split]]:
    def load(root: Path) -> tuple[Split, Split]:
        def read(names: list[str]) -> Split:
            # These files are pickles by their format: read those of a source you trust.
            found = [pickle.loads((root / folder / name).read_bytes(), encoding="bytes") for name in names]
            images = np.concatenate([part[b"data"] for part in found]).reshape(-1, 3, 32, 32)
            return torch.from_numpy(images).float() / 255, torch.tensor([n for part in found for n in part[key]])

        return read(train), read([test])

    return load


def mnist_rot(root: Path) -> tuple[Split, Split]:
    def read(name: str) -> Split:
        table = torch.from_numpy(np.loadtxt(root / name, dtype=np.float32))
        return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()

    stem = "mnist_all_rotation_normalized_float"
    return read(f"{stem}_train_valid.amat"), read(f"{stem}_test.amat")


LOADERS: dict[str, Callable[[Path], tuple[Split, Split]]] = {
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


def low_rank(points: int, count: int, rank: int) -> tuple[Tensor, Tensor]:
    """Random L_i = U_i V_i with entries of variance 1 / d."""
    return torch.randn(count, points, rank) / rank**0.5, torch.randn(count, rank, points) / points**0.5


def low_rank_of(images: Tensor, count: int, rank: int, components: int) -> tuple[Tensor, Tensor]:
    """Random U_i V_i between the leading principal components of the images, of the same mean square."""
    flat = images.flatten(0, 1).flatten(1)
    basis = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:components].T  # (d, components)
    left = basis @ torch.randn(count, basis.shape[1], rank)
    right = torch.randn(count, rank, basis.shape[1]) @ basis.T
    size = (left @ right).square().mean((1, 2), keepdim=True).sqrt() * len(basis) ** 0.5
    return left / size.sqrt(), right / size.sqrt()


def body(layers: list[nn.Module], width: int, points: int, classes: int) -> nn.Sequential:
    inner: list[nn.Module] = []
    for layer in layers:
        inner += [layer, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*inner, nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * points, classes))


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def widest(make: Callable[[int], nn.Module], budget: int) -> Callable[[], nn.Module]:
    """Makes the widest model within a budget of trained parameters, which rise with the width."""
    low, high = 1, 2
    while trained(make(high)) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trained(make(middle)) <= budget else (low, middle)
    return lambda: make(low)


def models(images: Tensor, classes: int, options: argparse.Namespace) -> dict[str, Callable[[], nn.Module]]:
    """The training images tell the L-conv where to start, and the sparse L-conv its graph: each pixel's nearest."""
    channels, points = images.shape[1], images[0, 0].numel()

    def l_conv(width: int, learnable: bool, start: str) -> nn.Module:
        layers: list[nn.Module] = []
        for ins in (channels, width):
            if start == "random":
                factors = low_rank(points, options.generators, options.rank)
            else:
                factors = low_rank_of(images, options.generators, options.rank, options.components)
            layers.append(lc.LConv2d(ins, width, lc.LowRankGenerators(*factors, learnable=learnable)))
        return body(layers, width, points, classes)

    edges = neighbours.likest(images.flatten(2) + 1e-3 * torch.randn(images.flatten(2).shape), 8)

    def sparse(width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for ins in (channels, width):
            weights = torch.randn(options.edge_generators, edges.shape[1]) / 8**0.5
            layers.append(Nodes(ins, width, lc.GraphGenerators(edges, weights, points, learnable=True)))
        return body(layers, width, points, classes)

    def on_the_grid(width: int, layer: Callable[[int, int], nn.Module]) -> nn.Module:
        inner: list[nn.Module] = []
        for index in range(3):
            inner += [layer(3 * width if index else channels, 3 * width), nn.BatchNorm2d(3 * width), nn.ReLU()]
        head = (nn.Conv2d(3 * width, width, 1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * points, classes))
        return nn.Sequential(*inner, *head)

    def cnn(width: int) -> nn.Module:
        return on_the_grid(width, lambda ins, outs: nn.Conv2d(ins, outs, 3, padding=1))

    def grid(width: int) -> nn.Module:
        return on_the_grid(width, lambda ins, outs: lc.LConv2d(ins, outs, options.basis))

    def connected(width: int) -> nn.Module:
        inner = (nn.Linear(channels * points, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, classes))
        return nn.Sequential(nn.Flatten(), *inner)

    budget = trained(cnn(options.width))
    return {
        "L-conv": widest(lambda width: l_conv(width, True, options.start), budget),
        "L-conv, random L": widest(lambda width: l_conv(width, False, "random"), budget),
        "L-conv, sparse": widest(sparse, budget),
        "L-conv, grid": widest(grid, budget),
        "CNN": lambda: cnn(options.width),
        "fully connected": widest(connected, budget),
    }


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    model.eval()
    found = torch.cat([model(batch).argmax(1) for batch in split[0].split(1000)])
    return (found == split[1]).double().mean().item()


def train(model: nn.Module, images: Callable[[], Tensor], labels: Tensor, options: argparse.Namespace) -> None:
    """Adam with decay and a one-cycle rate that ends at 0. `images` gives the training images of an epoch."""
    size = options.batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    steps = options.epochs * math.ceil(len(labels) / size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps)
    model.train()
    for _ in range(options.epochs):
        x = images()
        for batch in torch.randperm(len(labels)).split(size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()


# ---- the paper's parameter counts ------------------------------------------------------------------------------------


class PaperLayer(nn.Module):
    """The layer with the paper's parameters: each of W^0 to W^nL is a linear layer with a bias of its own. Only their
    sum matters, so that LConv2d has one."""

    def __init__(self, side: int, channels: int, filters: int, generators: int, hidden: int) -> None:
        super().__init__()
        factors = low_rank(side * side, generators - 1, hidden)  # the paper counts the identity as a generator
        self.layer = lc.LConv2d(channels, filters, lc.LowRankGenerators(*factors, learnable=True), bias=False)
        self.biases = nn.Parameter(torch.zeros(generators, filters))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.biases.sum(0).reshape(-1, 1, 1)


def show_parameters() -> None:
    for name, side, channels in (("MNIST", 28, 1), ("CIFAR-10 and CIFAR-100", 32, 3)):
        layer = PaperLayer(side, channels, 32, 9, 8)
        inner = sum(p.numel() for p in layer.layer.parameters())
        print(
            f"{name}: 32 filters, 9 generators with the identity, hidden 8: {trained(layer):,} = {inner:,} and "
            f"9 biases of 32; with one bias, as lc.LConv2d has by default, {inner + 32:,}"
        )


# ---- the table -------------------------------------------------------------------------------------------------------

# What results depend on, besides the seed: those of other settings are not mixed with these.
SETTINGS = (
    *("data", "epochs", "batch", "rate", "width", "generators", "rank", "start", "components", "edge_generators"),
    *("basis", "rotations", "validate"),
)
Result = dict[str, Any]


def recorded(path: Path | None, settings: list[Any]) -> list[Result]:
    if path is None or not path.exists():
        return []
    return [result for line in path.read_text().splitlines() if (result := json.loads(line))["settings"] == settings]


def run(whole: Split, test: Split, seed: int, column: str, options: argparse.Namespace) -> Iterator[Result]:
    """Trains and tests the models that are not yet in options.done."""
    images, tested = (
        changed(split[0], column, seed, torch.Generator().manual_seed(10 * seed + part))
        for part, split in enumerate((whole, test))
    )
    torch.manual_seed(seed)
    makers = models(images, int(whole[1].max()) + 1, options)
    for name in options.models or makers:
        if (seed, column, name) in options.done:
            continue
        torch.manual_seed(seed)
        model, draws = makers[name](), torch.Generator().manual_seed(10 * seed + 2)

        def epoch(draws: torch.Generator = draws) -> Tensor:
            return images if options.rotations == "once" else changed(whole[0], column, seed, draws)

        start = time.process_time()
        train(model, epoch, whole[1], options)
        found = 100 * accuracy(model, (tested, test[1]))
        seconds = round(time.process_time() - start, 1)
        yield {"seed": seed, "column": column, "model": name, "parameters": trained(model), "accuracy": found} | {
            "seconds": seconds
        }


def show(results: list[Result], columns: Sequence[str]) -> None:
    print(f"{'':18}{'parameters':>12}" + "".join(f"{column:>26}" for column in columns))
    for name in dict.fromkeys(result["model"] for result in results):
        of_model = [result for result in results if result["model"] == name]
        cells = []
        for column in columns:
            values = [result["accuracy"] for result in of_model if result["column"] == column]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(
                f"{statistics.fmean(values):11.1f} +- {spread:3.1f} ({len(values)} seeds)" if values else f"{'':26}"
            )
        print(f"{name:18}{of_model[0]['parameters']:12,}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--record", type=Path, help="a file of results, one a line, which a later run goes on with")
    parser.add_argument("--validate", action="store_true", help="leave the test images alone")
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--width", type=int, default=8, help="of the CNN's last layer, which sets the budget of all")
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--start", choices=("principal", "random"), default="principal", help="of the L-conv's generators"
    )
    parser.add_argument("--components", type=int, default=20, help="of the images, where generators start")
    parser.add_argument("--basis", default="second", help="of the L-conv that knows the grid")
    parser.add_argument("--edge-generators", type=int, default=4, help="of the sparse L-conv")
    parser.add_argument("--rotations", choices=("each epoch", "once"), default="each epoch")
    parser.add_argument("--columns", nargs="*", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--parameters", action="store_true", help="print the paper's parameter counts and stop")
    options = parser.parse_args()
    if options.parameters:
        show_parameters()
        return
    whole, test = LOADERS[options.data](options.root.expanduser())
    settings = [getattr(options, name) for name in SETTINGS]
    results = recorded(options.record, settings)
    options.done = {(result["seed"], result["column"], result["model"]) for result in results}
    for seed in options.seeds:
        fit, tested = whole, test
        if options.validate:
            order = torch.randperm(len(whole[1]), generator=torch.Generator().manual_seed(seed))
            held = len(order) // 5
            tested, fit = ((whole[0][part], whole[1][part]) for part in (order[:held], order[held:]))
        for column in options.columns:
            for result in run(fit, tested, seed, column, options):
                results.append(result)
                print(f"seed {seed}, {column}, {result['model']}: {result['accuracy']:.1f}", flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps({**result, "settings": settings}) + "\n")
    show(results, options.columns)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
