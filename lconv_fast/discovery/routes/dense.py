"""The exact linear regression of the paper's supplement: R = (Y X^T)(X X^T)^-1 for one group element, and L = log R."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import logm

from lconv_fast.discovery.problem import Problem
from lconv_fast.discovery.result import Found
from lconv_fast.generators import DenseGenerators


def by_regression(problem: Problem) -> Found:
    """One dense generator from pairs of one and the same group element; t, if given, is its label."""
    x, y, t = problem.images, problem.targets, problem.t
    if t is not None and (t.shape[1] > 1 or not np.allclose(t, t[0])):
        raise ValueError("parameters: kind 'dense' takes pairs of one group element, all with the same label")
    points = int(np.prod(x.shape[2:]))
    inputs, outputs = (v.reshape(-1, points) for v in (x, y))
    if len(inputs) < points:
        raise ValueError(
            f"x: {len(inputs)} images cannot identify a dense matrix on {points} points: that many are needed"
        )
    matrix = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    residual = float(((outputs - inputs @ matrix.T) ** 2).mean() / outputs.var())
    logarithm = logm(matrix)
    notes = []
    if np.abs(np.imag(logarithm)).max() > 1e-6 * np.abs(logarithm).max():
        notes.append("the fitted matrix has no real logarithm: R - I stands in its place")
        logarithm = matrix - np.eye(points)
    parameter = 1.0 if t is None else float(t[0, 0])
    generators = DenseGenerators(torch.from_numpy(np.real(logarithm) / parameter).float()[None])
    return Found(
        "linear regression",
        np.full((len(x), 1), parameter),
        np.full(len(x), 1 - residual),
        residual,
        generators=generators,
        notes=notes,
    )
