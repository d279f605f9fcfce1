"""Central finite differences for first derivatives on a unit grid."""

from __future__ import annotations

# accuracy p: weights c_1, c_2, ... of (f[x + k] - f[x - k]), with error O(h^p).
# Fornberg, "Generation of finite difference formulas on arbitrarily spaced grids", Math. Comp. 51 (1988), table 1.
CENTRAL: dict[int, tuple[float, ...]] = {
    2: (1 / 2,),
    4: (2 / 3, -1 / 12),
    6: (3 / 4, -3 / 20, 1 / 60),
    8: (4 / 5, -1 / 5, 4 / 105, -1 / 280),
}


def central(accuracy: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Offsets and weights of d f(x) = sum_j weights[j] f(x + offsets[j]).

    Raises ValueError for an accuracy that is not in the table.
    """
    if isinstance(accuracy, bool) or accuracy not in CENTRAL:
        valid = ", ".join(map(str, CENTRAL))
        raise ValueError(f"accuracy: expected one of {valid}, got {accuracy!r}")
    half = CENTRAL[accuracy]
    reach = len(half)
    offsets = (*range(-reach, 0), *range(1, reach + 1))
    return offsets, (*(-c for c in reversed(half)), *half)
