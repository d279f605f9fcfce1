"""What a discovery found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lconv_fast.discovery.algebra import Algebra
from lconv_fast.discovery.fields import Array
from lconv_fast.generators import Generators
from lconv_fast.outputs import filled

FILES = ("result.json", "result.safetensors")


@dataclass(frozen=True)
class Found:
    """What a route hands over. Attributes as of Result, and

    route: how it was found, in words.
    interrupted: by Ctrl-C: what the pairs showed until then.
    """

    route: str
    parameters: Array  # (P, n_L)
    explained: Array  # (P,)
    residual: float
    generators: Generators | None = None
    p_values: list[float] = field(default_factory=list)
    spectrum: Array = field(default_factory=lambda: np.zeros(0))
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Result:
    """Attributes:

    generators: ready for LConv2d(..., generators=result.generators), in pixel coordinates; None if dimension is 0.
    parameters: (P, n_L) estimated t of each pair; NaN for a pair that no warp of the family explains.
    explained: (P,), of each y's variance; below 0.5, the pair takes no part.
    residual: mean square of y - exp(sum_i t_i L_i) x over the points that stay in the grid, in units of y's variance.
    dimension: n_L; p_values: of the rank test for dimensions 0, 1, ..., or of each labelled generator being zero.
    alpha: the level of these tests.
    algebra: of the span; None where the kind has no brackets, and where the residual is too large to name one.
    spectrum: singular values of the pairs' fields, in pixels (root mean square over points and pairs).
    data: the shape of x as it was understood. interrupted: by Ctrl-C: what the pairs showed until then.
    """

    kind: str
    route: str
    data: str
    pairs: int  # that came in; len(parameters) where it was interrupted
    parameters: Array
    explained: Array
    generators: Generators | None
    residual: float
    p_values: list[float]
    alpha: float
    algebra: Algebra | None
    spectrum: Array
    seconds: float
    interrupted: bool
    notes: list[str]

    @property
    def dimension(self) -> int:
        return 0 if self.generators is None else self.generators.num_generators

    def summary(self) -> str:
        """A few lines of text: what came in, what was found, and what to mind."""
        used = len(self.parameters)
        lines = [f"INTERRUPTED after {used} of {self.pairs} pairs: not the whole result"] if self.interrupted else []
        lines += [
            f"data: {self.data}",
            f"{self.dimension} generator(s) of kind {self.kind!r} from {used} pairs by {self.route}",
        ]
        if self.dimension:
            lines.append(f"residual {self.residual:.3g} of the variance, in {self.seconds:.1f} s")
        if self.algebra is not None:
            lines.append(str(self.algebra))
        if self.p_values:
            values = ", ".join(f"{p:.2g}" for p in self.p_values)
            lines.append(f"p-values {values} at the level {self.alpha}")
        return "\n".join([*lines, *self.notes])

    def save(self, folder: str | Path) -> None:
        """Writes result.json, and result.safetensors with the generators' numbers and the parameters, into a folder
        that is made if it is missing. Needs safetensors."""
        with filled(folder, FILES) as place:
            self.write(place)

    def write(self, place: Path) -> None:
        """The files of `save`, one by one into a folder that is there."""
        from safetensors.numpy import save_file

        tensors = {"parameters": self.parameters, "spectrum": self.spectrum, "explained": self.explained}
        names = ("kind", "route", "data", "pairs", "residual", "dimension", "p_values", "alpha", "seconds")
        about: dict[str, Any] = {name: getattr(self, name) for name in (*names, "interrupted", "notes")}
        if self.generators is not None:
            state = self.generators.state_dict()
            tensors |= {f"generators.{name}": t.detach().cpu().numpy() for name, t in state.items()}
            about["generators"] = repr(self.generators)
        if self.algebra is not None:
            tensors |= {"structure_constants": self.algebra.structure_constants}
            about["algebra"] = str(self.algebra)
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, place / "result.safetensors")
        (place / "result.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
