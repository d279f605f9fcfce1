"""The group on a grid: generators as they act on other grids, and exp(t L) f."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lconv_fast.checks import check_strided, check_tensor
from lconv_fast.generators import AffineGenerators, Generators
from lconv_fast.ops.geometry import center_of
from lconv_fast.physics.derivatives import coordinate_scale


@dataclass(frozen=True)
class Placement:
    """Where the points of a grid lie on the model's input grid: index there = scale * index + offset, per axis."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, ndim: int) -> Placement:
        return cls((1.0,) * ndim, (0.0,) * ndim)

    def then(self, scale: tuple[float, ...], offset: tuple[float, ...]) -> Placement:
        """Of a grid that is placed on this one."""
        return Placement(
            tuple(s * t for s, t in zip(self.scale, scale, strict=True)),
            tuple(s * o + p for s, o, p in zip(self.scale, offset, self.offset, strict=True)),
        )

    @property
    def trivial(self) -> bool:
        return all(abs(s - 1) < 1e-9 for s in self.scale) and all(abs(o) < 1e-9 for o in self.offset)


def matched(generators: Generators, like: Tensor) -> Generators:
    """The generators with numbers of `like`'s dtype and device."""
    numbers = generators.coefficients()
    if numbers.dtype == like.dtype and numbers.device == like.device:
        return generators
    return copy.deepcopy(generators).to(dtype=like.dtype, device=like.device)


def one_of(generators: Generators, index: int) -> Generators:
    """L_index alone where that saves work."""
    if not isinstance(generators, AffineGenerators) or generators.num_generators == 1 or generators.transposed:
        return generators
    keep = slice(index, index + 1)
    return AffineGenerators(
        generators.matrix[keep].detach(),
        generators.shift[keep].detach(),
        accuracy=generators.accuracy,
        padding_mode=generators.padding_mode,
        coordinate_scale=generators.coordinate_scale,
    )


def placed(
    generators: Generators, root: tuple[int, ...], spatial: tuple[int, ...], placement: Placement
) -> Generators | None:
    """The generators of a grid `root`, as they act on functions on the grid `spatial` placed in it; None: not known.

    A field v(i) in pixels of the root moves the points j of the grid, i = s j + o, by v(s j + o) / s.
    """
    if placement.trivial and spatial == root:
        return generators
    if not isinstance(generators, AffineGenerators) or generators.transposed:
        return None
    like = generators.matrix.detach()
    s = torch.tensor(placement.scale, dtype=like.dtype, device=like.device)
    o = torch.tensor(placement.offset, dtype=like.dtype, device=like.device)
    center, here = (torch.tensor(center_of(shape), dtype=like.dtype, device=like.device) for shape in (root, spatial))
    matrix = like / coordinate_scale(generators, root)
    shift = (torch.einsum("iab,b->ia", matrix, s * here + o - center) + generators.shift.detach()) / s
    return AffineGenerators(
        matrix * s / s[:, None],
        shift,
        accuracy=generators.accuracy,
        padding_mode=generators.padding_mode,
        coordinate_scale=1.0,
    )


def check_group(generators: object, x: object, name: str = "x") -> None:
    """x is on the grid of the generators."""
    if not isinstance(generators, Generators):
        raise TypeError(f"generators: expected a Generators object or a name, got {type(generators).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 3:
        raise TypeError(
            f"{name}: expected a real floating-point tensor (N, C, *spatial), got {getattr(x, 'shape', type(x))}"
        )
    check_strided(name, x)
    if x.is_meta:
        raise TypeError(f"{name}: expected a tensor with numbers, got one on the meta device")
    ndim = getattr(generators, "ndim", None)
    if ndim not in (None, x.dim() - 2):
        raise ValueError(f"generators: expected {x.dim() - 2} axes as {name} has, got {ndim}")


def exponential(generators: Generators, f: Tensor, t: Tensor) -> Tensor:
    """exp(sum_i t_i L_i) f by Taylor series of substeps in which |t L| is about 1; f (N, C, *spatial), t (n_L,)."""
    check_group(generators, f, "f")
    check_tensor("t", t)
    if tuple(t.shape) != (generators.num_generators,) or t.is_complex():
        raise ValueError(f"t: expected real numbers ({generators.num_generators},), got {tuple(t.shape)} of {t.dtype}")
    generators = matched(generators, f)
    t = t.to(f)

    def rate(g: Tensor) -> Tensor:
        return torch.einsum("i,Ni...->N...", t, generators(g))

    # The largest growth by power iteration, with a margin; the series below ends by its own terms.
    random = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 1, *f.shape[2:], dtype=f.dtype, generator=random).to(f.device)
    norm = 0.0
    for _ in range(8):
        moved = rate(probe)
        size = moved.norm().item()
        if not size:
            break
        norm, probe = max(norm, size / probe.norm().item()), moved / size
    substeps = max(1, math.ceil(1.5 * norm))
    for _ in range(substeps):
        term, total = f, f
        for k in range(1, 80):
            term = rate(term) / (k * substeps)
            total = total + term
            if term.norm() <= torch.finfo(f.dtype).eps / 4 * total.norm():
                break
        f = total
    return f
