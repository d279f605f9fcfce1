"""How many generators: a test of the rank of noisy estimates with known covariances.

Under rank k, m_p = B^T t_p + noise with covariance C_p, and the weighted residual of the best fit of rank k is a chi^2
with (P - k)(q - k) degrees of freedom (P estimates of q numbers), up to first order. The smallest k that is not
rejected at the level alpha is the dimension: a rank too large comes out with probability alpha at most, which a test
checks by simulation. Where the noise was estimated from few points, the level is only as good as that estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from lconv_fast.discovery.fields import Array


@dataclass
class RankTest:
    dimension: int
    p_values: list[float]  # of rank 0, 1, ...: of a residual as large or larger, up to the dimension
    basis: Array  # (dimension, q), orthonormal in the metric
    coefficients: Array  # (P, dimension)
    singular_values: Array  # of the estimates in the metric, over sqrt(P): what the spectrum's picture shows


def _coefficients(m: Array, weights: Array, basis: Array) -> Array:
    """t (P, k) with the smallest (m_p - B^T t_p)^T W_p (m_p - B^T t_p) for each p, of least norm where it is free."""
    left = basis @ weights  # (P, k, q)
    inverse = np.linalg.pinv(left @ basis.T, rcond=len(basis) * np.finfo(float).eps, hermitian=True)
    return (inverse @ (left @ m[..., None]))[..., 0]


def _misfit(rest: Array, weights: Array) -> float:
    """sum_p r_p^T W_p r_p."""
    return float((rest * (weights @ rest[..., None])[..., 0]).sum())


def _fit_rank(m: Array, weights: Array, start: Array, iterations: int = 200) -> tuple[Array, Array, float]:
    """Alternating least squares for min sum_p (m_p - B^T t_p)^T W_p (m_p - B^T t_p)."""
    size = m.shape[1]
    rank, basis, cost = len(start), start, np.inf
    weighted, flat = (weights @ m[..., None])[..., 0], weights.reshape(len(m), size * size)
    t = _coefficients(m, weights, basis)
    for _ in range(iterations):
        outer = (t[:, :, None] * t[:, None]).reshape(len(t), rank * rank)
        left = (outer.T @ flat).reshape(rank, rank, size, size).transpose(0, 2, 1, 3).reshape(rank * size, rank * size)
        basis = np.linalg.lstsq(left, (t.T @ weighted).ravel(), rcond=1e-13)[0].reshape(rank, size)
        basis = np.linalg.qr(basis.T)[0].T
        t = _coefficients(m, weights, basis)
        now = _misfit(m - t @ basis, weights)
        done, cost = cost - now < 1e-9 * max(now, 1.0), now
        if done:
            break
    return basis, t, cost


def rank_test(m: Array, covariances: Array, metric: Array, alpha: float, rank: int | None = None) -> RankTest:
    """The dimension of the span that estimates m (P, q) come from, each with its covariance (q, q).

    `metric` (q, q) makes the basis orthonormal. `rank`: not tested but given.
    """
    count, size = m.shape
    root = np.linalg.cholesky(metric).T  # |root v|^2 = v^T metric v
    inverse = np.linalg.inv(root)
    v = m @ root.T
    weights = np.stack([np.linalg.pinv(root @ c @ root.T, rcond=1e-14, hermitian=True) for c in covariances])
    _, singular, directions = np.linalg.svd(v, full_matrices=True)
    most = min(size, count) if rank is None else rank
    p_values: list[float] = []
    for k in range(most + 1) if rank is None else [rank]:
        if k == 0:
            basis, t = np.zeros((0, size)), np.zeros((count, 0))
            cost = _misfit(v, weights)
        elif k == size:
            basis, t, cost = np.eye(size), v, 0.0
        else:
            basis, t, cost = _fit_rank(v, weights, directions[:k])
        freedom = (count - k) * (size - k)
        p_values.append(float(chi2.sf(cost, freedom)) if freedom else 1.0)
        if rank is not None or p_values[-1] >= alpha or k == most:
            break
    # The estimates' own principal axes within the span.
    if len(basis):
        _, _, axes = np.linalg.svd(t, full_matrices=False)
        basis, t = axes @ basis, t @ axes.T
    return RankTest(len(basis), p_values, basis @ inverse.T, t, singular / np.sqrt(count))
