"""Named bases of Lie algebras of affine vector fields, v_i(x) = matrix_i x + shift_i (MATH: eq. 9 of Dehmamy et al.
2021). Axes are counted in tensor order: in 2D, axis 0 is the row y and axis 1 the column x."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from numbers import Integral

import torch
from torch import Tensor

from lconv_fast.checks import choice

Field = tuple[Tensor, Tensor]  # matrix (n, n), shift (n,)


def _unit(n: int, a: int, b: int) -> Tensor:
    """The matrix of x^b d_a."""
    matrix = torch.zeros(n, n)
    matrix[a, b] = 1.0
    return matrix


def _linear(matrices: list[Tensor], n: int) -> list[Field]:
    return [(matrix, torch.zeros(n)) for matrix in matrices]


def translation(n: int) -> list[Field]:
    """d_a."""
    return [(torch.zeros(n, n), torch.eye(n)[a]) for a in range(n)]


def rotation(n: int) -> list[Field]:
    """x^a d_b - x^b d_a for a < b; in 2D, y d_x - x d_y with (y, x) = (axis 0, axis 1)."""
    return _linear([_unit(n, b, a) - _unit(n, a, b) for a, b in combinations(range(n), 2)], n)


def scaling(n: int) -> list[Field]:
    """x^a d_a, summed."""
    return _linear([torch.eye(n)], n)


def special_linear(n: int) -> list[Field]:
    """The traceless matrices: x^b d_a for a != b, then x^a d_a - x^(a+1) d_(a+1)."""
    off_diagonal = [_unit(n, a, b) for a in range(n) for b in range(n) if a != b]
    diagonal = [_unit(n, a, a) - _unit(n, a + 1, a + 1) for a in range(n - 1)]
    return _linear(off_diagonal + diagonal, n)


def general_linear(n: int) -> list[Field]:
    """x^b d_a for all a, b."""
    return _linear([_unit(n, a, b) for a in range(n) for b in range(n)], n)


def lorentz(n: int) -> list[Field]:
    """Axis 0 is time t: boosts t d_a + x^a d_t, then the rotations of space."""
    boosts = [_unit(n, a, 0) + _unit(n, 0, a) for a in range(1, n)]
    rotations = [_unit(n, b, a) - _unit(n, a, b) for a, b in combinations(range(1, n), 2)]
    return _linear(boosts + rotations, n)


ALGEBRAS: dict[str, Callable[[int], list[Field]]] = {
    "translation": translation,
    "rotation": rotation,
    "scaling": scaling,
    "se": lambda n: translation(n) + rotation(n),
    "similitude": lambda n: translation(n) + rotation(n) + scaling(n),
    "sl": special_linear,
    "gl": general_linear,
    "affine": lambda n: general_linear(n) + translation(n),
    "lorentz": lorentz,
}


def named(name: str, ndim: int) -> tuple[Tensor, Tensor]:
    """The basis `name` on `ndim` axes: matrix (n_L, n, n) and shift (n_L, n), in torch's default dtype.

    Raises ValueError for a name that is not in ALGEBRAS, and for one that has no generators on so few axes.
    """
    choice("generators", name, ALGEBRAS)
    check_ndim(ndim)
    fields = ALGEBRAS[name](ndim)
    if not fields:
        raise ValueError(f"generators: {name!r} has no generators on {ndim} axis")
    return torch.stack([matrix for matrix, _ in fields]), torch.stack([shift for _, shift in fields])


def check_ndim(ndim: object) -> None:
    if isinstance(ndim, bool) or not isinstance(ndim, Integral) or ndim not in (1, 2, 3):
        raise ValueError(f"ndim: expected 1, 2 or 3 axes, got {ndim!r}")
