"""Derivatives d_a of fields on a grid, for every accuracy, boundary and dtype, and the vector fields of generators.

All lengths are in pixels and axes in tensor order: a density that needs another metric (c^2, a spacing) has it as a
factor. Coordinates are centred, x_a = index_a - (size_a - 1) / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from lconv_fast import grid
from lconv_fast.checks import check_strided
from lconv_fast.generators import AffineGenerators, FieldGenerators
from lconv_fast.generators.differences import CENTRAL
from lconv_fast.ops.geometry import center_of, half_extent

Accuracy = int | str


def check_scheme(accuracy: Accuracy, padding_mode: str, ndim: int) -> None:
    """Raises ValueError for what `gradient` cannot take."""
    grid.padding_mode(padding_mode)
    if isinstance(accuracy, bool) or not isinstance(accuracy, (int, str)) or accuracy not in (*CENTRAL, "spectral"):
        raise ValueError(f"accuracy: expected one of {', '.join(map(str, CENTRAL))} or 'spectral', got {accuracy!r}")
    if accuracy == "spectral" and padding_mode != "circular":
        raise ValueError(f"padding_mode: spectral derivatives need 'circular' (periodic axes), got {padding_mode!r}")
    if accuracy != "spectral" and not 1 <= ndim <= 3:
        raise ValueError(f"phi: finite differences take 1, 2 or 3 spatial axes, got {ndim}")


def check_field(name: str, phi: object, least: int = 3) -> None:
    """phi is (N, m, *spatial), real or complex float, with a point or more."""
    if not isinstance(phi, Tensor):
        raise TypeError(f"{name}: expected a tensor (N, m, *spatial), got {type(phi).__name__}")
    if not (phi.is_floating_point() or phi.is_complex()):
        raise TypeError(f"{name}: expected a real or complex floating-point tensor, got {phi.dtype}")
    check_strided(name, phi)
    if phi.dim() < least or 0 in phi.shape:
        raise ValueError(f"{name}: expected shape (N, m, *spatial) with a point or more, got {tuple(phi.shape)}")


def by_parts(operator: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """A real linear operator applied to the real and the imaginary part."""
    return torch.complex(operator(phi.real), operator(phi.imag)) if phi.is_complex() else operator(phi)


def gradient(phi: Tensor, accuracy: Accuracy = 2, padding_mode: str = "zeros") -> Tensor:
    """d_a phi for every axis: (N, m, *spatial) -> (N, m, n, *spatial), linear, differentiable to every order.

    accuracy 2, 4, 6 or 8: the translations of `AffineGenerators`. 'spectral': the band-limited (Shannon-Whittaker)
    derivative on periodic axes, i k in Fourier space, with derivative 0 for the Nyquist mode of an even size.
    """
    check_field("phi", phi)
    ndim = phi.dim() - 2
    check_scheme(accuracy, padding_mode, ndim)
    if accuracy == "spectral":
        return torch.stack([_spectral(phi, axis + 2) for axis in range(ndim)], dim=2)
    translations = _translations(ndim, accuracy, padding_mode, phi.real.dtype, phi.device)
    return by_parts(translations, phi).transpose(1, 2)


@lru_cache(maxsize=64)
def _translations(
    ndim: int, accuracy: int, padding_mode: str, dtype: torch.dtype, device: torch.device, axis: int | None = None
) -> AffineGenerators:
    """d_a for every axis, or for one."""
    shift = torch.eye(ndim, dtype=dtype, device=device)
    shift = shift if axis is None else shift[axis : axis + 1]
    matrix = shift.new_zeros(len(shift), ndim, ndim)
    return AffineGenerators(matrix, shift, accuracy=accuracy, padding_mode=padding_mode)


def _spectral(phi: Tensor, dim: int) -> Tensor:
    size = phi.shape[dim]
    wave = torch.fft.fftfreq(size, dtype=phi.real.dtype, device=phi.device) * (2 * torch.pi)
    if size % 2 == 0:
        wave[size // 2] = 0
    wave = wave.reshape([-1 if d == dim else 1 for d in range(phi.dim())])
    found = torch.fft.ifft(torch.fft.fft(phi, dim=dim) * (1j * wave), dim=dim)
    return found if phi.is_complex() else found.real


def divergence(current: Tensor, accuracy: Accuracy = 2, padding_mode: str = "zeros") -> Tensor:
    """d_a J^a: (N, n_L, n, *spatial) -> (N, n_L, *spatial), zero on solutions for a symmetry (eq. 22).

    accuracy, padding_mode: as for AffineGenerators; 'spectral' with 'circular'. Linear and differentiable.

    Raises:
        TypeError, ValueError: a current that has not one component for each spatial axis.
    """
    ndim = _check_current(current)
    check_scheme(accuracy, padding_mode, ndim)
    # One axis at a time: the n^2 derivatives of n components are never held together.
    return sum(
        (_along(current[:, :, a], a, accuracy, padding_mode) for a in range(1, ndim)),
        _along(current[:, :, 0], 0, accuracy, padding_mode),
    )


def flux(current: Tensor, accuracy: Accuracy = 2, padding_mode: str = "zeros") -> Tensor:
    """The flux of J through the boundary, (N, n_L): Gauss' theorem as an identity, sum_x div J = flux J.

    sum_x (d_a J^a)(x) = sum_x J^a(x) (d_a^T 1)(x), and d_a^T 1 is zero but at points within the reach of d_a of the
    boundary; for periodic axes it is zero everywhere. Arguments as for `divergence`.
    """
    ndim = _check_current(current)
    check_scheme(accuracy, padding_mode, ndim)
    ones = torch.ones(1, 1, *current.shape[3:], dtype=current.real.dtype, device=current.device, requires_grad=True)
    total = torch.zeros(current.shape[:2], dtype=current.dtype, device=current.device)
    for a in range(ndim):
        with torch.enable_grad():
            (weight,) = torch.autograd.grad(_along(ones, a, accuracy, padding_mode).sum(), ones)
        total = total + (current[:, :, a] * weight).flatten(2).sum(2)
    return total


def _along(f: Tensor, axis: int, accuracy: Accuracy, padding_mode: str) -> Tensor:
    """d_axis f alone."""
    if accuracy == "spectral":
        return _spectral(f, axis + 2)
    one = _translations(f.dim() - 2, accuracy, padding_mode, f.real.dtype, f.device, axis)
    return by_parts(one, f)[:, 0]


def _check_current(current: object) -> int:
    check_field("current", current, least=4)
    ndim = current.dim() - 3  # type: ignore[attr-defined]
    if current.shape[2] != ndim:  # type: ignore[attr-defined]
        raise ValueError(
            f"current: expected shape (N, n_L, n, *spatial) with one component for each of {ndim} spatial axes, "
            f"got {tuple(current.shape)}"  # type: ignore[attr-defined]
        )
    return ndim


def coordinates(spatial: tuple[int, ...], like: Tensor) -> Tensor:
    """x (n, *spatial), centred, in pixels; the real dtype and the device of `like`."""
    kinds = {"dtype": like.real.dtype, "device": like.device}
    axes = [torch.arange(size, **kinds) - c for size, c in zip(spatial, center_of(spatial), strict=True)]  # type: ignore[call-overload]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def check_derivations(generators: object, ndim: int) -> None:
    """The generators are vector fields v^a d_a on `ndim` axes: AffineGenerators or FieldGenerators."""
    if not isinstance(generators, AffineGenerators | FieldGenerators):
        raise TypeError(
            "generators: expected vector fields v^a(x) d_a, AffineGenerators or FieldGenerators, "
            f"got {type(generators).__name__}"
        )
    if generators.transposed:
        raise ValueError("generators: expected vector fields v^a(x) d_a, got their transposes, which are none")
    if generators.ndim != ndim:
        raise ValueError(f"generators: expected {ndim} axes as phi has, got {generators.ndim}")


def vector_fields(generators: AffineGenerators | FieldGenerators, x: Tensor) -> Tensor:
    """v_i^a(x), (n_L, n, *spatial), in pixels per unit time, on the whole grid of coordinates x (n, *spatial)."""
    check_derivations(generators, x.shape[0])
    spatial = tuple(x.shape[1:])
    if isinstance(generators, FieldGenerators):
        if tuple(generators.field.shape[2:]) != spatial:
            raise ValueError(
                f"generators: expected the spatial shape {spatial}, got {tuple(generators.field.shape[2:])}"
            )
        return generators.field.to(x)
    scale = coordinate_scale(generators, spatial)
    field = torch.einsum("iab,b...->ia...", generators.matrix.to(x) / scale, x)
    return field + generators.shift.to(x).reshape(*generators.shift.shape, *[1] * len(spatial))


def coordinate_scale(generators: AffineGenerators, spatial: tuple[int, ...]) -> float:
    """Pixels per unit of the generators' coordinates on that grid."""
    scale = generators.coordinate_scale
    return half_extent(spatial) if scale is None else float(scale)
