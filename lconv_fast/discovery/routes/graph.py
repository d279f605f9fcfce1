"""The L-conv route on a graph: a weight on each edge."""

from __future__ import annotations

import torch
from torch import Tensor

from lconv_fast.discovery.problem import Problem
from lconv_fast.discovery.result import Found
from lconv_fast.discovery.routes.lconv import labels_of, minimise, of_learned
from lconv_fast.discovery.scrambled import likest
from lconv_fast.generators import GraphGenerators

NEAREST = 12  # neighbours of a node whose graph is not given: on a grid, those up to two points away
FACTORS = 2  # of the recursion


def on_graph(problem: Problem) -> Found:
    """Minimises |y - (I + t/p L)^p x|^2 over weights on edges; x, y (P, C, nodes). All nodes take part: a graph does
    not say where it ends."""
    if problem.ndim != 1:
        raise ValueError(f"x: kind 'graph' takes (P, C, nodes), got {tuple(problem.x.shape)}")
    labels, nodes = labels_of(problem), problem.spatial[0]
    edges = likest(torch.cat([problem.x, problem.y]), NEAREST) if problem.edges is None else _checked(problem, nodes)
    itself = torch.arange(nodes).expand(2, -1)
    edges = torch.cat([edges[:, edges[0] != edges[1]], itself], 1)
    unknowns, equations = edges.shape[1] * labels.shape[1], problem.x.numel()
    if equations < 2 * unknowns:
        raise ValueError(f"x: {equations} values cannot identify {unknowns} numbers on {edges.shape[1]} edges")
    f, g = (v.transpose(1, 2).to(problem.device) for v in (problem.x, problem.y))
    t = labels.to(problem.device)
    size = t.abs().max(0).values
    zero = torch.zeros(t.shape[1], edges.shape[1], dtype=torch.float64, device=problem.device)
    generators = GraphGenerators(edges.to(problem.device), zero, nodes, learnable=True)
    steps = problem.recursions or FACTORS
    problem.report("L-conv on the graph", 0.0)
    residual = minimise(generators, f, g, t / size, steps, torch.ones_like(f[:, :, :1]))
    weight = (generators.edge_weight.detach() / size[:, None]).float()
    found = GraphGenerators(generators.edge_index, weight, nodes)
    return of_learned(problem, found, residual, steps, [], False)


def _checked(problem: Problem, nodes: int) -> Tensor:
    edges = problem.edges
    if not isinstance(edges, Tensor) or edges.is_floating_point() or edges.is_complex() or edges.dtype == torch.bool:
        got = edges.dtype if isinstance(edges, Tensor) else type(edges).__name__
        raise TypeError(f"edges: expected a tensor of integers (2, E), got {got}")
    if edges.dim() != 2 or len(edges) != 2:
        raise ValueError(f"edges: expected shape (2, E), got {tuple(edges.shape)}")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        raise ValueError(f"edges: expected nodes 0 to {nodes - 1}, got {int(edges.min())} to {int(edges.max())}")
    return edges.cpu().long()
