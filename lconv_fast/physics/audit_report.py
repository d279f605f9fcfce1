"""What an audit found: a table, and pictures (matplotlib)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass
class Layer:
    """A module's own error |J L f - L Q[f]|, for every generator."""

    path: str
    name: str  # the class
    leaf: bool  # without modules inside
    grid: tuple[int, ...]  # of its first result; () for vectors
    interior: Tensor  # (n_L,): relative to max(|J L f|, |L Q[f]|) in the interior; for vectors, to |Q[f]|
    boundary: Tensor  # (n_L,): the same within the margin
    rate: Tensor  # (n_L,): relative to |Q[f]|, everywhere: d/dt of `equivariance_error` at t = 0
    method: str  # of the derivative: forward, double backward or difference
    map: Tensor | None  # (n_L, *grid): the error at each point, over batch and channels; float32


@dataclass
class Audit:
    """The rows of an audit, in the order in which the model called its modules; the first, '', is the whole model."""

    layers: list[Layer]
    generators: list[str]

    def __getitem__(self, path: str) -> Layer:
        """The first call of the module at `path`."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(f"{path!r}: expected one of {', '.join(repr(layer.path) for layer in self.layers)}")

    def worst(self) -> Layer:
        """The innermost module with the largest error in the interior."""
        leaves = [layer for layer in self.layers if layer.leaf]
        return max(leaves or self.layers, key=lambda layer: layer.interior.max().item())

    def table(self) -> str:
        """One line a module: path, class, grid, and interior / boundary for every generator."""
        rows = [["module", "class", "grid", "by", *(f"{g} interior / boundary" for g in self.generators)]]
        for layer in self.layers:
            pairs = zip(layer.interior.tolist(), layer.boundary.tolist(), strict=True)
            size = " x ".join(map(str, layer.grid)) or "-"
            rows.append(
                [layer.path or "(model)", layer.name, size, layer.method, *(f"{a:.1e} / {b:.1e}" for a, b in pairs)]
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    __str__ = table

    def picture(self, path: str | Path, most: int = 6) -> Path:
        """Writes a bar for every module, and heat maps of the `most` largest errors on 2D grids. Needs matplotlib."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        shown = [layer for layer in self.layers if layer.map is not None and layer.map.dim() == 3]
        shown = sorted(shown, key=lambda layer: -layer.interior.max().item())[:most]
        figure = pyplot.figure(figsize=(max(8.0, 2.6 * len(shown)), 6.5), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
        axis = upper.subplots()
        at = range(len(self.layers))
        for part, color in (("boundary", "tab:gray"), ("interior", "tab:red")):
            values = [max(getattr(layer, part).max().item(), 1e-16) for layer in self.layers]
            axis.bar([k + (0.2 if part == "interior" else -0.2) for k in at], values, 0.4, label=part, color=color)
        axis.set_yscale("log")
        axis.set_xticks(
            list(at), [layer.path or "(model)" for layer in self.layers], rotation=60, ha="right", fontsize=7
        )
        axis.set_ylabel("relative error")
        axis.legend()
        for axis, layer in zip(lower.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False):
            assert layer.map is not None
            index = int(layer.interior.argmax())
            image = axis.imshow(layer.map[index].numpy(), cmap="magma")
            axis.set_title(f"{layer.path or '(model)'}\n{self.generators[index]}", fontsize=8)
            axis.set_axis_off()
            figure.colorbar(image, ax=axis, shrink=0.7)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        return Path(path)
