"""Direct route, labelled pairs: one fit of all fields to all pairs at once."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from lconv_fast.discovery.fields import generators_of, grid_points
from lconv_fast.discovery.problem import EXPLAINED, Problem
from lconv_fast.discovery.result import Found
from lconv_fast.discovery.routes.registration import Fit, register
from lconv_fast.discovery.routes.search import check_count, family_of, free_ladder, other_starts, search_again

ROUTE = "joint registration"


def from_labelled(problem: Problem) -> Found:
    """minimise over theta sum_p |y_p - x_p o phi(sum_i t[p,i] theta_i)|^2; fields that are zero within their noise, by
    Wald's test at the level alpha, are left out. Without a family: free fields."""
    assert problem.t is not None
    x, y, t, family = problem.images, problem.targets, problem.t, family_of(problem)
    check_count("parameters", t.shape[1], family)
    _, points, half = grid_points(problem.spatial)
    size = np.abs(t).max(0)
    scaled = t / size  # fields of the largest motion seen: O(1) whatever the unit of t
    problem.report("joint registration", 0.0)
    fit: Fit | None = None
    interrupted = False
    try:
        if family is None:
            for family, fit in free_ladder(x, y, scaled, problem.report):  # noqa: B007
                pass
        else:
            fit = register(x, y, scaled, family)
        assert family is not None and fit is not None
        if fit.explained < 0.9 and t.shape[1] == 1:
            problem.report("joint registration from other starts", 0.5)
            fit = search_again(x, y, scaled, family, other_starts(family), None, fit)
    except KeyboardInterrupt:
        if family is None or fit is None:
            raise
        interrupted = True
    explained = np.full(len(x), fit.explained)
    if fit.explained < EXPLAINED:
        note = f"no warp of the family explains {EXPLAINED:.0%} of the variance with these labels: not identifiable"
        return Found(ROUTE, t[:, :0], explained, fit.unexplained, notes=[note], interrupted=interrupted)
    p_values = _wald(fit, family.size)
    moving = [p < problem.alpha for p in p_values]
    return Found(
        ROUTE,
        t[:, moving],
        explained,
        fit.unexplained,
        generators=generators_of(family, (fit.theta / size[:, None])[moving], problem.spatial) if any(moving) else None,
        p_values=p_values,
        spectrum=half * np.sqrt(np.einsum("ia,ab,ib->i", fit.theta, family.gram(points), fit.theta)),
        notes=[f"generator {i} is zero within its noise" for i, moves in enumerate(moving) if not moves],
        interrupted=interrupted,
    )


def _wald(fit: Fit, width: int) -> list[float]:
    """For each field the probability of an estimate as far from zero, if it were zero: chi^2 of theta^T C^-1 theta."""
    values = []
    for i, theta in enumerate(fit.theta):
        own = slice(i * width, (i + 1) * width)
        values.append(float(chi2.sf(float(theta @ np.linalg.pinv(fit.covariance[own, own]) @ theta), width)))
    return values
