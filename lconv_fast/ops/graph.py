"""The operators on graphs: what describes a graph in their schemas (csrc/graph_operators.cpp), and fakes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lconv_fast.ops.geometry import accumulate_type


class Graph(NamedTuple):
    """Edges e = (nu, mu) by their targets mu, which are the rows of L, and by their sources nu, the rows of L^T.

    The entries of row r stand at [starts[r], starts[r + 1]): the node at the other end, and e. All are int64.
    """

    starts: Tensor  # (nodes + 1,)
    sources: Tensor  # (E,)
    in_edges: Tensor  # (E,)
    out_starts: Tensor
    targets: Tensor
    out_edges: Tensor
    groups: int = 1
    incidence: bool = False

    @staticmethod
    def of(edge_index: Tensor, num_nodes: int, incidence: bool) -> Graph:
        """From (2, E), sources and targets. Entries of a row keep the order of the edges, in which they are summed."""
        source, target = edge_index
        return Graph(*_rows(target, source, num_nodes), *_rows(source, target, num_nodes), 1, incidence)


TENSORS = 6  # of these fields


def _rows(row: Tensor, other: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    ordered, edges = torch.sort(row, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_nodes + 1, device=row.device))
    return starts, other[edges].contiguous(), edges


def _nodes_first(like: Tensor, channels: int) -> Tensor:
    """(N, channels, nodes), the channels of a node contiguous."""
    return like.new_empty(like.size(0), like.size(2), channels).transpose(1, 2)


@torch.library.register_fake("lconv_fast::graph_apply")
def _(input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    *graph, _identity, transposed = arguments
    return _nodes_first(input, weight.size(2) * Graph(*graph).groups if transposed else weight.size(1))


@torch.library.register_fake("lconv_fast::graph_gram")
def _(input: Tensor, cotangent: Tensor, coefficients: Tensor, *arguments: Any) -> Tensor:
    *graph, _identity = arguments
    return input.new_empty((coefficients.size(0) + 1, cotangent.size(1), input.size(1) // Graph(*graph).groups))


@torch.library.register_fake("lconv_fast::graph_correlate")
def _(input: Tensor, weight: Tensor, cotangent: Tensor, *graph: Any) -> Tensor:
    shape = (weight.size(0) - 1, Graph(*graph).sources.size(0))
    return input.new_empty(shape, dtype=accumulate_type(input.dtype))


@torch.library.register_fake("lconv_fast::graph_backward")
def _(cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _nodes_first(input, input.size(1)), weight.new_empty(weight.shape)
