"""Direct route, unlabelled pairs: a field for each pair, and a test for the dimension of their span."""

from __future__ import annotations

import math

import numpy as np

from lconv_fast.discovery.dimension import rank_test
from lconv_fast.discovery.fields import Affine, Array, Family, generators_of, grid_points
from lconv_fast.discovery.problem import EXPLAINED, Problem
from lconv_fast.discovery.result import Found
from lconv_fast.discovery.routes.registration import Fit
from lconv_fast.discovery.routes.search import (
    FEW,
    check_count,
    family_of,
    free_families,
    other_starts,
    outliers,
    register_pair,
    search_again,
)

ROUTE = "registration of each pair"
RESOLUTION, FREE_RESOLUTION = 0.01, 0.2  # pixels


def from_unlabelled(problem: Problem) -> Found:
    """y_p = x_p o phi(m_p) for each pair, and the smallest rank of m_p = sum_i t[p,i] L_i that is not rejected.
    Without a family: free fields."""
    chosen = family_of(problem)
    if problem.num_generators is not None:
        check_count("num_generators", problem.num_generators, chosen)
    resolution = problem.resolution
    if resolution is None:
        resolution = RESOLUTION if chosen else FREE_RESOLUTION
    families = [chosen] if chosen else free_families(problem.images, problem.targets, problem.report)
    fits, interrupted = _search(problem, families)
    family = families[-1]
    explained = np.array([fit.explained for fit in fits])
    used = (explained > EXPLAINED) & np.logical_not(outliers(fits))
    if used.sum() < max(1, len(fits) / 2):
        note = (
            f"no warp of the family explains {EXPLAINED:.0%} of the variance in {(~used).sum()} of {len(fits)} pairs: "
            "no symmetry of this kind is identifiable from this data"
        )
        none = np.full((len(fits), 0), np.nan)
        return Found(ROUTE, none, explained, 1.0, notes=[note], interrupted=interrupted)
    good = [fit for fit, use in zip(fits, used, strict=True) if use]
    rank, notes = _rank(problem.num_generators, len(good), family, interrupted)
    _, points, half = grid_points(problem.spatial)
    metric = family.gram(points)
    floor = (resolution / half) ** 2 * np.linalg.pinv(metric) / family.size
    covariances = np.stack([fit.covariance + floor for fit in good])
    m = np.stack([fit.theta[0] for fit in good])
    test = rank_test(m, covariances, metric, problem.alpha, rank)
    if rank is not None and (least := rank_test(m, covariances, metric, problem.alpha).dimension) < rank:
        notes.append(f"a test at the level {problem.alpha} finds {least} generators: others are within the noise")
    if test.dimension == 0:
        notes.append(f"no pair moves by more than its noise, or than the resolution of {resolution} pixels")
    elif rank is None and min(len(good) - 1, family.size) <= test.dimension < family.size:
        notes.append(f"{len(good)} pairs show {test.dimension} generators and could show no more: there may be others")
    if test.dimension and not used.all():
        notes.append(
            f"pairs {np.nonzero(~used)[0].tolist()[:10]} are not explained by a warp of the family like the others: "
            "they took no part"
        )
    unit = _unit(family, test.basis, half)
    parameters = np.full((len(fits), test.dimension), np.nan)
    parameters[used] = test.coefficients / unit
    return Found(
        ROUTE,
        parameters,
        explained,
        float(np.mean([fit.unexplained for fit in good])),
        generators=generators_of(family, test.basis * unit[:, None], problem.spatial) if test.dimension else None,
        p_values=test.p_values,
        spectrum=test.singular_values * half,
        notes=notes,
        interrupted=interrupted,
    )


def _search(problem: Problem, families: list[Family]) -> tuple[list[Fit], bool]:
    """Registers each pair, then the doubtful ones again; and whether it was interrupted, which leaves the pairs that
    are done, two at least."""
    x, y, family, count = problem.images, problem.targets, families[-1], problem.pairs
    fits: list[Fit] = []
    interpolation = None
    try:
        for p in range(count):
            problem.report(f"pair {p + 1} of {count}", p / count)
            fits.append(register_pair(x[p : p + 1], y[p : p + 1], families, interpolation))
            if p + 1 == FEW:
                chosen = [fit.interpolation for fit in fits]
                interpolation = max(set(chosen), key=chosen.count)
        # Again from elsewhere, and from where the others went.
        doubtful = np.nonzero(outliers(fits) | np.array([fit.explained < 0.9 for fit in fits]))[0]
        for k, p in enumerate(doubtful.tolist()):
            problem.report(f"pair {p + 1} once more, {k + 1} of {len(doubtful)}", k / len(doubtful))
            settled = [fit.theta for q, fit in enumerate(fits) if q not in doubtful]
            starts = [*other_starts(family), *settled[:: max(1, len(settled) // 6)]]
            fits[p] = search_again(x[p : p + 1], y[p : p + 1], np.ones((1, 1)), family, starts, interpolation, fits[p])
    except KeyboardInterrupt:
        if len(fits) < 2:
            raise
        return fits, True
    return fits, False


def _rank(wanted: int | None, pairs: int, family: Family, interrupted: bool) -> tuple[int | None, list[str]]:
    """The rank that is asked for, as far as there is one: an interrupted search and a free field may hold fewer."""
    if wanted is None or wanted <= min(pairs, family.size):
        return wanted, []
    if pairs < wanted and not interrupted:
        raise ValueError(f"x: {pairs} pairs that a warp explains cannot identify {wanted} generators")
    most = min(pairs, family.size)
    held = f"{pairs} pairs" if pairs < family.size else f"a field of {family.size} numbers"
    return most, [f"{wanted} generators were asked for, and {held} can show {most}"]


def _unit(family: Family, basis: Array, half: float) -> Array:
    """A factor for each field that makes its parameter an angle, a logarithm of scale, or pixels: |A| = sqrt(2), or
    |b| = 1 for what is mostly a translation; other fields move points by one pixel in the root mean square."""
    if not isinstance(family, Affine):
        return np.full(len(basis), 1 / half)
    rows = basis.reshape(len(basis), family.ndim, family.ndim + 1)
    linear, shift = np.linalg.norm(rows[:, :, :-1], axis=(1, 2)), np.linalg.norm(rows[:, :, -1], axis=1)
    mostly_shift = linear < 0.1 * shift
    return np.where(mostly_shift, 1 / (half * np.maximum(shift, 1e-300)), math.sqrt(2) / np.maximum(linear, 1e-300))
