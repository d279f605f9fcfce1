"""What the experiments with differential equations share: contenders, and what is measured of a rollout."""

from __future__ import annotations

from functools import partial

from common import Make, conv, is_quick, unit
from torch import Tensor
from torus import relative

ROLLOUT, LONG = 20, 40 if is_quick() else 200
LAYERS: dict[str, Make] = {
    "conv": conv,
    "conv 5": partial(conv, size=5),
    "laplacian": unit("laplacian"),
    "laplacian, order 6": unit("laplacian", 6),
}
ONE_LAYER = "one layer, laplacian, order 6"  # once, and not in a series
STABLE = 2.0  # of a rollout: its size at the end over that at the start


def names(ndim: int) -> list[str]:
    """Kernels of 5^3 points leave no time to learn."""
    return [name for name in (*LAYERS, ONE_LAYER) if ndim < 3 or name != "conv 5"]


def layer_of(contender: str) -> Make:
    return LAYERS[contender.removeprefix("one layer, ")]


def measures_of_rollout(found: Tensor, truth: Tensor, start: Tensor) -> dict[str, float]:
    """Errors after ROLLOUT and LONG steps, relative to the truth there, and the share of rollouts that stay bounded.

    found and truth (N, steps, *spatial), start (N, *spatial).
    """
    size = found[:, -1].flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)
    errors = [relative(found[:, steps - 1], truth[:, steps - 1]) for steps in (ROLLOUT, LONG)]
    # One that is not a number is not stable.
    return {"rollout_20": errors[0], "rollout_200": errors[1], "stable": (size < STABLE).double().mean().item()}
