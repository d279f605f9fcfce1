"""Generators on the edges of a graph or mesh. Layers run in one kernel; L_i f alone in PyTorch, by gathers and sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lconv_fast import form
from lconv_fast.checks import (
    boolean,
    check_float,
    check_generators,
    check_strided,
    check_types,
    extents,
    positive_int,
)
from lconv_fast.generators.base import Generators, full_precision
from lconv_fast.generators.mesh import gradient_edges
from lconv_fast.generators.on_grid import GridGenerators
from lconv_fast.generators.stencil import StencilGenerators
from lconv_fast.ops.geometry import accumulate_type
from lconv_fast.ops.graph import Graph

NORMALIZATIONS = ("gcn", "rw", None)


class GraphGenerators(Generators):
    """(L_i f)[mu] = sum over edges e = (nu, mu) of w[i, e] f[nu]; with L = D^-1/2 A D^-1/2, the layer is a GCN.

    With incidence=True, the sum is of w[i, e] (f[nu] - f[mu]), differences along the edges (the incidence matrix in the
    place of partial derivatives: section 2.1 and 4 of Dehmamy et al. 2021), which is exactly 0 for constant f.
    Edges that occur twice add up, as the entries of a matrix would; nodes without edges get 0.

    Called with f (N, nodes, C), it gives L_i f as (N, n_L, nodes, C); LConvGraph, whose kernel reads the edges sorted
    by target and by source (made once), never writes them. Results and gradients have the same bits for any number of
    threads; L_i f alone, on a GPU, with torch.use_deterministic_algorithms(True).

    Args:
        edge_index: (2, E) integers, row 0 the source nu and row 1 the target mu, as in PyTorch Geometric.
        edge_weight: (E,) or (n_L, E).
        num_nodes: of the graph.
        incidence: differences along the edges.
        learnable: makes edge_weight a parameter.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    channel_dim = -1
    edge_index: Tensor
    edge_weight: Tensor
    _rows: tuple[int | None, Graph, Tensor] | None = None

    def __init__(
        self,
        edge_index: Tensor,
        edge_weight: Tensor,
        num_nodes: int,
        *,
        incidence: bool = False,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        self.num_nodes = positive_int("num_nodes", num_nodes)
        check_edges(edge_index, self.num_nodes)
        if isinstance(edge_weight, Tensor) and edge_weight.dim() == 1:
            edge_weight = edge_weight.unsqueeze(0)
        check_generators("edge_weight", edge_weight, (2,), "(E,) or (n_L, E)")
        if edge_weight.shape[1] != edge_index.shape[1]:
            raise ValueError(f"edge_weight: expected {edge_index.shape[1]} edges, got {edge_weight.shape[1]}")
        _check_one_device(edge_index, edge_weight)
        self.num_generators, self.incidence = edge_weight.shape[0], boolean("incidence", incidence)
        self.register_buffer("edge_index", edge_index.detach().long().clone())
        self._keep("edge_weight", edge_weight, learnable)
        self.rows()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rows": None}

    @classmethod
    def from_adjacency(
        cls,
        edge_index: Tensor,
        num_nodes: int | None = None,
        normalization: Literal["gcn", "rw"] | None = None,
        *,
        edge_weight: Tensor | None = None,
        self_loops: bool | None = None,
        learnable: bool = False,
    ) -> GraphGenerators:
        """One generator from the adjacency matrix A[mu, nu] = sum of the weights of the edges (nu, mu).

        normalization None: A itself; "rw": D^-1 A, the mean over the neighbours; "gcn": D^-1/2 A D^-1/2, so that the
        layer with W^0 = 0 is that of Kipf and Welling (2017). D is diagonal, D[mu, mu] = sum_nu A[mu, nu]; where it is
        0, so are its inverses.

        Args:
            edge_index: (2, E) integers, as for the class.
            num_nodes: of the graph; None: the largest index and one.
            edge_weight: (E,), by default 1 in torch's default dtype.
            self_loops: A + I in the place of A, for nodes that have no loop yet. None: with "gcn" alone, as Kipf and
                Welling do, and PyTorch Geometric's GCNConv.
            learnable: makes the normalized weights a parameter.
        """
        if not (normalization is None or isinstance(normalization, str)) or normalization not in NORMALIZATIONS:
            valid = ", ".join(map(repr, NORMALIZATIONS))
            raise ValueError(f"normalization: expected one of {valid}, got {normalization!r}")
        if num_nodes is not None:
            num_nodes = positive_int("num_nodes", num_nodes)
        if self_loops is not None:
            self_loops = boolean("self_loops", self_loops)
        check_edges(edge_index, num_nodes)
        if num_nodes is None:
            if not edge_index.numel():
                raise ValueError("num_nodes: expected a number, since there are no edges to tell it by")
            num_nodes = int(edge_index.max()) + 1
        if edge_weight is None:
            edge_weight = torch.ones(edge_index.shape[1], device=edge_index.device)
        check_float("edge_weight", edge_weight, (1,), "(E,)")
        if edge_weight.shape[0] != edge_index.shape[1]:
            raise ValueError(f"edge_weight: expected {edge_index.shape[1]} edges, got {edge_weight.shape[0]}")
        _check_one_device(edge_index, edge_weight)
        index, weight = edge_index.long(), edge_weight
        if normalization == "gcn" if self_loops is None else self_loops:
            alone = torch.ones(num_nodes, dtype=torch.bool, device=index.device)
            alone[index[0][index[0] == index[1]]] = False
            loops = alone.nonzero().flatten()
            index = torch.cat([index, loops.expand(2, -1)], 1)
            weight = torch.cat([weight, weight.new_ones(loops.shape[0])])
        if normalization is not None:
            source, target = index
            degree = weight.new_zeros(num_nodes, dtype=torch.float64).index_add(0, target, weight.double())
            if bool((degree < 0).any()):
                raise ValueError(f"edge_weight: expected degrees of 0 or more, got {degree.min().item()}")
            power = degree.pow(-0.5 if normalization == "gcn" else -1.0)
            power = torch.where(degree == 0, 0.0, power)
            scale = power[target] * power[source] if normalization == "gcn" else power[target]
            weight = (weight.double() * scale).to(weight.dtype)
        return cls(index, weight, num_nodes, learnable=learnable)

    @classmethod
    def from_grid(
        cls, generators: GridGenerators, spatial: Sequence[int], *, learnable: bool = False
    ) -> GraphGenerators:
        """Generators on a grid as a graph of its points, in row-major order: one edge for each point and tap that lies
        in the grid or is shown by its boundary. `to_dense` gives the same matrices.

        Raises TypeError for generators without taps, ValueError for a grid that they do not fit.
        """
        if not isinstance(generators, GridGenerators):
            raise TypeError(f"generators: expected generators of taps on a grid, got {type(generators).__name__}")
        spatial = extents("spatial", spatial, generators.ndim)
        generators.check_filled()
        generators.check_shape(spatial)
        stencil = generators.stencil()
        if stencil is None:
            raise TypeError("generators: expected generators of taps on a grid, got " + repr(generators))
        v = generators.sample(spatial).detach()
        points = torch.Size(spatial).numel()
        # What each tap shows at each point: the image of the points' numbers, shifted. 0 lies outside.
        numbers = torch.arange(1, points + 1, dtype=torch.float64, device=v.device).reshape(1, 1, *spatial)
        taps = StencilGenerators(
            torch.eye(len(stencil.taps), dtype=torch.float64, device=v.device),
            [list(tap) for tap in stencil.taps],
            padding_mode=generators.padding_mode,
        )
        shown = taps(numbers).reshape(-1).long() - 1  # (T * points)
        tap_weights = torch.tensor(stencil.tap_weights, dtype=v.dtype, device=v.device)
        weight = v.flatten(2)[:, list(stencil.components)] * tap_weights.unsqueeze(1)  # (n_L, T, points)
        target = torch.arange(points, device=v.device).repeat(len(stencil.taps))
        inside = shown >= 0
        index = torch.stack([shown, target])[:, inside]
        result = cls(index, weight.flatten(1)[:, inside], points, learnable=learnable)
        return result.transpose() if generators.transposed else result

    @classmethod
    def from_mesh(
        cls, vertices: Tensor, faces: Tensor, fields: Tensor | None = None, *, learnable: bool = False
    ) -> GraphGenerators:
        """Derivatives along vector fields on a triangle mesh: L_i f = X_i . grad f at the vertices.

        f is linear on each face, and the gradient at a vertex a weighted mean of those on its faces. Constant functions
        give exactly 0 (the generators are of differences along edges), linear functions on a flat mesh their exact
        derivative, at its boundary too. On a curved surface the error falls with the square of the size of the faces.
        Vertices without faces get 0.

        Args:
            vertices: (V, k) positions in k = 2 or more dimensions; a real floating-point tensor.
            faces: (F, 3) integers, the corners of each triangle, in any orientation.
            fields: X, (n_L, V, k), in units of length per unit time; None: the k coordinate directions.
            learnable: makes the weights a parameter.

        Raises:
            TypeError, ValueError: also for faces that are no triangles (a corner twice, no area) or occur twice, edges
                of more than two faces, and vertices at which faces meet only there: no surface.
        """
        index, weight = gradient_edges(vertices, faces)
        count, dim = vertices.shape
        if fields is None:
            fields = torch.eye(dim, dtype=vertices.dtype, device=vertices.device).unsqueeze(1).expand(dim, count, dim)
        check_generators("fields", fields, (3,), "(n_L, V, k)")
        if fields.shape[1:] != vertices.shape:
            raise ValueError(
                f"fields: expected shape (n_L, {count}, {dim}) beside those vertices, got {tuple(fields.shape)}"
            )
        check_types(vertices, fields=fields)
        along = torch.einsum("iek,ek->ie", fields.detach()[:, index[1]], weight)
        return cls(index, along, count, incidence=True, learnable=learnable)

    def coefficients(self) -> Tensor:
        return self.edge_weight

    def check_shape(self, spatial: Sequence[int]) -> None:
        if tuple(spatial) != (self.num_nodes,):
            raise ValueError(f"f: expected {self.num_nodes} nodes as the generators have, got {tuple(spatial)}")

    def forward(self, f: Tensor) -> Tensor:
        """L_i f for every i: (N, nodes, C) -> (N, n_L, nodes, C), differentiable to every order."""
        check_float("f", f, (3,), "(N, nodes, C)")
        self.check_filled()
        self.check_shape(f.shape[1:2])
        check_types(f, generators=self.edge_weight)
        with full_precision(f):
            return self.act(self.edge_weight, f).to(f.dtype)

    def act(self, coefficients: Tensor, f: Tensor) -> Tensor:
        f = f.to(accumulate_type(f.dtype))
        return torch.stack([self._act_one(w.to(f.dtype), f) for w in coefficients], 1)

    def _act_one(self, weight: Tensor, f: Tensor) -> Tensor:
        """L_i f: (N, nodes, C) -> (N, nodes, C)."""
        # index_select, whose gradient is index_add: both in the order of the edges, where f[:, source] sums by atomics.
        source, target = self.edge_index
        w, zero = weight.unsqueeze(1), torch.zeros_like(f)
        if not self.incidence:
            seen, summed = (target, source) if self.transposed else (source, target)
            return zero.index_add(1, summed, f.index_select(1, seen) * w)
        if not self.transposed:
            return zero.index_add(1, target, (f.index_select(1, source) - f.index_select(1, target)) * w)
        flow = f.index_select(1, target) * w
        return zero.index_add(1, source, flow).index_add(1, target, -flow)

    def mix(
        self,
        coefficients: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int] = (),
        groups: int = 1,
    ) -> Tensor:
        """The layer on (N, nodes, C_in), without strides, in one kernel that never writes L_i f to memory."""
        graph = self.rows()._replace(groups=groups)
        return form.graph_lconv(coefficients, input, weight, bias, graph, self.transposed)

    def rows(self) -> Graph:
        """The edges as rows of L and of its transpose, made at the first call and again where edge_index changed."""
        index = self.edge_index
        if torch.compiler.is_compiling():  # a trace holds no counts of writes
            return self._rows[1] if self._rows else Graph.of(index, self.num_nodes, self.incidence)
        version = None if index.is_inference() else index._version
        if self._rows is None or self._rows[0] != version or self._rows[2] is not index:
            check_edges(index, self.num_nodes)
            self._rows = (version, Graph.of(index, self.num_nodes, self.incidence), index)
        return self._rows[1]

    def to_dense(self, spatial_shape: Sequence[int]) -> Tensor:
        if math.prod(extents("spatial_shape", spatial_shape)) != self.num_nodes:
            raise ValueError(f"spatial_shape: expected {self.num_nodes} nodes, got {tuple(spatial_shape)}")
        one = torch.eye(self.num_nodes, dtype=self.edge_weight.dtype, device=self.edge_weight.device)
        return self.forward(one.unsqueeze(0))[0]

    def mean_square(self) -> Tensor:
        """r_i = |L_i|^2 / nodes, for edges that differ."""
        with torch.no_grad():
            w = self.edge_weight.double()
            total = w.square().sum(1)
            if self.incidence:
                loops = w.new_zeros(w.shape[0], self.num_nodes).index_add(1, self.edge_index[1], w)
                total = total + loops.square().sum(1)
            return total / self.num_nodes

    def extra_repr(self) -> str:
        return (
            super().extra_repr()
            + f", nodes={self.num_nodes}, edges={self.edge_index.shape[1]}"
            + (", incidence=True" if self.incidence else "")
        )


def _check_one_device(edge_index: Tensor, edge_weight: Tensor) -> None:
    if edge_weight.device != edge_index.device:
        raise TypeError(f"edge_weight: expected device {edge_index.device} as edge_index, got {edge_weight.device}")


def check_edges(edge_index: object, num_nodes: int | None, name: str = "edge_index") -> None:
    """Integers (2, E) from 0 to num_nodes - 1."""
    if not isinstance(edge_index, Tensor) or edge_index.dtype not in (torch.int32, torch.int64):
        found = edge_index.dtype if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise TypeError(f"{name}: expected a tensor of integers (2, E), got {found}")
    check_strided(name, edge_index)
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"{name}: expected shape (2, E), got {tuple(edge_index.shape)}")
    if edge_index.numel() and not edge_index.is_meta:
        least, most = int(edge_index.min()), int(edge_index.max())
        if least < 0 or (num_nodes is not None and most >= num_nodes):
            last = "..." if num_nodes is None else num_nodes - 1
            raise ValueError(f"{name}: expected nodes 0 to {last}, got {least} to {most}")
