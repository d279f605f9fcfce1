"""Products of affine generators: elements of second order of the enveloping algebra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from lconv_fast.checks import boolean, extents, rows_of_integers
from lconv_fast.generators.affine import AffineGenerators
from lconv_fast.generators.differential import first_and_second
from lconv_fast.generators.on_grid import DerivativeGenerators, spread

Word = tuple[int, ...]


class ProductGenerators(DerivativeGenerators):
    """L_i L_j, or symmetrised 1/2 (L_i L_j + L_j L_i), of affine fields L_i = v_i^a(x) d_a as generators of their own.

    L_i L_j = v_i^a v_j^b d_a d_b + v_i^a (d_a v_j^b) d_b: the product is taken of the fields, exactly, and each
    derivative is then a difference on the grid. So d_a d_a is the narrow second difference, not the square of the
    first; both agree to the order of the differences, and exactly on polynomials of degree `accuracy` and less.

    What is affine, and what is sampled: L_i itself is affine in x, but the coefficients of a product are polynomials of
    second degree. Where the fields are translations, they are constants, and the generators fit any grid (an ordinary
    convolution). Else they are sampled on the grid `spatial`, m = n + n (n + 1) / 2 numbers for each element and point,
    computed from the fields at each call, so that gradients reach matrix and shift.

    Args:
        generators: AffineGenerators, whose accuracy and padding_mode hold for the products; a module of this one.
        pairs: the elements, each (i, j), or (i,) for L_i itself, so that first and second order share one kernel.
            None: all (i, j) with i <= j.
        symmetrised: of (i, j) and (j, i) alike, 1/2 (L_i L_j + L_j L_i): what is left out is a commutator, of first
            order (eq. 5 of Dehmamy et al. 2021).
        spatial: the grid's shape, for fields that depend on x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    generators: AffineGenerators

    def __init__(
        self,
        generators: AffineGenerators,
        pairs: Sequence[Word] | None = None,
        *,
        symmetrised: bool = True,
        spatial: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(generators, AffineGenerators):
            raise TypeError(f"generators: expected AffineGenerators, got {type(generators).__name__}")
        if generators.transposed:
            raise ValueError("generators: expected vector fields, got transposes; transpose the products instead")
        count, n = generators.num_generators, generators.ndim
        every = tuple(combinations_with_replacement(range(count), 2))
        words = every if pairs is None else rows_of_integers("pairs", pairs, "(i, j) or (i,)")
        for word in words:
            if len(word) not in (1, 2) or not all(0 <= i < count for i in word):
                raise ValueError(f"pairs: expected (i, j) or (i,) with generators 0 to {count - 1}, got {word!r}")
        if not words:
            raise ValueError("pairs: expected at least one element")
        matrix = generators.matrix
        if spatial is None and (matrix.is_meta or matrix.requires_grad or bool(matrix.any())):
            raise ValueError("spatial: expected the shape of the grid, since these fields depend on x; got None")
        if spatial is not None:
            spatial = extents("spatial", spatial, n)
        self.num_generators, self.ndim = len(words), n
        self.words, self.symmetrised = list(words), boolean("symmetrised", symmetrised)
        self.spatial = None if spatial is None else tuple(spatial)
        self._set_derivatives(first_and_second(n), generators.accuracy, generators.padding_mode)
        self.generators = generators
        if spatial is None:
            self._merge_taps()

    def coefficients(self) -> Tensor:
        """Of d_a, then of d_a d_b with a <= b: (n_L, m), or sampled (n_L, m, *spatial)."""
        g, n = self.generators, self.ndim
        if self.spatial is None:
            v, slope = g.shift, torch.zeros_like(g.matrix)
        else:
            v, slope = g.sample(self.spatial), g.matrix / g.scale(self.spatial)  # slope[j,b,a] = d_a v_j^b

        def first(i: int, j: int) -> Tensor:
            return (spread(slope[j], self.spatial or ()) * v[i].unsqueeze(0)).sum(1)

        def second(i: int, j: int) -> Tensor:
            both = v[i].unsqueeze(1) * v[j].unsqueeze(0)
            pairs = [(a, b) for a in range(n) for b in range(a, n)]
            return torch.stack([both[a, b] if a == b else both[a, b] + both[b, a] for a, b in pairs])

        result = []
        for word in self.words:
            if len(word) == 1:
                i = word[0]
                result.append(torch.cat([v[i], torch.zeros_like(second(i, i))]))
            else:
                i, j = word
                along = (first(i, j) + first(j, i)) / 2 if self.symmetrised else first(i, j)
                result.append(torch.cat([along, second(i, j)]))
        return self._on_taps(torch.stack(result))

    def check_filled(self) -> None:
        self.generators.check_filled()

    def grid_shape(self) -> tuple[int, ...] | None:
        return self.spatial

    def extra_repr(self) -> str:
        grid = "" if self.spatial is None else f", spatial={self.spatial}"
        return super().extra_repr() + f", symmetrised={self.symmetrised}{grid}"
