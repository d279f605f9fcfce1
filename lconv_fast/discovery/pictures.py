"""Pictures of a discovery: fields over an image, the spectrum, structure constants, L as a matrix. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lconv_fast.discovery.fields import Array, fields_of, grid_points
from lconv_fast.discovery.result import Result
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators
from lconv_fast.outputs import filled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("fields.png", "spectrum.png", "structure.png", "matrices.png")
MOST_DENSE = 24  # points a side of the grid that L is shown on


def draw(result: Result, image: Tensor, folder: str | Path, true: Generators | None = None) -> list[Path]:
    """Writes fields.png, spectrum.png, structure.png and matrices.png, as far as the result has them.

    Args:
        result: of `discover` on images with 2 spatial axes.
        image: (C, H, W) or (H, W), drawn under the fields.
        folder: is made if it is missing.
        true: generators whose matrices are drawn beside.

    Raises:
        OSError: a folder that cannot be written to.
    """
    with filled(folder, FILES) as place:
        names = write(result, image, place, true)
    return [Path(folder) / name for name in names]


def write(result: Result, image: Tensor, place: Path, true: Generators | None = None) -> list[str]:
    """The files of `draw`, one by one into a folder that is there; their names."""
    names = []
    for name, figure in _figures(result, image, true):
        figure.savefig(place / name, dpi=110, bbox_inches="tight")
        names.append(name)
    return names


def _figures(result: Result, image: Tensor, true: Generators | None) -> Iterator[tuple[str, Figure]]:
    picture = image.detach().cpu().double().numpy()
    picture = picture.mean(0) if picture.ndim == 3 else picture
    generators = result.generators
    if isinstance(generators, AffineGenerators | FieldGenerators) and picture.ndim == 2:
        yield "fields.png", _fields(generators, picture)
    if len(result.spectrum):
        yield "spectrum.png", _spectrum(result)
    if result.algebra is not None and result.dimension > 1:
        yield "structure.png", _structure(result.algebra.structure_constants)
    if generators is not None and picture.ndim == 2 and max(picture.shape) <= MOST_DENSE:
        yield "matrices.png", _matrices(generators, true, picture.shape)


def _fields(generators: AffineGenerators | FieldGenerators, picture: Array) -> Figure:
    from matplotlib.figure import Figure

    fields = fields_of(generators, picture.shape).reshape(generators.num_generators, 2, *picture.shape)
    index, _, _ = grid_points(picture.shape, max(1, max(picture.shape) // 14))
    at = tuple(index.astype(int))
    figure = Figure(figsize=(4 * len(fields), 4))
    axes = figure.subplots(1, len(fields), squeeze=False)
    for k, (axis, field) in enumerate(zip(axes[0], fields, strict=True)):
        axis.imshow(picture, cmap="gray")
        axis.quiver(index[1], index[0], field[1][at], field[0][at], color="tab:orange", angles="xy")
        axis.set_title(f"$v_{k + 1}$")
        axis.set_axis_off()
    return figure


def _spectrum(result: Result) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2))
    axis = figure.subplots()
    axis.semilogy(np.arange(1, len(result.spectrum) + 1), np.maximum(result.spectrum, 1e-12), "o-")
    axis.axvline(result.dimension + 0.5, color="tab:red", linestyle=":", label=f"dimension {result.dimension}")
    axis.set_xlabel("singular value")
    axis.set_ylabel("motion in pixels, RMS")
    axis.legend()
    return figure


def _structure(constants: Array) -> Figure:
    from matplotlib.figure import Figure

    bound = np.abs(constants).max() or 1.0
    figure = Figure(figsize=(2.6 * len(constants), 2.8))
    axes = figure.subplots(1, len(constants), squeeze=False)
    for i, (axis, rows) in enumerate(zip(axes[0], constants, strict=True)):
        axis.imshow(rows, cmap="RdBu", vmin=-bound, vmax=bound)
        axis.set_title(f"$[L_{i + 1}, L_j]$")
        axis.set_xlabel("k")
        axis.set_ylabel("j")
    return figure


def _matrices(generators: Generators, true: Generators | None, spatial: tuple[int, ...]) -> Figure:
    from matplotlib.figure import Figure

    rows = [("learned", generators)] + ([("true", true)] if true is not None else [])
    count = generators.num_generators
    figure = Figure(figsize=(3 * count, 3 * len(rows)))
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, which) in zip(axes, rows, strict=True):
        matrices = which.to_dense(spatial).detach().double().cpu().numpy()
        for k, (axis, matrix) in enumerate(zip(line, matrices, strict=False)):
            bound = np.abs(matrix).max() or 1.0
            axis.imshow(matrix, cmap="RdBu", vmin=-bound, vmax=bound)
            axis.set_title(f"{name} $L_{k + 1}$")
            axis.set_axis_off()
    return figure
