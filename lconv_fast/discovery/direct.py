"""The direct route: fields by registration of each pair, or of all pairs at once if they are labelled."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import chi2

from lconv_fast.discovery.dimension import rank_test
from lconv_fast.discovery.flows import Affine, Array, Family, Polynomial, grid_points
from lconv_fast.discovery.registration import Fit, register
from lconv_fast.discovery.result import Result
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators

FREE_DEGREES = (1, 3, 5, 7)  # of the polynomials that a free field may turn out to be
RESOLUTION, FREE_RESOLUTION = 0.01, 0.2  # pixels
REFINING_BLUR = 2.0  # pixels: a field that starts from a smaller family's needs no coarser view
EXPLAINED = 0.5  # of y's variance: what a warp must explain of a pair for it to count as one


def family_of(kind: str, ndim: int, degree: int | None) -> Family | None:
    """None for a free field: the data choose."""
    if kind == "affine":
        return Affine(ndim)
    if kind != "field":
        raise ValueError(f"route: 'direct' takes kind 'affine' and 'field', got kind {kind!r}")
    if degree is None:
        return None
    if not 0 <= degree <= 8:
        raise ValueError(f"degree: expected 0 to 8, got {degree!r}")
    return Polynomial(ndim, degree)


def _generators(family: Family, numbers: Array, spatial: tuple[int, ...]) -> Generators:
    """Fields (n_L, size) in units of half the extent as generators in pixels."""
    _, points, scale = grid_points(spatial)
    if isinstance(family, Affine):
        rows = numbers.reshape(len(numbers), family.ndim, family.ndim + 1)
        matrix, shift = torch.from_numpy(rows[:, :, :-1].copy()), torch.from_numpy(rows[:, :, -1] * scale)
        return AffineGenerators(matrix.float(), shift.float(), coordinate_scale=1.0)
    fields = np.stack([family.field(m, points) * scale for m in numbers])
    return FieldGenerators(torch.from_numpy(fields.reshape(len(numbers), family.ndim, *spatial)).float())


def _unit(family: Family, basis: Array, scale: float) -> Array:
    """A factor for each field that makes its parameter an angle, a logarithm of scale, or pixels: |A| = sqrt(2), or
    |b| = 1 for what is mostly a translation; other fields move points by one pixel in the root mean square."""
    if not isinstance(family, Affine):
        return np.full(len(basis), 1 / scale)
    rows = basis.reshape(len(basis), family.ndim, family.ndim + 1)
    linear, shift = np.linalg.norm(rows[:, :, :-1], axis=(1, 2)), np.linalg.norm(rows[:, :, -1], axis=1)
    mostly_shift = linear < 0.1 * shift
    return np.where(mostly_shift, 1 / (scale * np.maximum(shift, 1e-300)), math.sqrt(2) / np.maximum(linear, 1e-300))


def _starts(family: Family) -> list[Array]:
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


def _free(x: Array, y: Array, t: Array, report: Callable[[str, float], None]) -> tuple[Family, Fit]:
    """The polynomial whose degree pays for its numbers (Schwarz's criterion), each starting where the one before it
    ended."""
    _, points, _ = grid_points(x.shape[2:])
    families = [Polynomial(x.ndim - 2, degree) for degree in FREE_DEGREES]
    best: tuple[float, Family, Fit] | None = None
    for k, family in enumerate(families):
        if best is not None and 4 * t.shape[1] * family.size > x[:, 0].size:
            break
        report(f"a field of degree {FREE_DEGREES[k]}", k / len(families))
        if best is None:
            fit = register(x, y, t, family)
        else:
            starts = [_as_in(family, best[1], best[2].theta, points)]
            fit = register(x, y, t, family, starts=starts, blur=REFINING_BLUR)
        independent = max(fit.points / fit.inflation, 3.0)
        score = independent * math.log(max(_unexplained(fit), 1e-30)) + t.shape[1] * family.size * math.log(independent)
        if best is not None and score >= best[0]:
            break
        best = score, family, fit
    assert best is not None
    return best[1:]


def _as_in(family: Family, smaller: Family, theta: Array, points: Array) -> Array:
    """The same fields (n_L, size) in a family that holds the smaller one."""
    fields = np.stack([smaller.field(m, points) for m in theta])
    return (fields @ np.linalg.pinv(family.basis(points))).reshape(len(theta), -1)


def _free_for_each(x: Array, y: Array, report: Callable[[str, float], None]) -> list[Family]:
    """Up to a degree that serves the first pairs, each with a field of its own."""
    few = [_free(x[p : p + 1], y[p : p + 1], np.ones((1, 1)), report)[0] for p in range(min(3, len(x)))]
    most = max(family.size for family in few)
    ladder = (Polynomial(x.ndim - 2, degree) for degree in FREE_DEGREES)
    return [family for family in ladder if family.size <= most]


def _register_one(x: Array, y: Array, families: list[Family], interpolation: str | None) -> Fit:
    """One pair through families that hold each other, each starting where the one before it ended."""
    _, points, _ = grid_points(x.shape[2:])
    fit, before = None, families[0]
    for family in families:
        if fit is None:
            fit = register(x, y, np.ones((1, 1)), family, interpolation=interpolation)
        else:
            starts = [_as_in(family, before, fit.theta, points)]
            fit = register(
                x, y, np.ones((1, 1)), family, starts=starts, interpolation=interpolation, blur=REFINING_BLUR
            )
        before = family
    assert fit is not None
    return fit


def _again(
    x: Array, y: Array, t: Array, family: Family, starts: list[Array], interpolation: str | None, fit: Fit
) -> Fit:
    """The best of `fit` and of what the starts lead to, without the coarsest blurs and with them: they can carry what
    lies outside the grid so far inside that all starts end in one wrong valley."""
    for blur in (max(x.shape[2:]) / 15, max(x.shape[2:]) / 30, math.inf):
        again = register(x, y, t, family, starts=starts, interpolation=interpolation, blur=blur)
        fit = min(fit, again, key=_unexplained)
        if fit.explained > 0.9:
            break
    return fit


def _unexplained(fit: Fit) -> float:
    return max(fit.residual, 1e-30) / max(fit.variance, 1e-300)


def _outliers(fits: list[Fit]) -> Array:
    """Pairs with a residual far above what is usual among them: a search that ended in the wrong valley."""
    ratios = np.log([_unexplained(f) for f in fits])
    middle = np.median(ratios)
    spread = 1.4826 * np.median(np.abs(ratios - middle))
    return (ratios > middle + max(5 * spread, math.log(4))) & (ratios > math.log(1e-6))


def from_unlabelled(
    x: Array,
    y: Array,
    family: Family | None,
    rank: int | None,
    alpha: float,
    resolution: float | None,
    report: Callable[[str, float], None],
) -> Result:
    """Each pair has a field of its own; the dimension of their span is tested. Without a family: free fields."""
    if resolution is None:
        resolution = RESOLUTION if family else FREE_RESOLUTION
    families = [family] if family else _free_for_each(x, y, report)
    family = families[-1]
    count, spatial = len(x), x.shape[2:]
    _, points, scale = grid_points(spatial)
    metric = family.gram(points)
    fits: list[Fit] = []
    interrupted, interpolation = False, None
    try:
        for p in range(count):
            report(f"pair {p + 1} of {count}", p / count)
            pair = slice(p, p + 1)
            fits.append(_register_one(x[pair], y[pair], families, interpolation))
            if p == 2:
                chosen = [f.interpolation for f in fits]
                interpolation = max(set(chosen), key=chosen.count)
        # Again from elsewhere, and from where the others went.
        doubtful = np.nonzero(_outliers(fits) | np.array([f.explained < 0.9 for f in fits]))[0]
        for k, p in enumerate(doubtful.tolist()):
            report(f"pair {p + 1} once more, {k + 1} of {len(doubtful)}", k / len(doubtful))
            pair, settled = slice(p, p + 1), [f.theta for q, f in enumerate(fits) if q not in doubtful]
            starts = [*_starts(family), *settled[:: max(1, len(settled) // 6)]]
            fits[p] = _again(x[pair], y[pair], np.ones((1, 1)), family, starts, interpolation, fits[p])
    except KeyboardInterrupt:
        if len(fits) < 2:
            raise
        interrupted = True
    explained = np.array([f.explained for f in fits])
    used = (explained > EXPLAINED) & np.logical_not(_outliers(fits))
    result = Result(
        "affine",
        "registration of each pair",
        np.full((len(fits), 0), np.nan),
        explained,
        alpha=alpha,
        interrupted=interrupted,
    )
    if used.sum() < max(1, len(fits) / 2):
        result.notes.append(
            f"no warp of the family explains {EXPLAINED:.0%} of the variance in {(~used).sum()} of {len(fits)} pairs: "
            "no symmetry of this kind is identifiable from this data"
        )
        return result
    m = np.stack([f.theta[0] for f, good in zip(fits, used, strict=True) if good])
    floor = (resolution / scale) ** 2 * np.linalg.pinv(metric) / family.size
    covariances = np.stack([f.covariance + floor for f, good in zip(fits, used, strict=True) if good])
    if rank is not None and rank > len(m):
        raise ValueError(f"x: {len(m)} pairs that a warp explains cannot identify {rank} generators")
    test = rank_test(m, covariances, metric, alpha, rank)
    result.p_values, result.spectrum = test.p_values, test.singular_values * scale
    result.residual = float(np.mean([_unexplained(f) for f, good in zip(fits, used, strict=True) if good]))
    if test.dimension == 0:
        result.notes.append(f"no pair moves by more than its noise, or than the resolution of {resolution} pixels")
        return result
    unit = _unit(family, test.basis, scale)
    result.dimension, result.generators = test.dimension, _generators(family, test.basis * unit[:, None], spatial)
    result.parameters = np.full((len(fits), test.dimension), np.nan)
    result.parameters[used] = test.coefficients / unit
    if rank is None and test.dimension >= min(len(m) - 1, family.size) and test.dimension < family.size:
        result.notes.append(
            f"{len(m)} pairs show {test.dimension} generators and could show no more: there may be others"
        )
    if not used.all():
        left = np.nonzero(~used)[0].tolist()
        result.notes.append(
            f"pairs {left[:10]} are not explained by a warp of the family like the others: they took no part"
        )
    return result


def from_labelled(
    x: Array, y: Array, t: Array, family: Family | None, alpha: float, report: Callable[[str, float], None]
) -> Result:
    """One fit of all fields to all pairs. Without a family: free fields."""
    spatial, count = x.shape[2:], t.shape[1]
    _, points, scale = grid_points(spatial)
    size = np.abs(t).max(0)
    scaled = t / size  # fields of the largest motion seen: O(1) whatever the unit of t
    report("joint registration", 0.0)
    if family is None:
        family, fit = _free(x, y, scaled, report)
    else:
        fit = register(x, y, scaled, family)
    if fit.explained < 0.9 and count == 1:
        report("joint registration from other starts", 0.5)
        fit = _again(x, y, scaled, family, _starts(family), None, fit)
    result = Result(
        "affine",
        "joint registration",
        t,
        np.full(len(x), fit.explained),
        residual=fit.residual / max(fit.variance, 1e-300),
        alpha=alpha,
    )
    if fit.explained < EXPLAINED:
        result.notes.append(
            f"no warp of the family explains {EXPLAINED:.0%} of the variance with these labels: not identifiable"
        )
        return result
    covariance, width = fit.covariance, family.size
    for i in range(count):
        own = slice(i * width, (i + 1) * width)
        wald = float(fit.theta[i] @ np.linalg.pinv(covariance[own, own]) @ fit.theta[i])
        result.p_values.append(float(chi2.sf(wald, width)))
    metric = family.gram(points)
    result.spectrum = scale * np.sqrt(np.einsum("ia,ab,ib->i", fit.theta, metric, fit.theta))
    moving = [p < alpha for p in result.p_values]
    result.notes += [f"generator {i} is zero within its noise" for i in range(count) if not moving[i]]
    if not any(moving):
        return result
    result.dimension = sum(moving)
    result.parameters = t[:, moving]
    result.generators = _generators(family, (fit.theta / size[:, None])[moving], spatial)
    return result
