"""Pictures of a discovery: fields over an image, the spectrum, structure constants, L as a matrix. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from lconv_fast.discovery.fields import fields_of, grid_points
from lconv_fast.discovery.result import Result
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators

MOST_DENSE = 24  # points a side of the grid that L is shown on


def draw(result: Result, image: Tensor, folder: str | Path, true: Generators | None = None) -> list[Path]:
    """Writes fields.png, spectrum.png, structure.png and matrices.png, as far as the result has them.

    Args:
        result: of `discover` on images with 2 spatial axes.
        image: (C, H, W) or (H, W), drawn under the fields.
        folder: is made if it is missing.
        true: generators whose matrices are drawn beside.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def save(name: str) -> None:
        pyplot.savefig(folder / name, dpi=110, bbox_inches="tight")
        pyplot.close()
        written.append(folder / name)

    picture = image.detach().cpu().double().numpy()
    picture = picture.mean(0) if picture.ndim == 3 else picture
    generators = result.generators
    if isinstance(generators, AffineGenerators | FieldGenerators) and picture.ndim == 2:
        fields = fields_of(generators, picture.shape).reshape(generators.num_generators, 2, *picture.shape)
        index, _, _ = grid_points(picture.shape, max(1, max(picture.shape) // 14))
        at = tuple(index.astype(int))
        _, axes = pyplot.subplots(1, len(fields), figsize=(4 * len(fields), 4), squeeze=False)
        for k, (axis, field) in enumerate(zip(axes[0], fields, strict=True)):
            axis.imshow(picture, cmap="gray")
            axis.quiver(index[1], index[0], field[1][at], field[0][at], color="tab:orange", angles="xy")
            axis.set_title(f"$v_{k + 1}$")
            axis.set_axis_off()
        save("fields.png")
    if len(result.spectrum):
        pyplot.figure(figsize=(4.5, 3.2))
        pyplot.semilogy(np.arange(1, len(result.spectrum) + 1), np.maximum(result.spectrum, 1e-12), "o-")
        pyplot.axvline(result.dimension + 0.5, color="tab:red", linestyle=":", label=f"dimension {result.dimension}")
        pyplot.xlabel("singular value")
        pyplot.ylabel("motion in pixels, RMS")
        pyplot.legend()
        save("spectrum.png")
    if result.algebra is not None and result.dimension > 1:
        constants = result.algebra.structure_constants
        bound = np.abs(constants).max() or 1.0
        _, axes = pyplot.subplots(1, len(constants), figsize=(2.6 * len(constants), 2.8), squeeze=False)
        for i, (axis, rows) in enumerate(zip(axes[0], constants, strict=True)):
            axis.imshow(rows, cmap="RdBu", vmin=-bound, vmax=bound)
            axis.set_title(f"$[L_{i + 1}, L_j]$")
            axis.set_xlabel("k")
            axis.set_ylabel("j")
        save("structure.png")
    if generators is not None and picture.ndim == 2 and max(picture.shape) <= MOST_DENSE:
        rows = [("learned", generators)] + ([("true", true)] if true is not None else [])
        count = generators.num_generators
        _, axes = pyplot.subplots(len(rows), count, figsize=(3 * count, 3 * len(rows)), squeeze=False)
        for line, (name, which) in zip(axes, rows, strict=True):
            matrices = which.to_dense(picture.shape).detach().double().cpu().numpy()  # type: ignore[operator]
            for k, (axis, matrix) in enumerate(zip(line, matrices, strict=False)):
                bound = np.abs(matrix).max() or 1.0
                axis.imshow(matrix, cmap="RdBu", vmin=-bound, vmax=bound)
                axis.set_title(f"{name} $L_{k + 1}$")
                axis.set_axis_off()
        save("matrices.png")
    return written
