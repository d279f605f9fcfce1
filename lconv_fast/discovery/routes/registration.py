"""Registration of images: Gauss-Newton for the fields whose flow carries x to y, through the group's own warp.

    minimise over theta  sum_p | y_p - x_p o phi(sum_i t[p,i] theta_i) |^2

over the points whose flow stays inside the grid, so that the result does not depend on what lies outside. From coarse
to fine: coarse levels blur both images and take fewer points. Levenberg's damping keeps each step from raising the
residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lconv_fast.discovery.fields import Array, Family, grid_points

# How an image is seen between its pixels: a spline's order. What fits the data best is taken.
INTERPOLATIONS = {"linear": 1, "cubic spline": 3}
MARGIN = 1.0  # pixels from the border that take no part: there, splines depend on what lies outside
SLOPE_STEP = 1e-3  # pixels
UNDETERMINED = 1e-10  # of the mean information about a number
WORKSPACE = 1 << 24  # numbers that the derivatives of one part of the points take
EXACT = 1e-30  # of the variance: residuals below it are all rounding
LEAST_KEPT = 0.35  # of the points away from the border: a warp that leaves less inside explains nothing


@dataclass
class Fit:
    theta: Array  # (n_L, size of the family)
    information: Array  # (n_L size, n_L size): J^T J over all points and pairs
    residual: float  # mean square
    variance: float  # of y, mean square about its mean, over the same points
    points: int
    inflation: float  # of the covariance, by the correlation of neighbouring residuals
    interpolation: str

    @property
    def covariance(self) -> Array:
        # What the data do not determine is uncertain, not known to be zero.
        ridge = UNDETERMINED * np.trace(self.information) / len(self.information) * np.eye(len(self.information))
        return np.linalg.inv(self.information + ridge) * self.residual * self.inflation

    @property
    def unexplained(self) -> float:
        """The residual in units of the variance, whatever the unit of the images."""
        return _relative(self.residual, self.variance)

    @property
    def explained(self) -> float:
        return 1 - self.unexplained


def _relative(residual: float, variance: float) -> float:
    """What a fit leaves of the variance: 1 of images without any, never below EXACT."""
    return max(residual / variance, EXACT) if variance > 0 else 1.0


class Level:
    """Pairs at one blur, ready to be warped."""

    def __init__(self, x: Array, y: Array, blur: float, order: int) -> None:
        spatial, self.order = x.shape[2:], order
        sigma = (0.0, 0.0, *[blur] * len(spatial))
        self.x = ndimage.gaussian_filter(x, sigma, mode="nearest") if blur else x
        target = ndimage.gaussian_filter(y, sigma, mode="nearest") if blur else y
        self.spatial, self.blur = spatial, blur
        self.index, self.points, self.scale = grid_points(spatial, max(1, int(blur)))
        self.y = target[(slice(None), slice(None), *self.index.astype(int))]  # (P, C, N)
        if order > 1:
            self.x = np.stack(
                [np.stack([ndimage.spline_filter(image, order, mode="mirror") for image in pair]) for pair in self.x]
            )
        # Blurred, the border is known only from one side; an image of a few pixels keeps something all the same.
        self.margin = min(max(MARGIN, blur), min(spatial) / 5)
        last = np.array(spatial)[:, None] - 1
        self.away = ((self.index >= self.margin) & (self.index <= last - self.margin)).all(0)
        self.inner = int(self.away.sum())

    def sample(self, pair: int, index: Array) -> Array:
        """(C, N) at index coordinates (n, N)."""
        return np.stack(
            [ndimage.map_coordinates(c, index, order=self.order, mode="nearest", prefilter=False) for c in self.x[pair]]
        )

    def parts(self, family: Family) -> Iterator[slice]:
        """Slices of the points, so that the derivatives' memory does not grow with the grid."""
        length = max(1024, WORKSPACE // (family.size * family.ndim))
        return (slice(start, start + length) for start in range(0, self.points.shape[1], length))

    def residuals(
        self, pair: int, family: Family, m: Array, slopes: bool, part: slice = slice(None)
    ) -> tuple[Array, Array | None, Array]:
        """y - x o phi (C, N), its derivatives in m (C, size, N), and which points of the part take part (N,)."""
        phi, dphi = family.flow(m, self.points[:, part], slopes)
        center = (np.array(self.spatial)[:, None] - 1) / 2
        index = phi * self.scale + center
        last = np.array(self.spatial)[:, None] - 1
        kept = ((index >= self.margin) & (index <= last - self.margin)).all(0)
        kept &= self.away[part]
        index, target = index[:, kept], self.y[pair][:, part][:, kept]
        residual = target - self.sample(pair, index)
        if dphi is None or not slopes:
            return residual, None, kept
        jacobian = np.zeros((residual.shape[0], family.size, residual.shape[1]))
        for a in range(family.ndim):
            step = np.zeros((family.ndim, 1))
            step[a] = SLOPE_STEP
            slope = (self.sample(pair, index + step) - self.sample(pair, index - step)) / (2 * SLOPE_STEP)
            jacobian += slope[:, None] * (self.scale * dphi[a][:, kept])[None]
        return residual, jacobian, kept


def _too_few(level: Level, kept: Array) -> bool:
    return bool(kept.sum() < max(3, LEAST_KEPT * level.inner))


def _mean_squares(level: Level, family: Family, thetas: Sequence[Array], t: Array) -> list[float]:
    """The mean square residual of each theta, over the points that take part in all; infinite if too few do."""
    totals, count = np.zeros(len(thetas)), 0
    for pair in range(len(t)):
        found = [level.residuals(pair, family, t[pair] @ theta, False) for theta in thetas]
        common = np.logical_and.reduce([kept for _, _, kept in found])
        if _too_few(level, common):
            return [float("inf")] * len(thetas)
        for k, (residual, _, kept) in enumerate(found):
            totals[k] += (residual[:, common[kept]] ** 2).sum()
        count += int(common.sum()) * level.y.shape[1]
    return list(totals / max(count, 1))


def _left_over(level: Level, family: Family, theta: Array, t: Array) -> float:
    """The residual relative to the variance of what it is taken over: no flat corner wins."""
    residual = variance = 0.0
    for pair in range(len(t)):
        rest, _, kept = level.residuals(pair, family, t[pair] @ theta, False)
        if _too_few(level, kept):
            return float("inf")
        residual += float((rest**2).sum())
        variance += float(((level.y[pair][:, kept] - level.y[pair][:, kept].mean(1, keepdims=True)) ** 2).sum())
    return _relative(residual, variance)


def _normal_equations(level: Level, family: Family, theta: Array, t: Array) -> tuple[Array, Array, int]:
    size = theta.size
    information, gradient, count = np.zeros((size, size)), np.zeros(size), 0
    for pair in range(len(t)):
        for part in level.parts(family):
            residual, jacobian, _ = level.residuals(pair, family, t[pair] @ theta, True, part)
            assert jacobian is not None
            flat = jacobian.transpose(1, 0, 2).reshape(family.size, -1)
            information += np.kron(np.outer(t[pair], t[pair]), flat @ flat.T)
            gradient += np.kron(t[pair], flat @ residual.ravel())
            count += residual.size
    return information, gradient, count


def _gauss_newton(
    level: Level, family: Family, theta: Array, t: Array, iterations: int, tolerance: float, prior: Array
) -> tuple[Array, float]:
    damping, start = 1e-4, theta
    for _ in range(iterations):
        information, gradient, _ = _normal_equations(level, family, theta, t)
        improved = False
        for _ in range(6):
            damped = information + damping * np.trace(information) / len(information) * prior
            step = np.linalg.lstsq(damped, gradient, rcond=1e-14)[0].reshape(theta.shape)
            # On the same points: a step must not win by what it moves out of the grid.
            cost, trial = _mean_squares(level, family, (theta, theta + step), t)
            if trial < cost:
                improved = True
                break
            damping = max(damping * 10, 1e-6)
        if not improved:
            break
        gain, theta = cost - trial, theta + step
        damping = max(damping / 10, 1e-12)
        if np.abs(step).max() < tolerance or gain < 1e-14 * cost:
            break
    cost = _mean_squares(level, family, (theta,), t)[0]
    # Step by step, points may have left until none could be compared.
    return (theta, cost) if math.isfinite(cost) else (start, _mean_squares(level, family, (start,), t)[0])


def _blurs(spatial: Sequence[int]) -> list[float]:
    """From a tenth of the grid, or a pixel and a half, down to none by halves."""
    blurs, blur = [], max(max(spatial) / 10, 1.6)
    while blur > 0.7:
        blurs.append(blur)
        blur /= 2
    return [*blurs, 0.0]


def _inflation(level: Level, family: Family, theta: Array, t: Array, information: Array, residual: float) -> float:
    """How much larger the covariance is than for independent residuals: the sandwich estimate over blocks of 4^n
    points, as one factor, never below 1."""
    scores = np.zeros_like(information)
    for pair in range(len(t)):
        blocks = tuple(s // 4 + 1 for s in level.spatial)
        sums = np.zeros((family.size, math.prod(blocks)))
        for part in level.parts(family):
            values, jacobian, kept = level.residuals(pair, family, t[pair] @ theta, True, part)
            assert jacobian is not None
            score = (jacobian * values[:, None]).sum(0)  # (size, N)
            block = np.ravel_multi_index(tuple(level.index[:, part][:, kept].astype(int) // 4), blocks)
            for row, total in zip(score, sums, strict=True):
                total += np.bincount(block, weights=row, minlength=len(total))
        scores += np.kron(np.outer(t[pair], t[pair]), sums @ sums.T)
    ratio = np.trace(np.linalg.pinv(information, hermitian=True) @ scores) / len(information) / max(residual, 1e-300)
    return float(max(1.0, ratio))


def register(
    x: Array,
    y: Array,
    t: Array,
    family: Family,
    *,
    starts: Sequence[Array] = (),
    interpolation: str | None = None,
    blur: float = math.inf,
    tolerance: float = 1e-10,
) -> Fit:
    """The fields theta (n_L, size) with y_p = x_p o exp(sum_i t[p,i] theta_i), pairs (P, C, *spatial), labels (P, n_L).

    `starts`: fields to begin from, by default none at all; the one with the smallest residual after the coarse levels
    goes on. `interpolation`: a key of INTERPOLATIONS, by default the one with the smaller residual.
    `blur`: the largest to begin with, in pixels.
    """
    spatial = x.shape[2:]
    blurs = [b for b in _blurs(spatial) if b <= blur]
    _, points, _ = grid_points(spatial)
    prior = np.kron(np.eye(t.shape[1]), family.gram(points))
    levels = [Level(x, y, blur, 1) for blur in blurs[:-1] or [0.0]]
    best: tuple[float, Array] | None = None
    for start in starts or [np.zeros((t.shape[1], family.size))]:
        theta = start.copy()
        for level in levels:
            theta, _ = _gauss_newton(level, family, theta, t, 12, 1e-4, prior)
        cost = _left_over(levels[-1], family, theta, t)
        if best is None or cost < best[0]:
            best = cost, theta
    assert best is not None
    names = [interpolation] if interpolation else list(INTERPOLATIONS)
    fits = []
    for name in names:
        level = Level(x, y, 0.0, INTERPOLATIONS[name])
        theta, cost = _gauss_newton(level, family, best[1], t, 25, tolerance, prior)
        fits.append((cost, name, level, theta))
    cost, name, level, theta = min(fits, key=lambda fit: fit[0])
    information, _, count = _normal_equations(level, family, theta, t)
    freedom = max(count - theta.size, 1)
    residual = cost * count / freedom
    kept = np.concatenate(
        [level.y[p][:, level.residuals(p, family, t[p] @ theta, False)[2]].ravel() for p in range(len(t))]
    )
    variance = float(kept.var()) if kept.size else 0.0
    inflation = _inflation(level, family, theta, t, information, residual) if residual > 1e-20 * variance else 1.0
    return Fit(theta, information, residual, variance, count, inflation, name)
