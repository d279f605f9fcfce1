"""The paper's own experiments (figure 4, supplement C) with dense L, beside structured generators on the same pairs.

Settings: images uniform in (-0.5, 0.5); pairs by affine_grid and grid_sample with their defaults; 50,000 pairs. The
correlation is <L, L*> / (|L| |L*|), up to sign, with the rotation generator about the centre and band-limited
derivatives. The paper does not say how the recursive net starts, and much hangs on it: at 7 x 7, L ends at
correlations of 0.35 to 0.65 by the seed from small entries, and at 0.18 from Glorot's.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast.discovery.discover import discover
from lconv_fast.discovery.fields import Array, fields_of
from lconv_fast.discovery.result import Result
from lconv_fast.outputs import filled

Report = Callable[[str, float], None]  # what is done, and which fraction of it
EXPERIMENTS = ("shift", "fixed", "recursive", "regression")
ANGLE = math.pi / 10
SHIFT = 40, 2  # points, and by how many of them
STRUCTURED_PAIRS = 10
FILES = ("paper.png", "paper.json")
START = 0.5  # standard deviation of the recursive net's first L, over the number of points
# Recursion depth, largest angle and epochs of the recursive experiment.
RECURSIVE = {7: (5, math.pi / 8, 10), 20: (8, math.pi / 4, 10)}


@dataclass
class Row:
    method: str
    correlation: float
    pairs: int
    parameters: int
    seconds: float
    angle_error: float | None = None  # degrees, root mean square
    matrix: Array | None = None  # the learned L, (d, d)
    interrupted: bool = False  # by Ctrl-C, in its training


def band_limited_derivative(size: int) -> Array:
    """The Shannon-Whittaker derivative on a periodic axis: L[r, n] = -sum_p (2 pi p / d^2) sin(2 pi p (r - n) / d)."""
    p = np.arange(-((size - 1) // 2), (size - 1) // 2 + 1)
    offset = np.arange(size)[:, None] - np.arange(size)
    return -(2 * np.pi * p / size**2 * np.sin(2 * np.pi * p * offset[..., None] / size)).sum(-1)


def true_rotation(size: int) -> Array:
    """row d_col - col d_row about the centre: (d, d) with d = size^2."""
    derivative, one = band_limited_derivative(size), np.eye(size)
    row, column = (np.indices((size, size)).reshape(2, -1) - (size - 1) / 2)[:, :, None]
    return row * np.kron(one, derivative) - column * np.kron(derivative, one)


def rebuilt(result: Result, size: int) -> Array:
    """L (d, d) of a found field, with the same derivatives as the true generator."""
    assert result.generators is not None
    rows, columns = fields_of(result.generators, (size, size))[0].reshape(2, -1)[:, :, None]
    derivative, one = band_limited_derivative(size), np.eye(size)
    return rows * np.kron(derivative, one) + columns * np.kron(one, derivative)


def correlation(a: Array, b: Array) -> float:
    return float(abs((a * b).sum()) / (np.linalg.norm(a) * np.linalg.norm(b)))


def rotated(images: Tensor, angles: Tensor) -> Tensor:
    """(P, 1, H, W), each by its angle: affine_grid and grid_sample with their defaults, matrix [[c, s], [-s, c]]."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    theta = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


class AngleNet(nn.Module):
    """x in 10 channels, one L-conv (I + L eps) applied `depth` times, its inner product with y per channel, and a
    readout tanh, Linear(5), tanh, Linear(1)."""

    def __init__(self, points: int, depth: int, channels: int = 10) -> None:
        super().__init__()
        self.depth = depth
        self.generator = nn.Parameter(START / points * torch.randn(points, points))
        self.mixing = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels)))
        self.readout = nn.Sequential(nn.Tanh(), nn.Linear(channels, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f = x.flatten(1)[:, None].expand(-1, len(self.mixing), -1)
        for _ in range(self.depth):
            f = f + self.mixing @ (f @ self.generator.t())
        # Of order one whatever the size: tanh of the plain sum is saturated at 20 x 20, and the net learns nothing.
        product = (f * y.flatten(1)[:, None]).sum(-1) / y[0].numel() ** 0.5
        return self.readout(product).squeeze(-1)


def run(
    experiment: str,
    size: int = 7,
    pairs: int = 50_000,
    epochs: int | None = None,
    seed: int = 0,
    report: Report = lambda what, fraction: None,
) -> list[Row]:
    """The rows of one experiment: the paper's method, then a structured generator from 10 of the same pairs."""
    if experiment not in EXPERIMENTS:
        raise ValueError(f"experiment: expected one of {', '.join(EXPERIMENTS)}, got {experiment!r}")
    if size not in RECURSIVE:
        raise ValueError(f"size: expected one of {', '.join(map(str, RECURSIVE))}, as in the paper, got {size!r}")
    if experiment == "shift":
        return _shift()
    torch.manual_seed(seed)
    largest = RECURSIVE[size][1]
    angles = (2 * torch.rand(pairs) - 1) * largest if experiment == "recursive" else torch.full((pairs,), ANGLE)
    x = torch.rand(pairs, 1, size, size) - 0.5
    y = rotated(x, angles)
    method = {"fixed": _fixed, "recursive": _recursive, "regression": _regression}[experiment]
    first = method(x, y, angles, true_rotation(size), epochs, report)
    return [first] if first.interrupted else [first, _structured(experiment, x, y, angles)]


def _structured(experiment: str, x: Tensor, y: Tensor, angles: Tensor) -> Row:
    """An affine field by registration of 10 pairs."""
    started, size = time.perf_counter(), x.shape[-1]
    few = slice(0, STRUCTURED_PAIRS)
    found = discover(x[few], y[few], parameters=angles[few], progress=False)
    learned = rebuilt(found, size) if found.dimension else np.zeros((size**2, size**2))
    seconds = time.perf_counter() - started
    angle_error = None
    if experiment == "recursive":
        largest = RECURSIVE[size][1]
        unseen = (2 * torch.rand(200) - 1) * largest
        images = torch.rand(200, 1, size, size) - 0.5
        estimated = discover(images, rotated(images, unseen), num_generators=1, progress=False).parameters[:, 0]
        true = unseen.numpy()[: len(estimated)]
        # Unlabelled, the generator's sign is free: one for all pairs.
        angle_error = float(np.degrees(min(np.sqrt(np.nanmean((s * estimated - true) ** 2)) for s in (1, -1))))
    return Row(
        "affine field, by registration",
        correlation(learned, true_rotation(size)) if found.dimension else 0.0,
        STRUCTURED_PAIRS,
        6,
        seconds,
        angle_error,
        learned,
        found.interrupted,
    )


def _true_shift() -> Array:
    size, shift = SHIFT
    return np.roll(np.eye(size), -shift, axis=1).T


def _shift() -> list[Row]:
    """(I + (t/n) L)^n of the exact L against the shift by t = 2 on 40 points."""
    size, shift = SHIFT
    true = _true_shift()
    rows = []
    for steps in (8, 16):
        power = np.linalg.matrix_power(np.eye(size) - shift / steps * band_limited_derivative(size), steps)
        found = max(correlation(power, true), correlation(power.T, true))
        rows.append(Row(f"(I + t/n L)^n, n = {steps}", found, 0, size**2, 0.0, matrix=power))
    return rows


def _fixed(x: Tensor, y: Tensor, angles: Tensor, true: Array, epochs: int | None, report: Report) -> Row:
    """f + L f w by Adam at 1e-2, batches of 32, the rate times 0.7 after each epoch."""
    started, points, rounds = time.perf_counter(), x[0].numel(), epochs or 20
    inputs, outputs = x.flatten(1), y.flatten(1)
    generator, weight = nn.Parameter(torch.randn(points, points) / points), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([generator, weight], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)

    def epoch() -> None:
        for batch in torch.randperm(len(x)).split(32):
            loss = F.mse_loss(inputs[batch] + inputs[batch] @ generator.t() * weight, outputs[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()

    interrupted = _epochs("dense L", epoch, rounds, report)
    found = (generator * weight).detach().double().numpy()
    return Row(
        "dense L, one step",
        correlation(found, true),
        len(x),
        points**2 + 1,
        time.perf_counter() - started,
        matrix=found,
        interrupted=interrupted,
    )


def _epochs(what: str, epoch: Callable[[], None], rounds: int, report: Report) -> bool:
    """Whether Ctrl-C ended them; what was learned until then is kept."""
    try:
        for k in range(rounds):
            report(f"{what}, epoch {k + 1} of {rounds}", k / rounds)
            epoch()
    except KeyboardInterrupt:
        return True
    return False


def _regression(x: Tensor, y: Tensor, angles: Tensor, true: Array, epochs: int | None, report: Report) -> Row:
    """R = (Y X^T)(X X^T)^-1 and L = R - I."""
    started, points = time.perf_counter(), x[0].numel()
    inputs, outputs = x.flatten(1).double(), y.flatten(1).double()
    matrix = torch.linalg.solve(inputs.t() @ inputs, inputs.t() @ outputs).t().numpy()
    matrix = matrix - np.eye(points)
    found = correlation(matrix, true)
    seconds = time.perf_counter() - started
    return Row("dense L, linear regression", found, len(x), points**2, seconds, matrix=matrix)


def _recursive(x: Tensor, y: Tensor, angles: Tensor, true: Array, epochs: int | None, report: Report) -> Row:
    """The angle from pairs, by Adam at 1e-3, batches of 16."""
    size = x.shape[-1]
    depth, largest, usual = RECURSIVE[size]
    started, rounds = time.perf_counter(), epochs or usual
    net = AngleNet(size**2, depth)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def epoch() -> None:
        for batch in torch.randperm(len(x)).split(16):
            loss = F.mse_loss(net(x[batch], y[batch]), angles[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    interrupted = _epochs("dense recursive L", epoch, rounds, report)
    unseen = (2 * torch.rand(10_000) - 1) * largest
    images = torch.rand(10_000, 1, size, size) - 0.5
    with torch.no_grad():
        error = (net(images, rotated(images, unseen)) - unseen).square().mean().sqrt()
    matrix = net.generator.detach().double().numpy()
    found = correlation(matrix, true)
    count = sum(p.numel() for p in net.parameters())
    seconds = time.perf_counter() - started
    return Row("dense recursive L", found, len(x), count, seconds, math.degrees(error.item()), matrix, interrupted)


def draw(rows: list[Row], folder: Path) -> Path:
    """The learned L beside each other and beside the true one, as in the paper's figure 4, as paper.png, and the
    numbers as paper.json. Needs matplotlib."""
    from matplotlib.figure import Figure

    shown = [(f"{row.method}\n{row.correlation:.3f}", row.matrix) for row in rows if row.matrix is not None]
    points = len(shown[0][1])
    size = math.isqrt(points)
    shown.append(("true L", true_rotation(size)) if size**2 == points else ("true shift", _true_shift()))
    figure = Figure(figsize=(4 * len(shown), 4.2))
    for axis, (name, matrix) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        bound = np.abs(matrix).max() or 1.0
        axis.imshow(matrix, cmap="RdBu", vmin=-bound, vmax=bound)
        axis.set_title(name)
        axis.set_axis_off()
    numbers = [{name: value for name, value in vars(row).items() if name != "matrix"} for row in rows]
    with filled(folder, FILES) as place:
        figure.savefig(place / "paper.png", dpi=110, bbox_inches="tight")
        (place / "paper.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return folder / "paper.png"
