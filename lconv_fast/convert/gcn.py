"""The graph convolution of Kipf and Welling as an L-conv with one generator and W^0 = 0 (MATH: special cases)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_strided, positive_int
from lconv_fast.generators import GraphGenerators
from lconv_fast.generators.graph import check_edges
from lconv_fast.modules import LConvGraph


def from_gcn(conv: nn.Module, edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None) -> LConvGraph:
    """The L-conv on a graph that equals a GCNConv of PyTorch Geometric: L = D^-1/2 A D^-1/2, W^0 = 0, W^1 = its weight.

    A has the self loops that the convolution adds, of weight 1, or 2 if `improved` and there are edge weights; D sums A
    over the edges of each target.
    What the convolution normalizes at each call is computed here once, for this graph. W^0 is zero, and a parameter
    like the others: training the layer trains a residual term as well.

    Args:
        conv: a module with GCNConv's attributes: lin (nn.Linear's weight (out, in)), bias, improved, add_self_loops,
            normalize. torch_geometric itself is not needed.
        edge_index: (2, E), row 0 the sources and row 1 the targets.
        num_nodes: of the graph.
        edge_weight: (E,), 1 by default.

    Raises:
        TypeError, ValueError: for another module, for flow="target_to_source", and for edges out of range.
    """
    missing = [n for n in ("lin", "bias", "improved", "add_self_loops", "normalize") if not hasattr(conv, n)]
    if missing:
        raise TypeError(
            f"conv: expected a GCNConv of torch_geometric, got {type(conv).__name__} without {', '.join(missing)}"
        )
    module: Any = conv
    if getattr(module, "flow", "source_to_target") != "source_to_target":
        raise ValueError(f"conv: expected flow='source_to_target', got {module.flow!r}")
    weight = module.lin.weight
    if nn.parameter.is_lazy(weight):
        raise TypeError("conv: expected a weight of known shape, got one that is made at the first input")
    check_edges(edge_index, positive_int("num_nodes", num_nodes))
    if edge_weight is not None:
        if not isinstance(edge_weight, Tensor) or edge_weight.is_complex():
            raise TypeError(f"edge_weight: expected a tensor of real numbers (E,), got {edge_weight!r}")
        check_strided("edge_weight", edge_weight)
        if tuple(edge_weight.shape) != (edge_index.shape[1],) or edge_weight.is_meta:
            raise ValueError(
                f"edge_weight: expected numbers of {edge_index.shape[1]} edges as in edge_index, got "
                f"{tuple(edge_weight.shape)} on {edge_weight.device}"
            )
    w = torch.ones(edge_index.shape[1]) if edge_weight is None else edge_weight
    edges, w = edge_index.to(weight.device), w.to(weight)
    if module.normalize and module.add_self_loops:
        # Without edge weights, GCNConv gives all edges weight 1 once the loops are there, whatever `improved` says.
        fill = 2.0 if module.improved and edge_weight is not None else 1.0
        edges, w = _with_loops(edges, w, num_nodes, fill)
    generators = GraphGenerators.from_adjacency(
        edges, num_nodes, "gcn" if module.normalize else None, edge_weight=w, self_loops=False
    )
    outs, ins = weight.shape
    bias = module.bias
    with torch.random.fork_rng(devices=[]):
        layer = LConvGraph(ins, outs, generators, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.weight[1] = weight
        if bias is not None:
            layer.bias.copy_(bias)  # type: ignore[union-attr]
    return layer.train(module.training)


def _with_loops(edges: Tensor, weight: Tensor, num_nodes: int, fill: float) -> tuple[Tensor, Tensor]:
    """Exactly one loop at each node: of the weight of the last that is there, or of weight `fill`."""
    loop = edges[0] == edges[1]
    loops = torch.full((num_nodes,), fill, dtype=weight.dtype, device=weight.device)
    for node, value in zip(edges[0][loop].tolist(), weight[loop], strict=True):
        loops[node] = value
    nodes = torch.arange(num_nodes, device=edges.device)
    return torch.cat([edges[:, ~loop], nodes.expand(2, -1)], 1), torch.cat([weight[~loop], loops])
