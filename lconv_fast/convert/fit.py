"""The weights of an L-conv nearest to a convolution in the least-squares sense."""

from __future__ import annotations

import torch
from torch import Tensor

from lconv_fast.convert.taps import Offsets, halo, spread
from lconv_fast.generators import Generators, GridGenerators

SIZE = {1: 17, 2: 9, 3: 5}  # points per axis that stand for grids of any size
CHUNK = 4096  # points


class Projection:
    """The operators T_k f(x) = f(x + o_k) written in the basis I, L_1 .. L_nL: the best in the Frobenius norm.

    minimise over P   mean over x of | T_k - P_0k I - sum_i P_ik L_i |^2, the error on white noise of variance 1

    away from boundaries. Channels take no part: W^i = sum_k P_ik K_k for a kernel K_k, and the error of the layer is
    sum_kl K_k (error)_kl K_l.

    Args:
        generators: on a grid of `len(o_k)` axes. Coefficients sampled at points are taken on their own grid, others on
            one of SIZE points per axis.
        offsets: o_k.

    Raises:
        ValueError: for transposed generators, and for those that fit no such grid.
    """

    weights: Tensor  # P, (n_L + 1, K)
    error: Tensor  # (K, K): mean over x of the products of what is left of T_k and T_l

    def __init__(self, generators: Generators, offsets: Offsets) -> None:
        with torch.no_grad():
            basis, columns = _by_taps(generators, offsets)
        count, points = len(offsets), basis.shape[2]
        place = torch.arange(points)
        right = torch.stack([basis[:, column, place].mean(1) for column in columns], 1)  # <L_i, T_k>
        gram = torch.einsum("iup,jup->ij", basis, basis) / points
        # Generators may be zero or depend on one another: the solution of least norm.
        self.weights = torch.linalg.pinv(gram, hermitian=True) @ right

        self.error = torch.zeros(count, count, dtype=basis.dtype)
        for part, at in zip(basis.split(CHUNK, 2), columns.split(CHUNK, 1), strict=True):
            left = -torch.einsum("ik,iup->kup", self.weights, part)
            left[torch.arange(count).unsqueeze(1), at, torch.arange(part.shape[2])] += 1
            self.error += torch.einsum("kup,lup->kl", left, left) / points

    def fit(self, kernel: Tensor) -> tuple[Tensor, float]:
        """W (n_L + 1, out, in) for a kernel (K, out, in), and the distance |K - W| / |K| of the operators."""
        taps = kernel.detach().cpu().double()
        weight = torch.einsum("ik,koc->ioc", self.weights, taps)
        left = torch.einsum("koc,kl,loc->", taps, self.error, taps).clamp_min(0).sqrt().item()
        length = taps.norm().item()
        return weight, left / length if length else 0.0


def _by_taps(generators: Generators, offsets: Offsets) -> tuple[Tensor, Tensor]:
    """I, L_1 .. L_nL by their columns, (n_L + 1, columns, points), and the column of T_k at each point, (K, points)."""
    stencil = generators.stencil()
    if generators.transposed:
        raise ValueError("generators: expected generators that are not transposed, for init='fit'")
    if stencil is None:
        return _by_points(generators, offsets)
    assert isinstance(generators, GridGenerators)
    ndim = len(offsets[0])
    v = generators.sample(generators.grid_shape() or (SIZE[ndim],) * ndim, generators.coefficients().double())
    zero = (0,) * ndim
    union: Offsets = sorted({zero, *stencil.taps, *offsets})
    place = {offset: k for k, offset in enumerate(union)}
    s = spread(stencil, v.cpu()).flatten(2)  # (n_L, T, points)
    basis = torch.zeros(s.shape[0] + 1, len(union), s.shape[2], dtype=s.dtype)
    basis[0, place[zero]] = 1
    basis[1:].index_add_(1, torch.tensor([place[t] for t in stencil.taps]), s)
    return basis, torch.tensor([place[o] for o in offsets]).unsqueeze(1).expand(-1, s.shape[2])


def _by_points(generators: Generators, offsets: Offsets) -> tuple[Tensor, Tensor]:
    """The same by dense matrices, at the points that see all of the kernel."""
    ndim, around = len(offsets[0]), halo(offsets)
    spatial = tuple(SIZE[ndim] + low + high for low, high in around)
    matrices = generators.to_dense(spatial).detach().cpu().double()  # ValueError where they fit another grid alone
    index = torch.arange(torch.Size(spatial).numel()).reshape(spatial)
    for axis, (low, high) in enumerate(around):
        index = index.narrow(axis, low, spatial[axis] - low - high)
    points = index.flatten()
    steps = [torch.Size(spatial[axis + 1 :]).numel() for axis in range(ndim)]
    moves = torch.tensor([sum(o * step for o, step in zip(offset, steps, strict=True)) for offset in offsets])
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype).unsqueeze(0)
    return torch.cat([identity, matrices])[:, points].transpose(1, 2), points + moves.unsqueeze(1)
