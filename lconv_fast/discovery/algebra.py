"""What algebra a set of generators spans: structure constants, closure, Killing form, Levi split, and its name.

[L_i, L_j] = c_ij^k L_k (eq. 5 of Dehmamy et al. 2021), with [v, w]^a = v^b d_b w^a - w^b d_b v^a for the fields.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lconv_fast.checks import extents
from lconv_fast.discovery.fields import Affine, Array, Polynomial, affine_numbers, fields_of, grid_points
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators, algebras

TOLERANCE = 0.05  # of angles between subspaces and of relative residuals, in radians: what is zero in an invariant


@dataclass
class Algebra:
    structure_constants: Array  # (n_L, n_L, n_L): [L_i, L_j] = sum_k c[i, j, k] L_k, for the given generators
    closure: float  # |what brackets have outside the span| / |brackets|, in the mean over the grid; 0: closed
    killing_form: Array  # (n_L, n_L): K_ij = sum c[i,k,l] c[j,l,k]
    signature: tuple[int, int, int]  # numbers of its positive, negative and zero eigenvalues
    radical: Array  # (r, n_L): combinations that span the radical, the largest solvable ideal
    levi: int  # dimension of the semisimple part beside it
    abelian: bool
    name: str

    @property
    def dimension(self) -> int:
        return len(self.structure_constants)

    def __str__(self) -> str:
        plus, minus, zero = self.signature
        return (
            f"{self.name}: dimension {self.dimension} (radical {len(self.radical)}, semisimple {self.levi}), "
            f"Killing form ({plus}+, {minus}-, {zero} zero), closure residual {self.closure:.2g}"
        )


def bracket(v: Array, w: Array) -> Array:
    """[v, w] of affine fields as homogeneous matrices (..., n + 1, n + 1): the field of the matrix W V - V W."""
    return w @ v - v @ w


def orthonormal(rows: Array, tolerance: float = TOLERANCE) -> Array:
    """An orthonormal basis of the row space, without directions below `tolerance` of the largest."""
    if not rows.size:
        return rows.reshape(0, rows.shape[-1])
    _, singular, directions = np.linalg.svd(rows, full_matrices=False)
    return directions[singular > tolerance * max(singular.max(initial=0.0), 1e-300)]


def _numbers(generators: AffineGenerators | FieldGenerators, spatial: tuple[int, ...] | None) -> Array | None:
    """(n_L, n, n + 1), if the generators are affine fields or nearly so: in centred coordinates of unit half extent
    where a grid is known, else in the generators' own, of `coordinate_scale` pixels."""
    if isinstance(generators, FieldGenerators):
        spatial = tuple(generators.field.shape[2:])
    if spatial is not None:
        return affine_numbers(fields_of(generators, spatial), spatial)
    assert isinstance(generators, AffineGenerators)
    return generators.coefficients().detach().double().cpu().numpy()


def _invariants(numbers: Array, constants: Array, tolerance: float = TOLERANCE) -> tuple[Any, ...]:
    """What a Lie algebra of affine fields has in common with its conjugates under affine maps: the key of its name."""
    count, n = len(numbers), numbers.shape[1]
    linear = numbers[:, :, :n].reshape(count, -1)
    scale = np.linalg.norm(numbers, axis=(1, 2)).max()
    every = np.eye(count)
    derived = _bracket_span(constants, every, every, tolerance)
    second = _bracket_span(constants, derived, derived, tolerance)
    center = null_space(constants.transpose(1, 2, 0).reshape(-1, count), tolerance)
    traces = np.einsum("iab,jba->ij", numbers[:, :, :n], numbers[:, :, :n])
    divergence = np.abs(np.trace(numbers[:, :, :n], axis1=1, axis2=2)).max() > tolerance * scale
    return (
        n,
        count,
        _signature(_killing(constants), tolerance),
        len(derived),
        len(second),
        len(center),
        int((np.linalg.svd(linear, compute_uv=False) > tolerance * scale).sum()),
        _signature(traces, tolerance),
        bool(divergence),
    )


def _killing(constants: Array) -> Array:
    """K_ij = sum c[i,k,l] c[j,l,k]."""
    return np.einsum("ikl,jlk->ij", constants, constants)


def _signature(form: Array, tolerance: float = TOLERANCE) -> tuple[int, int, int]:
    """Numbers of positive, negative and zero eigenvalues."""
    values = np.linalg.eigvalsh((form + form.T) / 2)
    largest = np.abs(values).max(initial=0.0)
    if largest < tolerance:
        return 0, 0, len(values)
    plus, minus = int((values > tolerance * largest).sum()), int((values < -tolerance * largest).sum())
    return plus, minus, len(values) - plus - minus


def null_space(rows: Array, tolerance: float = TOLERANCE) -> Array:
    """An orthonormal basis of what the rows take to zero, within `tolerance` of the largest."""
    size = rows.shape[-1]
    if not rows.size:
        return np.eye(size)
    _, singular, directions = np.linalg.svd(rows, full_matrices=True)
    rank = int((singular > tolerance * max(singular.max(initial=0.0), 1.0)).sum())
    return directions[rank:]


def _bracket_span(constants: Array, a: Array, b: Array, tolerance: float = TOLERANCE) -> Array:
    """An orthonormal basis of [a, b]."""
    size = constants.shape[-1]
    products = np.einsum("pi,qj,ijk->pqk", a, b, constants).reshape(-1, size)
    if np.abs(products).max(initial=0.0) < tolerance:
        return np.zeros((0, size))
    return orthonormal(products, tolerance)


def _canonical(name: str, ndim: int) -> Array:
    matrix, shift = algebras.named(name, ndim)
    return torch.cat([matrix, shift[..., None]], dim=2).double().numpy()


def _first_translations(ndim: int, count: int) -> Array:
    return _canonical("translation", ndim)[:count]


def _catalogue() -> dict[str, Callable[[], Array]]:
    """Name and canonical basis of each algebra that has a name here."""
    rows: dict[str, Callable[[], Array]] = {}

    def add(name: str, *parts: tuple[str, int]) -> None:
        rows[name] = lambda: np.concatenate([_canonical(part, ndim) for part, ndim in parts])

    for n in (1, 2, 3):
        add(f"translations T{n}", ("translation", n))
        add(f"R+ (scaling, {n}D)", ("scaling", n))
        add(f"R+ x| T{n} (scaling and translations)", ("scaling", n), ("translation", n))
    for n in (2, 3):
        add(f"so({n})", ("rotation", n))
        add(f"so({n}) x R+", ("rotation", n), ("scaling", n))
        add(f"se({n})", ("se", n))
        add(f"sim({n})", ("similitude", n))
        add(f"sl({n})", ("sl", n))
        add(f"gl({n})", ("gl", n))
        add(f"sl({n}) x| T{n}", ("sl", n), ("translation", n))
        add(f"aff({n})", ("affine", n))
        add(f"so(1,{n - 1})", ("lorentz", n))
        add(f"so(1,{n - 1}) x| T{n} (Poincare)", ("lorentz", n), ("translation", n))
        add(f"so(1,{n - 1}) x R+", ("lorentz", n), ("scaling", n))
    for n in (2, 3):
        for k in range(1, n):
            rows[f"translations T{k} in {n}D"] = functools.partial(_first_translations, n, k)
    rows["so(2) in 3D"] = lambda: _canonical("rotation", 3)[:1]
    rows["so(2) x T1 in 3D (a screw's axis)"] = lambda: np.concatenate(
        [_canonical("rotation", 3)[:1], _canonical("translation", 3)[2:]]
    )
    rows["se(2) in 3D"] = lambda: np.concatenate([_canonical("rotation", 3)[:1], _canonical("translation", 3)[:2]])
    return rows


@functools.cache
def _names() -> dict[tuple[Any, ...], str]:
    found: dict[tuple[Any, ...], str] = {}
    for name, basis in _catalogue().items():
        numbers = basis()
        n = numbers.shape[1]
        numbers = _unit_span(numbers)
        constants, _ = _structure(numbers, n)
        found.setdefault(_invariants(numbers, constants), name)
    return found


def _name(unit: Array, constants: Array) -> str:
    """Noisy estimates need a wide tolerance, strongly sheared bases a narrow one: the widest that finds a name."""
    for tolerance in (TOLERANCE, TOLERANCE / 4, TOLERANCE / 16):
        found = _names().get(_invariants(unit, constants, tolerance))
        if found:
            return found
    return "unknown"


def _unit_span(numbers: Array) -> Array:
    """An orthonormal basis of the same span."""
    flat = numbers.reshape(len(numbers), -1)
    return np.linalg.svd(flat, full_matrices=False)[2][: len(flat)].reshape(numbers.shape)


def _structure(numbers: Array, n: int) -> tuple[Array, float]:
    """Structure constants by least squares over the fields on the box [-1, 1]^n of the numbers' own coordinates, and
    the closure residual."""
    family = Affine(n)
    homogeneous = family.homogeneous(numbers.reshape(len(numbers), -1))
    brackets = np.stack([[bracket(v, w) for w in homogeneous] for v in homogeneous])[:, :, :n]
    axis = np.linspace(-1, 1, 9)
    points = np.stack([a.ravel() for a in np.meshgrid(*[axis] * n, indexing="ij")])
    root = np.linalg.cholesky(family.gram(points)).T
    return _projected(
        brackets.reshape(len(numbers), len(numbers), -1) @ root.T, numbers.reshape(len(numbers), -1) @ root.T
    )


def _projected(brackets: Array, span: Array) -> tuple[Array, float]:
    constants = brackets @ np.linalg.pinv(span)
    rest = np.linalg.norm(brackets - constants @ span)
    size = np.linalg.norm(span, axis=-1).mean() ** 2
    # Brackets of a commuting set are noise: they count relative to the fields as well.
    return constants, float(rest / max(np.linalg.norm(brackets), size, 1e-300))


def identify(generators: Generators, spatial_shape: tuple[int, ...] | None = None) -> Algebra:
    """The algebra that generators span (eq. 5 of Dehmamy et al. 2021), tested on their vector fields.

    Affine fields, and fields that are affine within 5 percent, are bracketed exactly; others as polynomials of degree 5
    fitted to them. The name is that of an algebra of affine fields with the same invariants (dimension, Killing form,
    derived algebras, centre, trace form), whatever the basis and the coordinates; "unknown" for anything else, and for
    a set that does not close within 10 percent.

    Args:
        generators: AffineGenerators or FieldGenerators.
        spatial_shape: the grid of AffineGenerators: what is small is then judged on it, and not in the units of
            their coordinates, which may be pixels.

    Raises:
        TypeError: generators without vector fields, whose brackets are no generators of the kind.
        ValueError: a grid with another number of axes.
    """
    if not isinstance(generators, AffineGenerators | FieldGenerators):
        raise TypeError(f"generators: expected AffineGenerators or FieldGenerators, got {type(generators).__name__}")
    if spatial_shape is not None:
        spatial_shape = extents("spatial_shape", spatial_shape)
        if len(spatial_shape) != generators.ndim:
            raise ValueError(f"spatial_shape: expected {generators.ndim} axes as the generators, got {spatial_shape!r}")
    numbers = _numbers(generators, spatial_shape)
    if numbers is not None:
        constants, closure = _structure(numbers, numbers.shape[1])
        unit = _unit_span(numbers)
        canonical, _ = _structure(unit, numbers.shape[1])
        # Dependent generators have no structure constants of their own.
        flat = numbers.reshape(len(numbers), -1)
        independent = np.linalg.matrix_rank(flat, tol=1e-9 * np.linalg.norm(flat)) == len(flat)
        name = _name(unit, canonical) if closure < 0.1 and independent else "unknown"
    else:
        assert isinstance(generators, FieldGenerators)
        constants, closure = _field_structure(generators.field.detach().double().cpu().numpy())
        canonical, name = constants, "one field (abelian)" if len(constants) == 1 else "unknown"
    killing, radical = _killing(constants), _radical(constants)
    return Algebra(
        structure_constants=constants,
        closure=closure,
        killing_form=killing,
        signature=_signature(killing),
        radical=radical,
        levi=len(constants) - len(radical),
        abelian=bool(np.abs(canonical).max(initial=0.0) < TOLERANCE),
        name=name,
    )


def _radical(constants: Array) -> Array:
    """The orthogonal complement of the derived algebra in the Killing form (Cartan's criterion)."""
    count = len(constants)
    derived = constants.reshape(-1, count)
    if np.abs(derived).max(initial=0.0) < TOLERANCE:
        return np.eye(count)
    return null_space(orthonormal(derived) @ _killing(constants))


def _field_structure(field: Array) -> tuple[Array, float]:
    """Structure constants of sampled fields, through polynomials of degree 5 fitted to them."""
    count, n = field.shape[:2]
    _, points, _ = grid_points(field.shape[2:])
    family = Polynomial(n, 5)
    basis, slopes = family.basis(points), family.slopes(points)
    numbers = field.reshape(count, n, -1) @ np.linalg.pinv(basis)
    values = numbers @ basis
    jacobian = np.einsum("iak,bkx->iabx", numbers, slopes)
    along = np.einsum("ibx,jabx->ijax", values, jacobian)
    brackets = along - along.transpose(1, 0, 2, 3)
    return _projected(brackets.reshape(count, count, -1), values.reshape(count, -1))
