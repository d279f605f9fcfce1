"""What a discovery found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lconv_fast.discovery.algebra import Algebra
from lconv_fast.discovery.flows import Array
from lconv_fast.generators import Generators


@dataclass
class Result:
    """Attributes:

    generators: ready for LConv2d(..., generators=result.generators), in pixel coordinates; None if dimension is 0.
    parameters: (P, n_L) estimated t of each pair; NaN for a pair that no warp of the family explains.
    residual: mean square of y - exp(sum_i t_i L_i) x over the points that stay in the grid, in units of y's variance.
    dimension: n_L; p_values: of the rank test for dimensions 0, 1, ..., or of each labelled generator being zero.
    algebra: of the span, None where the kind has no brackets.
    spectrum: singular values of the pairs' fields, in pixels (root mean square over points and pairs).
    """

    kind: str
    route: str
    parameters: Array
    explained: Array  # (P,) fraction of each y's variance; below 0.5, the pair takes no part
    generators: Generators | None = None
    residual: float = 1.0
    dimension: int = 0
    p_values: list[float] = field(default_factory=list)
    alpha: float = 0.01
    algebra: Algebra | None = None
    spectrum: Array = field(default_factory=lambda: np.zeros(0))
    seconds: float = 0.0
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        lines = [
            f"{self.dimension} generator(s) of kind {self.kind!r} from {len(self.parameters)} pairs by {self.route}"
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
        """result.json, and result.safetensors with the generators' numbers and the parameters (needs safetensors)."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"parameters": self.parameters, "spectrum": self.spectrum, "explained": self.explained}
        about: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "kind",
                "route",
                "residual",
                "dimension",
                "p_values",
                "alpha",
                "seconds",
                "interrupted",
                "notes",
            )
        }
        if self.generators is not None:
            state = self.generators.state_dict()
            tensors |= {f"generators.{name}": t.detach().cpu().numpy() for name, t in state.items()}
            about["generators"] = repr(self.generators)
        if self.algebra is not None:
            tensors |= {"structure_constants": self.algebra.structure_constants}
            about["algebra"] = str(self.algebra)
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "result.safetensors")
        (folder / "result.json").write_text(json.dumps(about, indent=1))
