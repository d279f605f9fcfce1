"""Grey and white matter of the MNI152 brain, learned from patches and from the whole volume at once.

    python examples/whole_volume.py --small [--seed 1] [--picture FILE]    # 4 mm, one minute of one core
    python examples/whole_volume.py [--picture FILE]                       # 1 mm, (197, 233, 189)

Needs nilearn, whose wheel has the template, and nibabel; matplotlib for the picture. One L-conv U-Net with affine
generators, d_a and x_b d_a, to which the place matters, is trained

    (a) on patches, coordinates centred on each patch          model(patch)
    (b) on patches, at their true coordinates                  with lc.window(model, origin, full): model(patch)
    (c) on the whole volume, tile by tile, exact gradients     lc.stream(model, tile).forward_backward(...)

and, beside it, the same U-Net of nn.Conv3d on patches. All take equally many steps of AdamW, at one learning rate. The
labels of a slab, one of those that networks/mni.py tests on, are kept from all of them; the Dice there, on a scan with
noise of its own, is the test. Norms are those of the batch: once trained, the network is local.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lconv_fast as lc
from lconv_fast import nets
from lconv_fast.convert.memory import peak_memory

sys.path.append(str(Path(__file__).parent / "networks"))

from common import CONTENDERS, exchange
from mni import FIRST, TEST, THICK, scanned, template
from segmentation import soft_dice

CLASSES = "other", "grey", "white"
SCANS, RATE = 4, 3e-2  # the rate that mni.py chose for affine generators, on its validation slabs
UNLABELLED = -100  # the ignore_index of cross-entropy
LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Size:
    cell: int  # mm
    widths: tuple[int, ...]
    layers: int  # blocks in each half of a level
    patch: int
    batch: int
    tile: int
    steps: int


SMALL = Size(cell=4, widths=(4, 8), layers=1, patch=32, batch=1, tile=32, steps=120)
FULL = Size(cell=1, widths=(16, 32, 64), layers=2, patch=96, batch=2, tile=96, steps=600)


class Brain:
    """Scans (1, 1, *full) for training and one for the test, and their classes; the slab is unlabelled in `known`."""

    def __init__(self, cell: int, seed: int) -> None:
        clean, self.classes = template(cell)
        self.full, self.seed = tuple(clean.shape), seed
        random = torch.Generator().manual_seed(seed)
        self.scans = [scanned(clean, random)[None, None] for _ in range(SCANS)]
        self.test = scanned(clean, random)[None, None]
        first = FIRST + THICK * TEST[-1]  # in cells of 2 mm
        self.slab = slice(2 * first // cell, 2 * (first + THICK) // cell)
        self.known = self.classes.clone()
        self.known[:, self.slab] = UNLABELLED

    def dice(self, found: Tensor) -> list[float]:
        """Of grey and white matter, in the slab."""
        found, truth = found[:, self.slab], self.classes[:, self.slab]
        return [soft_dice((found == c).double(), (truth == c).double()).item() for c in (1, 2)]


def boxes(origin: Sequence[int], size: int) -> tuple[slice, ...]:
    return tuple(slice(o, o + size) for o in origin)


def place(model: nn.Module, origin: Any, full: tuple[int, ...], true: bool) -> AbstractContextManager[Any]:
    return lc.window(model, origin=origin, full=full) if true else nullcontext()


def patch_step(model: nn.Module, brain: Brain, size: Size, stride: int, true: bool) -> Callable[[int], None]:
    random = torch.Generator().manual_seed(brain.seed)

    def step(index: int) -> None:
        origins = [
            tuple(stride * int(torch.randint((f - size.patch) // stride + 1, (), generator=random)) for f in brain.full)
            for _ in range(size.batch)
        ]
        scan = brain.scans[index % SCANS][0]
        inputs = torch.stack([scan[(slice(None), *boxes(origin, size.patch))] for origin in origins])
        targets = torch.stack([brain.known[boxes(origin, size.patch)] for origin in origins])
        with place(model, origins, brain.full, true):
            LOSS(model(inputs), targets).backward()

    return step


def streamed_step(streamed: Any, brain: Brain) -> Callable[[int], None]:
    def step(index: int) -> None:
        streamed.forward_backward(brain.scans[index % SCANS], brain.known[None], LOSS)

    return step


def train(model: nn.Module, step: Callable[[int], None], steps: int) -> float:
    """AdamW with one cycle; the median processor time of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    seconds = []
    model.train()
    for index in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        step(index)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds.append(time.process_time() - start)
    model.eval()
    return sorted(seconds)[len(seconds) // 2]


def windows(full: tuple[int, ...], size: int, halo: Sequence[int], stride: int) -> Iterator[tuple[int, ...]]:
    """Origins of windows of which what lies inside of their halos covers the grid."""
    return product(
        *(
            [*range(0, f - size, (size - 2 * h) // stride * stride), (f - size + stride - 1) // stride * stride]
            for f, h in zip(full, halo, strict=True)
        )
    )


def inside(origin: Sequence[int], size: int, halo: Sequence[int], full: Sequence[int]) -> tuple[slice, ...]:
    """What of a window is as in the whole grid: without its halo, except at the border of the grid."""
    return tuple(
        slice(o + (h if o > 0 else 0), min(o + size, f) - (h if o + size < f else 0))
        for o, h, f in zip(origin, halo, full, strict=True)
    )


@torch.no_grad()
def probabilities(model: nn.Module, scan: Tensor, origin: Sequence[int], size: int, true: bool) -> Tensor:
    """(classes, *patch)"""
    with place(model, tuple(origin), tuple(scan.shape[2:]), true):
        return model(scan[(..., *boxes(origin, size))]).softmax(1)[0]


def predicted(model: nn.Module, brain: Brain, size: int, halo: Sequence[int], stride: int, true: bool) -> Tensor:
    """Classes of the test scan, window by window."""
    found = torch.empty(brain.full, dtype=torch.long)
    for origin in windows(brain.full, size, halo, stride):
        part = inside(origin, size, halo, brain.full)
        there = probabilities(model, brain.test, origin, size, true).argmax(0)
        found[part] = there[tuple(slice(s.start - o, s.stop - o) for s, o in zip(part, origin, strict=True))]
    return found


def seam(model: nn.Module, brain: Brain, size: int, halo: Sequence[int], stride: int, true: bool) -> float:
    """Largest difference of the probabilities of a window in the middle and of those next to it, along each axis, where
    both are right."""
    middle = tuple((f - size) // 2 // stride * stride for f in brain.full)
    first, worst = probabilities(model, brain.test, middle, size, true), 0.0
    for axis, h in enumerate(halo):
        room = min((size - 2 * h) // 2, brain.full[axis] - size - middle[axis])
        shift = room // stride * stride
        other = tuple(o + shift * (a == axis) for a, o in enumerate(middle))
        second = probabilities(model, brain.test, other, size, true)
        both = [slice(k, size - k) for k in halo]
        here, there = both.copy(), both.copy()
        here[axis], there[axis] = slice(h + shift, size - h), slice(h, size - h - shift)
        worst = max(worst, (first[(..., *here)] - second[(..., *there)]).abs().max().item())
    return worst


@dataclass(frozen=True)
class Row:
    name: str
    found: Tensor
    dice: list[float]
    epoch: float  # seconds of processor time for as many points as the volume has
    volumes: float  # how many volumes' points were seen
    peak: int  # bytes, of a step
    seam: float


def network(size: Size, seed: int, conv: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    model = nets.LUNet(
        1, len(CLASSES), "affine", ndim=3, widths=size.widths, layers=size.layers, norm="batch", activation="relu"
    )
    return exchange(model, CONTENDERS["conv"]) if conv else model


def run(name: str, brain: Brain, size: Size, *, conv: bool = False, true: bool = False, whole: bool = False) -> Row:
    model = network(size, brain.seed, conv)
    plan = lc.regions(network(size, brain.seed, conv).eval(), tuple(brain.test.shape))
    halo, stride = [max(sides) for sides in plan.halo], max(plan.stride)
    streamed = lc.stream(model, tile=(size.tile,) * 3, progress=False)
    step = streamed_step(streamed, brain) if whole else patch_step(model, brain, size, stride, true)
    points = brain.test.numel() if whole else size.batch * size.patch**3
    share = points / brain.test.numel()
    seconds = train(model, step, size.steps)
    arguments = model, brain, size.patch, halo, stride, true
    found = streamed.predict(brain.test, transform="argmax")[0] if whole else predicted(*arguments)
    model.train()
    peak = peak_memory(lambda: step(0))
    model.eval()
    return Row(name, found, brain.dice(found), seconds / share, size.steps * share, peak, seam(*arguments))


def one_piece(brain: Brain, size: Size) -> tuple[float, int]:
    """Time and memory of a step of (c) without tiles."""
    model = network(size, brain.seed)

    def step(index: int = 0) -> None:
        LOSS(model(brain.scans[index % SCANS]), brain.known[None]).backward()

    return train(model, step, 10), peak_memory(step)


def draw(rows: list[Row], brain: Brain, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    middle, height = (brain.slab.start + brain.slab.stop) // 2, brain.full[2] // 2
    pictures = [("scan", brain.test[0, 0]), ("truth", brain.classes), *((row.name, row.found) for row in rows)]
    figure, axes = plt.subplots(2, len(pictures), figsize=(2.4 * len(pictures), 5.4), layout="constrained")
    for (title, volume), column in zip(pictures, axes.T, strict=True):
        top = 2 if volume.dtype == torch.long else None
        for axis, picture in zip(column, (volume[:, middle].T, volume[:, :, height].T), strict=True):
            axis.imshow(picture, origin="lower", cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axis.set_axis_off()
        for edge in (brain.slab.start - 0.5, brain.slab.stop - 0.5):
            column[1].axhline(edge, color="tab:red", linewidth=1)
        column[0].set_title(title, fontsize=9)
    figure.suptitle("In the slab without labels; below, from above, the slab between the red lines", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="4 mm, a small network, few steps")
    parser.add_argument("--seed", type=int, default=0, help="of the scans' noise, the patches and the weights")
    parser.add_argument("--picture", help="file for slices")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SMALL if arguments.small else FULL
    brain = Brain(size.cell, arguments.seed)
    print(f"volume {brain.full}, slab {brain.slab.start} to {brain.slab.stop} of axis 1, {size.steps} steps each")
    rows = [
        run("conv, patches", brain, size, conv=True),
        run("(a) patches, re-centred", brain, size),
        run("(b) patches, true places", brain, size, true=True),
        run("(c) streamed", brain, size, true=True, whole=True),
    ]
    unit = rows[0].epoch
    print("| | grey | white | time of an epoch | volumes seen | peak of a step | seam |\n|" + " --- |" * 7)
    for row in rows:
        print(
            f"| {row.name} | {row.dice[0]:.3f} | {row.dice[1]:.3f} | {row.epoch / unit:.2f} | {row.volumes:.0f} | "
            f"{row.peak / 2**20:.0f} MiB | {row.seam:.1e} |"
        )
    print(f"\nAn epoch, of as many points as the volume has, of the first row: {unit:.2f} s of processor time.")
    if arguments.small:
        seconds, peak = one_piece(brain, size)
        print(f"A step of (c) in one piece: {seconds / unit:.2f} of that, {peak / 2**20:.0f} MiB.")
    if arguments.picture:
        draw(rows, brain, arguments.picture)


if __name__ == "__main__":
    main()
