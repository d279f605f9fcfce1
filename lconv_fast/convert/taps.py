"""What generators on a grid are made of, in plain terms: taps, their weights, and coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lconv_fast.generators import AffineGenerators, Generators, GridGenerators
from lconv_fast.grid import PADDING_MODES

KINDS = ("constant", "sampled", "affine")


@dataclass(frozen=True)
class Taps:
    """L_i f(x) = sum_a v[i,a](x) (D_a f)(x), with (D_a f)(x) = sum over the taps j of component a of
    weights[j] f(x + taps[j]).

    v holds, by `kind`: "constant" (n_L, m), "sampled" (n_L, m, *spatial), "affine" (n_L, m, n + 1), whose last number
    is v at x = 0. With `transposed`, L_i^T stands for L_i.
    """

    kind: str
    taps: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    components: tuple[int, ...]
    padding_mode: str
    coordinate_scale: float | None
    transposed: bool

    @classmethod
    def of(cls, generators: Generators) -> Taps:
        """Raises TypeError for generators that are not given by taps."""
        if not isinstance(generators, GridGenerators):
            raise TypeError(f"generators: expected generators with taps on a grid, got {type(generators).__name__}")
        stencil = generators.stencil(fixed_grid(generators) or (64,) * generators.ndim)
        kind, mode = stencil.kind, stencil.padding_mode
        return cls(
            kind if isinstance(kind, str) else KINDS[int(kind)],
            stencil.taps,
            stencil.tap_weights,
            stencil.components,
            mode if isinstance(mode, str) else PADDING_MODES[int(mode)],
            getattr(generators, "coordinate_scale", None),
            stencil.transposed,
        )

    @property
    def ndim(self) -> int:
        return len(self.taps[0])

    def halo(self) -> list[tuple[int, int]]:
        """(low, high) for each axis: how far the taps reach beyond a point."""
        return [(max(0, *(-t for t in o), 0), max(0, *o, 0)) for o in zip(*self.taps, strict=True)]

    def spread(self, v: Tensor) -> Tensor:
        """Coefficients by tap, s[i,j] = weights[j] v[i, components[j]]: (n_L, m, ...) to (n_L, T, ...)."""
        weights = torch.tensor(self.weights, dtype=v.dtype, device=v.device)
        return v[:, list(self.components)] * weights.reshape(-1, *[1] * (v.dim() - 2))


def fixed_grid(generators: Generators) -> tuple[int, ...] | None:
    """The only grid the generators fit, None when any does."""
    if isinstance(generators, AffineGenerators):
        return None
    return tuple(generators.coefficients().shape[2:]) or None


def constant_taps(generators: Generators) -> tuple[list[tuple[int, ...]], Tensor] | None:
    """Offsets o_k and coefficients s (n_L, K) of L_i f(x) = sum_k s[i,k] f(x + o_k); None where s depends on x.

    Affine fields with matrix 0, the translations, are constant. Transposes are, where taps can be turned round.
    """
    if not isinstance(generators, GridGenerators):
        return None
    taps, v = Taps.of(generators), generators.coefficients()
    if taps.kind == "affine":
        if torch.count_nonzero(v[..., :-1]):
            return None
        v = v[..., -1]
    elif taps.kind != "constant":
        return None
    offsets = list(taps.taps)
    if taps.transposed:
        if taps.padding_mode not in ("zeros", "circular"):
            return None
        offsets = [tuple(-o for o in offset) for offset in offsets]
    return offsets, taps.spread(v)


def sampled(taps: Taps, v: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """s[i,j](x) of every tap at every point: (n_L, T, *spatial)."""
    if taps.kind == "affine":
        axes = [torch.arange(size, dtype=v.dtype, device=v.device) - (size - 1) / 2 for size in spatial]
        scale = taps.coordinate_scale or (max(spatial) - 1) / 2 or 1.0
        x = torch.stack(torch.meshgrid(*axes, indexing="ij")) / scale
        v = torch.einsum("iab,b...->ia...", v[..., :-1], x) + v[..., -1].reshape(*v.shape[:2], *[1] * len(spatial))
    elif taps.kind == "constant":
        v = v.reshape(*v.shape, *[1] * len(spatial)).expand(*v.shape, *spatial)
    return taps.spread(v)
