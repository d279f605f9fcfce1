"""Differential invariants: functions of f and of its derivatives that commute with a group acting on the points.

    invariants(f o g) = invariants(f) o g        for g in the group

(Lie; Olver, "Applications of Lie Groups to Differential Equations", chapter 2.4.) Linear layers that commute with all
rotations and translations are series in the Laplacian; these polynomials are the nonlinearity that brings the
directions of the derivatives in without breaking the symmetry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from lconv_fast import grid
from lconv_fast.checks import boolean, check_float, choice, positive_int

TINY = 1e-12  # in the place of 0 in denominators
EPSILON = 1e-5  # beside variances, as in torch's norms


@dataclass(frozen=True)
class Jet:
    """f (N, C, *spatial) with its derivatives, and the centred coordinates x_a in pixels, as broadcasts along axis
    a."""

    f: Tensor
    gradient: tuple[Tensor, ...]  # d_a f
    hessian: dict[tuple[int, int], Tensor]  # d_a d_b f, a <= b
    x: tuple[Tensor, ...]

    @property
    def slope(self) -> Tensor:
        """|grad f|^2."""
        return total(g.square() for g in self.gradient)

    @property
    def laplacian(self) -> Tensor:
        """tr H."""
        return total(h for (a, b), h in self.hessian.items() if a == b)

    @property
    def along(self) -> Tensor:
        """grad f . H grad f: the second derivative along the gradient, times |grad f|^2."""
        g = self.gradient
        return total((1 + (a != b)) * h * (g[a] * g[b]) for (a, b), h in self.hessian.items())

    @property
    def curvature(self) -> Tensor:
        """tr H^2."""
        return total((1 + (a != b)) * h.square() for (a, b), h in self.hessian.items())

    @property
    def radial(self) -> Tensor:
        """x . grad f = r df/dr."""
        return total(x * g for x, g in zip(self.x, self.gradient, strict=True))

    @property
    def radius(self) -> Tensor:
        """|x|^2."""
        return total(x.square() for x in self.x)


def total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def _translation(jet: Jet) -> list[Tensor]:
    return [jet.f, *jet.gradient, *jet.hessian.values()]


def _se(jet: Jet) -> list[Tensor]:
    return [jet.f, jet.slope, jet.laplacian, jet.along, jet.curvature]


def _similitude(jet: Jet) -> list[Tensor]:
    """Where points move by x -> s x, a derivative of order k is divided by s^k: ratios of the same order stay."""
    square = jet.slope.square() + jet.curvature  # order 4
    order4 = [jet.along, jet.slope * jet.laplacian, jet.curvature]
    return [jet.f, *(term / square.clamp_min(TINY) for term in order4)]


def _rotation(jet: Jet) -> list[Tensor]:
    return [*_se(jet), jet.radial, jet.radius.expand_as(jet.f)]


def _scaling(jet: Jet) -> list[Tensor]:
    return [jet.f, jet.radial, jet.radius * jet.slope, jet.radius * jet.laplacian]


# Rotations and scalings of their own are those about the centre of the grid.
GROUPS: dict[str, Callable[[Jet], list[Tensor]]] = {
    "translation": _translation,
    "rotation": _rotation,
    "scaling": _scaling,
    "se": _se,
    "similitude": _similitude,
}


WITH_PAIRS = ("se", "rotation")


def invariants(f: Tensor, group: str = "se", *, pairs: bool = False, padding_mode: str = "replicate") -> Tensor:
    """Differential invariants of each channel, up to second order, for pooling and read-out.

    | group | of each channel |
    | --- | --- |
    | translation | f, d_a f, d_a d_b f (a <= b) |
    | se: translations and rotations (and reflections) | f, abs(grad f)^2, Laplacian f, grad f . H grad f, tr H^2 |
    | similitude: se and scalings | f; the last three of degree 4, over abs(grad f)^4 + tr H^2 (see `_similitude`) |
    | rotation, about the centre | those of se, x . grad f, abs(x)^2 |
    | scaling, about the centre | f, x . grad f, abs(x)^2 abs(grad f)^2, abs(x)^2 Laplacian f |

    Their means over the points are numbers that moving the image does not change:
    `invariants(f, "se").flatten(2).mean(2)`. On a grid they commute with quarter turns to rounding, with other motions
    up to the error of the differences, O(h^2).

    Args:
        f: (N, C, *spatial), 1 to 3 axes; a real floating-point tensor. Pixels are the unit of length.
        group: a row of the table.
        pairs: appends grad f_c . grad f_c' for all channels c < c'; for "se" and "rotation".
        padding_mode: what lies outside the grid, as in nn.Conv2d.

    Returns:
        (N, C * k, *spatial), the k invariants of channel 0, then those of channel 1, ...; with pairs
        (N, C * k + C (C - 1) / 2, *spatial). Differentiable to every order.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """
    check_group(group, pairs)
    found = jet(f, padding_mode)
    result = torch.stack(GROUPS[group](found), 2).flatten(1, 2)
    if not pairs:
        return result
    low, high = torch.triu_indices(f.shape[1], f.shape[1], 1, device=f.device)
    return torch.cat([result, total(g[:, low] * g[:, high] for g in found.gradient)], 1)


def check_group(group: str, pairs: bool) -> None:
    choice("group", group, GROUPS)
    if boolean("pairs", pairs) and group not in WITH_PAIRS:
        raise ValueError(f"pairs: expected False, or the group {' or '.join(WITH_PAIRS)}, got the group {group!r}")


def jet(f: Tensor, padding_mode: str = "replicate") -> Jet:
    """f with its first and second differences of order 2, d_a d_b with a != b as products of first ones.

    Differences of slices: each channel has derivatives of its own, so that there is no product of matrices to fuse
    them with.
    """
    check_float("f", f, (3, 4, 5), "(N, C, *spatial) with 1 to 3 axes")
    n, spatial = f.dim() - 2, tuple(f.shape[2:])
    if 0 in spatial:
        raise ValueError(f"f: expected at least one point on each axis, got {tuple(f.shape)}")
    taps = [[int(a == b) for b in range(n)] for a in range(n)]
    grid.check_reach(taps, spatial, grid.padding_mode(padding_mode))
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = nn.functional.pad(f, [1] * (2 * n), mode=mode)

    def at(*steps: tuple[int, int]) -> Tensor:
        """f at x + sum of step e_axis, for (axis, step)."""
        offsets = dict(steps)
        index = [slice(1 + offsets.get(a, 0), 1 + offsets.get(a, 0) + size) for a, size in enumerate(spatial)]
        return padded[(slice(None), slice(None), *index)]

    def second(a: int, b: int) -> Tensor:
        if a == b:
            return at((a, 1)) + at((a, -1)) - 2 * f
        return (at((a, 1), (b, 1)) + at((a, -1), (b, -1)) - at((a, 1), (b, -1)) - at((a, -1), (b, 1))) / 4

    axes = []
    for a, size in enumerate(spatial):
        x = torch.arange(size, dtype=f.dtype, device=f.device) - (size - 1) / 2
        axes.append(x.reshape([-1 if b == a else 1 for b in range(n)]))
    return Jet(
        f,
        tuple((at((a, 1)) - at((a, -1))) / 2 for a in range(n)),
        {pair: second(*pair) for pair in combinations_with_replacement(range(n), 2)},
        tuple(axes),
    )


class DifferentialInvariants(nn.Module):
    """y = W norm(I(f)): a nonlinearity that commutes with a group; I are the `invariants` of f and, for "se" and
    "rotation", grad f_c . grad f_(c+1) of neighbouring channels.

    Each invariant is normalised over the points of its image (mean 0, variance 1), because polynomials of
    different degrees have different sizes; that mean is invariant itself. Stands where an activation stood, or before
    a read-out.

    Args:
        channels: of f.
        out_channels: of y; None: as many.
        group, padding_mode: as for `invariants`.

    Shape: (N, channels, *spatial) -> (N, out_channels, *spatial), 1 to 3 axes.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, group: str = "se", *, padding_mode: str = "replicate"
    ) -> None:
        super().__init__()
        self.channels = positive_int("channels", channels)
        outs = self.channels if out_channels is None else positive_int("out_channels", out_channels)
        check_group(group, False)
        if group == "translation":
            raise ValueError("group: expected another than 'translation', whose invariants are linear: take an L-conv")
        grid.padding_mode(padding_mode)
        self.group, self.padding_mode = group, padding_mode
        each = invariants(torch.zeros(1, 1, 1), group).shape[1]
        self.mix = nn.Linear((each + (group in WITH_PAIRS)) * self.channels, outs)

    def forward(self, f: Tensor) -> Tensor:
        check_float("f", f, (3, 4, 5), "(N, C, *spatial) with 1 to 3 axes")
        if f.shape[1] != self.channels:
            raise ValueError(f"f: expected {self.channels} channels, got {tuple(f.shape)}")
        found = jet(f, self.padding_mode)
        terms = GROUPS[self.group](found)
        if self.group in WITH_PAIRS:
            terms.append(total(g * g.roll(1, 1) for g in found.gradient))
        stacked = torch.cat(terms, 1)
        variance, mean = torch.var_mean(stacked, tuple(range(2, f.dim())), correction=0, keepdim=True)
        normal = (stacked - mean) * (variance + EPSILON).rsqrt()
        return self.mix(normal.movedim(1, -1)).movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"{self.channels}, group={self.group!r}, padding_mode={self.padding_mode!r}"
