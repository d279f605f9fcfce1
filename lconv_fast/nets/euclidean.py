"""A nonlinearity that commutes with SE(n) and sees directions: invariants of one degree, of smoothed channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast.checks import check_float, check_types, positive_int
from lconv_fast.invariants import jet, total
from lconv_fast.nets.bases import check_ndim
from lconv_fast.nets.blocks import CONVS

EPSILON = 1e-2  # below it a slope or a curvature counts as none


class EuclideanInvariants(nn.Module):
    """y = f + W norm(I(S V f)): invariants of translations, rotations and reflections beside f itself.

    V mixes the channels to half as many, S smooths, and of each channel u with gradient g and Hessian H, I has

        u,  |g|,  Laplacian u = tr H,  g . H g / |g|^2,  |H| = (tr H^2)^(1/2),  g . g' / |g|   (g' of the next channel)

    all of degree 1 in u, so that noise weighs no more than in u itself (the polynomials of `lc.DifferentialInvariants`
    square it). |g| stands for (|g|^2 + eps)^(1/2), likewise |H|. S is the binomial [1 2 1] / 4 along each axis: what a
    grid tells of directions is least true of its shortest waves. The norm is over the points of an image.

    Args:
        channels: of f.
        ndim: 1, 2 or 3 axes.

    Shape: (N, channels, *spatial) -> the same.
    """

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        check_ndim(ndim)
        self.channels, self.ndim = positive_int("channels", channels), ndim
        few = max(2, channels // 2)
        self.reduce = CONVS[ndim](channels, few, 1, bias=False)
        self.norm = nn.GroupNorm(6 * few, 6 * few)
        self.mix = CONVS[ndim](6 * few, channels, 1)

    def forward(self, f: Tensor) -> Tensor:
        check_float("f", f, (self.ndim + 2,), f"(N, {self.channels}, *spatial) with {self.ndim} spatial axes")
        if f.shape[1] != self.channels:
            raise ValueError(f"f: expected {self.channels} channels, got {tuple(f.shape)}")
        check_types(f, weight=self.reduce.weight)
        found = jet(smooth(self.reduce(f)))
        square = found.slope + EPSILON**2
        length = square.sqrt()
        inner = total(g * g.roll(1, 1) for g in found.gradient)
        curvature = (found.curvature + EPSILON**2).sqrt()
        terms = [found.f, length, found.laplacian, found.along / square, curvature, inner / length]
        return f + self.mix(self.norm(torch.cat(terms, 1)))


def smooth(f: Tensor) -> Tensor:
    """(f[x - e_a] + 2 f[x] + f[x + e_a]) / 4 for each axis a, with zeros outside the grid."""
    for axis in range(2, f.dim()):
        pads = [0, 0] * (f.dim() - 1 - axis) + [1, 1]
        padded, size = F.pad(f, pads), f.shape[axis]
        f = (padded.narrow(axis, 0, size) + 2 * f + padded.narrow(axis, 2, size)) / 4
    return f
