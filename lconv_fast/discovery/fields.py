"""Families of vector fields v = sum_k m_k v_k on a grid, their flows, and the derivatives of the flows in m.

exp(L) f = f o phi, where phi is the flow of v after unit time and L = v^a(x) d_a (eq. 9 of Dehmamy et al. 2021).
Coordinates are centred and in units of half the largest extent of a grid, so that m is O(1) and well conditioned;
generators hold the same fields in pixels per unit time, and the functions at the end go from one to the other.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import expm, expm_frechet

from lconv_fast.composed import vector_field
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators

Array = NDArray[Any]


LEFT = 1.25  # half extents from the centre: points beyond have left the grid, and their polynomial must not overflow
FASTEST = 12.0  # half extents per unit of time, and turns of twice that: a search that goes further has left the grid


class Family(ABC):
    """A linear space of vector fields with `size` numbers m, component by component."""

    ndim: int
    size: int

    @abstractmethod
    def basis(self, x: Array) -> Array:
        """What each number multiplies in a component of the field, (size / n, N), at points x (n, N)."""

    @abstractmethod
    def flow(self, m: Array, x: Array, slopes: bool = True) -> tuple[Array, Array | None]:
        """phi(x) (n, N) and, with `slopes`, d phi / d m (n, size, N); phi infinite for fields above FASTEST."""

    def field(self, m: Array, x: Array) -> Array:
        """v (n, N)."""
        return m.reshape(self.ndim, -1) @ self.basis(x)

    def gram(self, x: Array) -> Array:
        """G with m^T G m = the mean of |v|^2 over the points x."""
        basis = self.basis(x)
        return np.kron(np.eye(self.ndim), basis @ basis.T / x.shape[1])


class Affine(Family):
    """v(x) = A x + b; m holds the rows of (A | b)."""

    def __init__(self, ndim: int) -> None:
        self.ndim, self.size = ndim, ndim * (ndim + 1)

    def basis(self, x: Array) -> Array:
        return np.concatenate([x, np.ones((1, x.shape[1]))])

    def homogeneous(self, m: Array) -> Array:
        """(..., n + 1, n + 1), with a zero last row."""
        m = np.asarray(m)
        matrix = np.zeros((*m.shape[:-1], self.ndim + 1, self.ndim + 1))
        matrix[..., : self.ndim, :] = m.reshape(*m.shape[:-1], self.ndim, self.ndim + 1)
        return matrix

    def flow(self, m: Array, x: Array, slopes: bool = True) -> tuple[Array, Array | None]:
        if not np.abs(m).max(initial=0.0) < FASTEST:
            return np.full_like(x, np.inf), np.zeros((self.ndim, self.size, x.shape[1]))
        generator, points = self.homogeneous(m), self.basis(x)
        moved = expm(generator)[: self.ndim] @ points
        if not slopes:
            return moved, None
        found = np.empty((self.ndim, self.size, x.shape[1]))
        for k in range(self.size):
            unit = self.homogeneous(np.eye(self.size)[k])
            found[:, k] = expm_frechet(generator, unit, compute_expm=False)[: self.ndim] @ points
        return moved, found


class Polynomial(Family):
    """v^a(x) = sum of m[a, k] x^(e_k) over the monomials up to a degree."""

    def __init__(self, ndim: int, degree: int) -> None:
        exponents = [e for e in itertools.product(range(degree + 1), repeat=ndim) if sum(e) <= degree]
        self.exponents = sorted(exponents, key=lambda e: (-sum(e), e))
        self.ndim, self.size = ndim, ndim * len(exponents)

    def basis(self, x: Array, along: int | None = None) -> Array:
        """The monomials (size / n, N) or, with `along`, their derivatives d / d x_along."""
        degree = sum(self.exponents[0])
        powers = np.ones((degree + 1, *x.shape))
        for k in range(degree):
            powers[k + 1] = powers[k] * x
        rows = np.ones((len(self.exponents), x.shape[1]))
        for row, exponents in zip(rows, self.exponents, strict=True):
            for a, e in enumerate(exponents):
                if a == along:
                    row *= e * powers[max(e - 1, 0), a]
                elif e:
                    row *= powers[e, a]
        return rows

    def slopes(self, x: Array) -> Array:
        """d basis / d x_b: (n, size / n, N)."""
        return np.stack([self.basis(x, b) for b in range(self.ndim)])

    def flow(self, m: Array, x: Array, slopes: bool = True) -> tuple[Array, Array | None]:
        """Runge-Kutta of order 4 for phi, in steps of at most an eighth of the extent, and for its Jacobian D phi; then
        d phi / d m_k = D phi(x) int_0^1 D phi_s(x)^-1 e_k(phi_s(x)) ds by Simpson's rule over the same steps."""
        rows, count = m.reshape(self.ndim, -1), self.size // self.ndim
        fastest = np.abs(self.field(m, x)).max(initial=0.0)
        if not fastest < FASTEST / 4:
            return np.full_like(x, np.inf), np.zeros((self.ndim, self.size, x.shape[1]))

        def rate(state: Array) -> Array:
            """d/ds of the points (n, N), and of D phi (n, n, N) behind them."""
            points = np.clip(state[: self.ndim], -LEFT, LEFT)
            velocity = rows @ self.basis(points)
            if not slopes:
                return velocity
            gradient = np.stack([rows @ self.basis(points, b) for b in range(self.ndim)], 1)  # d v^a / d x_b
            jacobian = state[self.ndim :].reshape(self.ndim, self.ndim, -1)
            return np.concatenate([velocity, np.einsum("abN,bcN->acN", gradient, jacobian).reshape(-1, x.shape[1])])

        steps = 2 * int(np.clip(np.ceil(4 * fastest), 2, 16))
        h, state = 1.0 / steps, x
        if slopes:
            one = np.eye(self.ndim).reshape(-1, 1) * np.ones(x.shape[1])
            state = np.concatenate([x, one])
        path = [state]
        for _ in range(steps):
            k1 = rate(state)
            k2 = rate(state + h / 2 * k1)
            k3 = rate(state + h / 2 * k2)
            k4 = rate(state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            path.append(state)
        if not slopes:
            return state, None
        found = np.zeros((self.ndim, self.ndim, count, x.shape[1]))
        jacobians = [s[self.ndim :].reshape(self.ndim, self.ndim, -1).transpose(2, 0, 1) for s in path]
        for s, (past, jacobian) in enumerate(zip(path, jacobians, strict=True)):
            weight = h / 3 * (1 if s in (0, steps) else 4 if s % 2 else 2)
            basis = self.basis(past[: self.ndim])
            # Outside the grid, D phi can be singular to the last bit; such points take no part.
            onward = weight * (jacobians[-1] @ np.linalg.pinv(jacobian))
            for a in range(self.ndim):
                for b in range(self.ndim):
                    found[a, b] += onward[:, a, b] * basis
        return state[: self.ndim], found.reshape(self.ndim, self.size, -1)


def grid_points(spatial: Sequence[int], step: int = 1) -> tuple[Array, Array, float]:
    """Every step-th point of a grid: indices (n, N), centred coordinates (n, N), and pixels per unit of them."""
    scale = (max(spatial) - 1) / 2
    axes = [np.arange((size - 1) % step // 2, size, step, dtype=float) for size in spatial]
    index = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    center = (np.array(spatial, dtype=float)[:, None] - 1) / 2
    return index, (index - center) / scale, scale


AFFINE_WITHIN = 0.05  # relative: a sampled field this near to an affine one counts as one


def fields_of(generators: Generators, spatial: Sequence[int]) -> Array:
    """v_i at all points, (n_L, n * N), in pixels per unit time.

    Raises TypeError for generators that are no vector fields.
    """
    if isinstance(generators, FieldGenerators):
        field = generators.field.detach().double().cpu()
    elif isinstance(generators, AffineGenerators):
        matrix, shift = (v.detach().double().cpu() for v in (generators.matrix, generators.shift))
        field = vector_field(matrix, shift, spatial, generators.coordinate_scale)
    else:
        raise TypeError(f"generators: expected AffineGenerators or FieldGenerators, got {type(generators).__name__}")
    return field.flatten(1).numpy()


def affine_numbers(field: Array, spatial: Sequence[int]) -> Array | None:
    """(n_L, n, n + 1) in centred coordinates of unit half extent and half extents per unit time, of fields (n_L, n * N)
    in pixels; None if they are not affine within AFFINE_WITHIN."""
    _, points, half = grid_points(spatial)
    basis = Affine(len(spatial)).basis(points)
    flat = field.reshape(len(field), len(spatial), -1) / half
    numbers = flat @ np.linalg.pinv(basis)
    near = np.linalg.norm(flat - numbers @ basis) <= AFFINE_WITHIN * np.linalg.norm(flat)
    return numbers if near else None


def generators_of(family: Family, numbers: Array, spatial: Sequence[int]) -> Generators:
    """Fields (n_L, size) in units of half the extent as generators in pixels, float32."""
    _, points, half = grid_points(spatial)
    if isinstance(family, Affine):
        rows = torch.from_numpy(numbers.reshape(len(numbers), family.ndim, family.ndim + 1).copy())
        return AffineGenerators(rows[..., :-1].float(), (rows[..., -1] * half).float(), coordinate_scale=1.0)
    fields = np.stack([family.field(m, points) * half for m in numbers])
    return FieldGenerators(torch.from_numpy(fields.reshape(len(numbers), family.ndim, *spatial)).float())
