"""The weights of an L-conv nearest to a convolution, or to another L-conv, in the least-squares sense."""

from __future__ import annotations

import torch
from torch import Tensor

from lconv_fast.convert.taps import Taps, fixed_grid, sampled
from lconv_fast.generators import Generators

Offsets = list[tuple[int, ...]]
SIZE = {1: 17, 2: 9, 3: 5}  # points per axis that stand for grids of any size
CHUNK = 4096  # points


class Projection:
    """The operators T_k f(x) = f(x + o_k) written in the basis I, L_1 .. L_nL: the best in the Frobenius norm.

    minimise over P   mean over x of | T_k - P_0k I - sum_i P_ik L_i |^2, the error on white noise of variance 1

    away from boundaries. Channels take no part: W^i = sum_k P_ik K_k for a kernel K_k, and the error of the layer is
    sum_kl K_k (error)_kl K_l.

    Args:
        generators: with taps. Coefficients that depend on x are taken on their own grid; those of affine fields, whose
            grid is free, on one of SIZE points per axis.
        offsets: o_k.

    Raises:
        TypeError: for generators without taps.
        ValueError: for transposed generators.
    """

    weights: Tensor  # P, (n_L + 1, K)
    error: Tensor  # (K, K): mean over x of the products of what is left of T_k and T_l

    def __init__(self, generators: Generators, offsets: Offsets) -> None:
        taps = Taps.of(generators)
        if taps.transposed:
            raise ValueError("generators: expected generators that are not transposed, for init='fit'")
        ndim, v = taps.ndim, generators.coefficients().detach().cpu().double()
        spatial = fixed_grid(generators) or (SIZE[ndim],) * ndim
        zero = (0,) * ndim
        union: Offsets = sorted({zero, *taps.taps, *offsets})
        place = {offset: k for k, offset in enumerate(union)}

        s = sampled(taps, v, spatial).flatten(2)  # (n_L, T, points)
        count, points = s.shape[0], s.shape[2]
        rows = torch.tensor([place[t] for t in taps.taps])
        basis = torch.zeros(count + 1, len(union), points, dtype=s.dtype)
        basis[0, place[zero]] = 1
        basis[1:].index_add_(1, rows, s)
        columns = [place[o] for o in offsets]
        right = basis.mean(2)[:, columns]  # <L_i, T_k>
        gram = torch.einsum("iup,jup->ij", basis, basis) / points
        # Generators may be zero or depend on one another: the solution of least norm.
        self.weights = torch.linalg.pinv(gram, hermitian=True) @ right

        self.error = torch.zeros(len(offsets), len(offsets), dtype=s.dtype)
        for part in basis.split(CHUNK, 2):
            left = -torch.einsum("ik,iup->kup", self.weights, part)
            left[torch.arange(len(offsets)), columns] += 1
            self.error += torch.einsum("kup,lup->kl", left, left) / points

    def fit(self, kernel: Tensor) -> tuple[Tensor, float]:
        """W (n_L + 1, out, in) for a kernel (K, out, in), and the distance |K - W| / |K| of the operators."""
        taps = kernel.detach().cpu().double()
        weight = torch.einsum("ik,koc->ioc", self.weights, taps)
        left = torch.einsum("koc,kl,loc->", taps, self.error, taps).clamp_min(0).sqrt().item()
        length = taps.norm().item()
        return weight, left / length if length else 0.0
