"""Searches by registration: where they start, when they start again, and which polynomials a free field needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from lconv_fast.discovery.fields import Affine, Array, Family, Polynomial, grid_points
from lconv_fast.discovery.problem import Problem
from lconv_fast.discovery.routes.registration import EXACT, Fit, register

FREE_DEGREES = (1, 3, 5, 7)  # of the polynomials that a free field may turn out to be
HIGHEST_DEGREE = 8
REFINING_BLUR = 2.0  # pixels: a field that starts from a smaller family's needs no coarser view
FEW = 3  # pairs that tell for all which degree and which interpolation they need

Report = Callable[[str, float], None]


def family_of(problem: Problem) -> Family | None:
    """The family of `kind` and `degree`; None for a free field: the data choose."""
    if problem.kind == "affine":
        return Affine(problem.ndim)
    if problem.degree is None:
        return None
    if not 0 <= problem.degree <= HIGHEST_DEGREE:
        raise ValueError(f"degree: expected 0 to {HIGHEST_DEGREE}, got {problem.degree!r}")
    return Polynomial(problem.ndim, problem.degree)


def check_count(name: str, count: int, family: Family | None) -> None:
    """`count` independent generators are in the family."""
    if family is None or count <= family.size:
        return
    kind = "affine fields" if isinstance(family, Affine) else "polynomial fields of that degree"
    raise ValueError(
        f"{name}: expected at most {family.size} generators, as many as independent {kind} on {family.ndim} "
        f"{'axis' if family.ndim == 1 else 'axes'}, got {count}"
    )


def other_starts(family: Family) -> list[Array]:
    """Where the coarse search begins: at the identity, and for affine fields at rotations by 0.6 radians and shifts by
    a seventh of the extent, each way along and about each axis."""
    starts = [np.zeros((1, family.size))]
    if not isinstance(family, Affine):
        return starts
    for a in range(family.ndim):
        rows = np.zeros((family.ndim, family.ndim + 1))
        rows[a, -1] = 0.3
        starts += [rows.reshape(1, -1), -rows.reshape(1, -1)]
        for b in range(a):
            rows = np.zeros((family.ndim, family.ndim + 1))
            rows[a, b], rows[b, a] = 0.6, -0.6
            starts += [rows.reshape(1, -1), -rows.reshape(1, -1)]
    return starts


def free_ladder(x: Array, y: Array, t: Array, report: Report) -> Iterator[tuple[Family, Fit]]:
    """Polynomials of rising degree, each starting where the one before it ended, as long as a degree pays for its
    numbers (Schwarz's criterion): the last is the best."""
    _, points, _ = grid_points(x.shape[2:])
    lowest, best = math.inf, None
    for k, degree in enumerate(FREE_DEGREES):
        family = Polynomial(x.ndim - 2, degree)
        if best is not None and 4 * t.shape[1] * family.size > x[:, 0].size:
            return
        report(f"a field of degree {degree}", k / len(FREE_DEGREES))
        if best is None:
            fit = register(x, y, t, family)
        else:
            starts = [as_in(family, *best, points)]
            fit = register(x, y, t, family, starts=starts, blur=REFINING_BLUR)
        independent = max(fit.points / fit.inflation, 3.0)
        score = independent * math.log(fit.unexplained) + t.shape[1] * family.size * math.log(independent)
        if score >= lowest:
            return
        lowest, best = score, (family, fit.theta)
        yield family, fit


def as_in(family: Family, smaller: Family, theta: Array, points: Array) -> Array:
    """The same fields (n_L, size) in a family that holds the smaller one."""
    fields = np.stack([smaller.field(m, points) for m in theta])
    return (fields @ np.linalg.pinv(family.basis(points))).reshape(len(theta), -1)


def free_families(x: Array, y: Array, report: Report) -> list[Family]:
    """Up to a degree that serves the first pairs, each with a field of its own."""
    most = 0
    for p in range(min(FEW, len(x))):
        for family, _ in free_ladder(x[p : p + 1], y[p : p + 1], np.ones((1, 1)), report):
            most = max(most, family.size)
    ladder = (Polynomial(x.ndim - 2, degree) for degree in FREE_DEGREES)
    return [family for family in ladder if family.size <= most]


def register_pair(x: Array, y: Array, families: list[Family], interpolation: str | None) -> Fit:
    """One pair through families that hold each other, each starting where the one before it ended."""
    _, points, _ = grid_points(x.shape[2:])
    fit, before = None, families[0]
    for family in families:
        if fit is None:
            fit = register(x, y, np.ones((1, 1)), family, interpolation=interpolation)
        else:
            starts = [as_in(family, before, fit.theta, points)]
            fit = register(
                x, y, np.ones((1, 1)), family, starts=starts, interpolation=interpolation, blur=REFINING_BLUR
            )
        before = family
    assert fit is not None
    return fit


def search_again(
    x: Array, y: Array, t: Array, family: Family, starts: list[Array], interpolation: str | None, fit: Fit
) -> Fit:
    """Returns the best of `fit` and of what the starts lead to, without the coarsest blurs and with them: they can
    carry what lies outside the grid so far inside that all starts end in one wrong valley."""
    for blur in (max(x.shape[2:]) / 15, max(x.shape[2:]) / 30, math.inf):
        again = register(x, y, t, family, starts=starts, interpolation=interpolation, blur=blur)
        fit = min(fit, again, key=lambda found: found.unexplained)
        if fit.explained > 0.9:
            break
    return fit


def outliers(fits: list[Fit]) -> Array:
    """Which pairs have a residual far above what is usual among them: a search that ended in the wrong valley."""
    ratios = np.log([min(fit.unexplained, 1 / EXACT) for fit in fits])  # infinite where no point stayed inside
    middle = np.median(ratios)
    spread = 1.4826 * np.median(np.abs(ratios - middle))
    return (ratios > middle + max(5 * spread, math.log(4))) & (ratios > math.log(1e-6))
