"""The pictures of the report, drawn by matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

import lconv_fast as lc
from lconv_fast.composed import vector_field
from lconv_fast.demo import digits, equivariance, speed
from lconv_fast.demo.photo import photograph

if TYPE_CHECKING:
    from lconv_fast.demo.report import Results

# Blue, orange, green, purple: told apart by most kinds of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
FIELDS = (
    ("translation d/dy", "translation", 0),
    ("rotation", "rotation", 0),
    ("scaling", "scaling", 0),
    ("lorentz boost", "lorentz", 0),
)
SIZE = 128


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_fields(top: list[Axes], bottom: list[Axes]) -> None:
    """Vector fields over the photograph in the upper axes, L f in the lower ones."""
    photo = photograph(SIZE)
    grey = photo.mean(1, keepdim=True)
    points = np.arange(6, SIZE, 13)
    for index, (over, under, (title, name, row)) in enumerate(zip(top, bottom, FIELDS, strict=True)):
        generators = lc.AffineGenerators.named(name, padding_mode="replicate")
        v = vector_field(generators.matrix, generators.shift, (SIZE, SIZE))[row]  # (2, SIZE, SIZE), rows first
        with torch.no_grad():
            moved = generators(grey)[0, row, 0]
        over.imshow(0.35 + 0.65 * F.avg_pool2d(photo, 3, 1, 1)[0].permute(1, 2, 0).numpy())
        y, x = np.meshgrid(points, points, indexing="ij")
        at = v[:, points][:, :, points].numpy()
        # Rows grow downwards, so 'xy' angles keep the arrows true to the pixels.
        over.quiver(x, y, at[1], at[0], angles="xy", scale_units="xy", scale=0.085, color=COLOURS[0], width=0.009)
        over.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))
        over.set_title(title)
        bound = float(moved.abs().quantile(0.99))
        under.imshow(moved.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        if index == 0:
            over.set_ylabel("v(x)")
            under.set_ylabel("L f")
        for axes in (over, under):
            axes.set(xticks=[], yticks=[])


def _draw_curves(axes: Axes, results: Results, data: str) -> None:
    for colour, model in zip(COLOURS, results.digits, strict=False):
        curve = model.validation_curves[data]
        axes.plot(range(1, len(curve) + 1), [100 * value for value in curve], color=colour, label=model.model)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", title=f"digits, {data}", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_test(axes: Axes, results: Results) -> None:
    runs = [(train, on) for train in digits.DATA for on in digits.DATA]
    count = len(results.digits)
    for index, (colour, model) in enumerate(zip(COLOURS, results.digits, strict=False)):
        values = [100 * model.test[train][on] for train, on in runs]
        places = np.arange(len(runs)) + (index - (count - 1) / 2) * 0.8 / count
        axes.bar(places, values, 0.8 / count, color=colour, label=model.model)
    axes.set_xticks(range(len(runs)), [f"{train}\n→ {on}" for train, on in runs], fontsize=8)
    axes.set(ylabel="test accuracy, %", title="trained on → tested on", ylim=(0, 102))


def _draw_ratios(axes: Axes, results: Results, job: str) -> None:
    sizes = [r.size for r in results.speed]
    for colour, name in zip(COLOURS, speed.CANDIDATES, strict=True):
        pairs = [(r.size, getattr(r, job)[name]) for r in results.speed if name in getattr(r, job)]
        axes.plot(*zip(*pairs, strict=True), "o-", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    title = "forward" if job == "forward" else "forward and backward"
    axes.set(xlabel="image side, pixels", ylabel="time / LConv2d's", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _draw_errors(axes: Axes, results: Results) -> None:
    sizes = sorted({r.size for r in results.equivariance})
    if len(sizes) == 1:
        values = [r.error for r in results.equivariance]
        axes.semilogy(equivariance.ACCURACIES, values, "o-", color=COLOURS[0])
        axes.set(xlabel="accuracy", xticks=equivariance.ACCURACIES)
    else:
        for colour, accuracy in zip(COLOURS, equivariance.ACCURACIES, strict=True):
            values = [r.error for r in results.equivariance if r.accuracy == accuracy]
            axes.loglog(sizes, values, "o-", color=colour, label=f"accuracy {accuracy}")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set(xlabel="image side, pixels")
        axes.legend()
    axes.set(ylabel="relative RMS", title="equivariance error, rotation")
    axes.grid(alpha=0.3)


def _draw_turned(axes: list[Axes]) -> None:
    size = 128
    torch.manual_seed(0)
    layer = lc.LConv2d(3, 1, "rotation", accuracy=8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        f = equivariance.smooth_photograph(size)
        turned = equivariance.turn(f, equivariance.ANGLE)
        shown = [f, layer(f), layer(turned)]
    titles = ["smoothed photograph f", "layer(f)", f"layer(f turned by {equivariance.ANGLE:g}°)"]
    for place, image, title in zip(axes, shown, titles, strict=True):
        picture = image[0].permute(1, 2, 0)
        if picture.shape[-1] == 3:
            place.imshow(((picture - picture.min()) / (picture.max() - picture.min())).numpy())
        else:
            bound = float(picture.abs().max())
            place.imshow(picture[..., 0].numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        place.set(xticks=[], yticks=[], title=title)


def _draw_accuracies(axes: Axes, results: Results) -> None:
    for index, (colour, r) in enumerate(zip(COLOURS, results.turned, strict=False)):
        places = np.arange(2) + 0.4 * (index - 0.5)
        axes.bar(places, [100 * r.upright, 100 * r.turned], 0.38, color=colour, label=r.model)
    axes.set_xticks(range(2), ["upright", "turned by any angle"])
    axes.set(
        ylabel="test accuracy, %", title="digits, trained on upright ones", ylim=(0, 130), yticks=range(0, 101, 20)
    )
    axes.legend(loc="upper right", fontsize=8)


def _draw_slices(axes: list[Axes], results: Results) -> None:
    first, *_ = results.volume
    shown = {"image": first.picture["image"], "truth": first.picture["truth"]}
    shown |= {f"{r.model}: Dice {r.dice:.2f}": r.picture["found"] for r in results.volume}
    for place, (title, values) in zip(axes, shown.items(), strict=True):
        place.imshow(np.array(values), cmap="gray")
        place.set(xticks=[], yticks=[], title=title)


def _turned_picture(results: Results) -> Figure:
    figure = _figure(6, 3.6)
    axes: Any = figure.subplots()
    _draw_accuracies(axes, results)
    return figure


def _volume_picture(results: Results) -> Figure:
    figure = _figure(12, 3.4)
    axes: Any = figure.subplots(1, 2 + len(results.volume))
    _draw_slices(list(axes), results)
    return figure


def _fields_picture(results: Results) -> Figure:
    figure = _figure(12, 6.2)
    axes: Any = figure.subplots(2, 4)
    _draw_fields(list(axes[0]), list(axes[1]))
    return figure


def _digits_picture(results: Results) -> Figure:
    figure = _figure(13, 3.8)
    axes: Any = figure.subplots(1, 3)
    for place, data in zip(axes, digits.DATA, strict=False):
        _draw_curves(place, results, data)
    _draw_test(axes[2], results)
    return figure


def _speed_picture(results: Results) -> Figure:
    figure = _figure(11, 4)
    axes: Any = figure.subplots(1, 2)
    _draw_ratios(axes[0], results, "forward")
    _draw_ratios(axes[1], results, "forward_backward")
    return figure


def _equivariance_picture(results: Results) -> Figure:
    figure = _figure(14, 3.8)
    axes: Any = figure.subplots(1, 4, width_ratios=[1.3, 1, 1, 1])
    _draw_errors(axes[0], results)
    _draw_turned(list(axes[1:]))
    return figure


def _overview_picture(results: Results) -> Figure:
    figure = _figure(12, 9.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=[6.0, 3.4])
    upper, lower = parts
    axes: Any = upper.subplots(2, 4)
    _draw_fields(list(axes[0]), list(axes[1]))
    below: Any = lower.subplots(1, 3)
    _draw_accuracies(below[0], results)
    _draw_ratios(below[1], results, "forward_backward")
    _draw_errors(below[2], results)
    return figure


PICTURES = {
    "turned": _turned_picture,
    "volume": _volume_picture,
    "fields": _fields_picture,
    "digits": _digits_picture,
    "speed": _speed_picture,
    "equivariance": _equivariance_picture,
    "overview": _overview_picture,
}


def draw(results: Results, out: Path) -> dict[str, Path]:
    """Writes every picture of PICTURES into `out` as NAME.png; returns the paths by name."""
    paths = {}
    for name, make in PICTURES.items():
        paths[name] = out / f"{name}.png"
        make(results).savefig(paths[name], dpi=90, facecolor="white")
        # A palette of 256 colours is enough here, and a third of the bytes.
        with Image.open(paths[name]) as image:
            small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(paths[name], optimize=True)
    return paths
