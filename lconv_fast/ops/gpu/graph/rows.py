"""Tiles of f and L_i f at consecutive nodes, from the rows of a graph; and what kernels are told of data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.graph import Graph

NODES, CHANNELS, WARPS = 32, 64, 4  # of a tile, at most; no card has been asked yet which serve it best


class Rows(NamedTuple):
    """Of L or its transpose; with incidence, its transpose subtracts the sum of the edges that enter a node."""

    starts: Any
    nodes: Any
    edges: Any
    in_starts: Any
    in_edges: Any
    weights: Any  # (n_L, E)
    count: Any  # E

    @staticmethod
    def of(graph: Graph, coefficients: Tensor, transposed: bool) -> Rows:
        by_target, by_source = graph[:3], graph[3:6]
        starts, nodes, edges = by_source if transposed else by_target
        return Rows(starts, nodes, edges, graph.starts, graph.in_edges, coefficients.contiguous(), edges.shape[0])


class Nodes(NamedTuple):
    """Data (batch, channels, nodes)."""

    data: Any
    batch: Any
    channel: Any
    node: Any

    @staticmethod
    def of(t: Tensor) -> Nodes:
        return Nodes(t, *t.stride())


def block(channels: int) -> int:
    """Channels of a tile: a power of two that a product takes."""
    return min(CHANNELS, max(16, triton.next_power_of_2(channels)))


def wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def own_tile(source, base, node, here, c, channels):
    at = base + node[:, None] * source.node + c[None, :] * source.channel
    return tl.load(at, mask=here[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit
def moved_tile(
    i,
    rows,
    source,
    base,
    node,
    here,
    c,
    channels,
    incidence: tl.constexpr,
    transposed: tl.constexpr,
    wide: tl.constexpr,
):
    """(L_i f) or (L_i^T f), summed in the order of the entries."""
    first = tl.load(rows.starts + node, mask=here, other=0)
    last = tl.load(rows.starts + node + 1, mask=here, other=0)
    total = tl.zeros((node.shape[0], c.shape[0]), wide)
    own = own_tile(source, base, node, here, c, channels).to(wide)
    for k in range(tl.max(last - first, 0)):
        there = first + k < last
        other = tl.load(rows.nodes + first + k, mask=there, other=0)
        edge = tl.load(rows.edges + first + k, mask=there, other=0)
        w = tl.load(rows.weights + i * rows.count + edge, mask=there, other=0.0).to(wide)
        x = own_tile(source, base, other, there, c, channels).to(wide)
        if incidence and not transposed:
            x = tl.where(there[:, None], x - own, 0.0)
        total += w[:, None] * x
    if incidence and transposed:
        first = tl.load(rows.in_starts + node, mask=here, other=0)
        last = tl.load(rows.in_starts + node + 1, mask=here, other=0)
        entering = tl.zeros((node.shape[0],), wide)
        for k in range(tl.max(last - first, 0)):
            there = first + k < last
            edge = tl.load(rows.in_edges + first + k, mask=there, other=0)
            entering += tl.load(rows.weights + i * rows.count + edge, mask=there, other=0.0).to(wide)
        total -= entering[:, None] * own
    return total
