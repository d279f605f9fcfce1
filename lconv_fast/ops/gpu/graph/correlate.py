"""correlate on a graph: dQ/ds[i,e] = sum over b of (W_i^T g)[b,mu] . f[b,nu]; a program has its targets' edges."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.graph.rows import NODES, WARPS, Nodes, Rows, block, own_tile, wide
from lconv_fast.ops.graph import Graph


def correlate(input: Tensor, weight: Tensor, cotangent: Tensor, *described) -> Tensor:
    graph = Graph(*described)
    count, outs, ins = weight.shape[0] - 1, weight.shape[1] // graph.groups, weight.shape[2]
    batch, _, nodes = input.shape
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    result = torch.zeros(count, graph.sources.shape[0], dtype=dtype, device=input.device)
    tiles = triton.cdiv(nodes, NODES)
    if result.numel() and input.numel() and cotangent.numel():
        correlate_kernel[(tiles * count,)](
            Rows.of(graph, result, False),
            Nodes.of(input),
            weight,
            *weight.stride(),
            Nodes.of(cotangent),
            nodes,
            batch,
            graph.groups,
            ins,
            outs,
            tiles,
            incidence=graph.incidence,
            wide=wide(input.dtype),
            BM=NODES,
            BN=block(outs),
            BK=block(ins),
            num_warps=WARPS,
        )
    return result


@triton.jit
def correlate_kernel(
    rows,  # its weights are the result
    source,
    weight,
    w_row,
    w_out,
    w_in,
    cotangent,
    nodes,
    samples,
    groups,
    ins,
    outs,
    tiles,
    incidence: tl.constexpr,
    wide: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    i, tile = program // tiles, program % tiles
    node = tile * BM + tl.arange(0, BM)
    here = node < nodes
    first = tl.load(rows.starts + node, mask=here, other=0)
    last = tl.load(rows.starts + node + 1, mask=here, other=0)
    degree = tl.max(last - first, 0)
    for k in range(samples * groups):
        batch, group = (k // groups).to(tl.int64), k % groups
        base = source.data + batch * source.batch + group * ins * source.channel
        g_base = cotangent.data + batch * cotangent.batch + group * outs * cotangent.channel
        for at in range(0, ins, BK):
            c = (at + tl.arange(0, BK)).to(tl.int64)
            h = tl.zeros((BM, BK), wide)
            for of_outs in range(0, outs, BN):
                o = (of_outs + tl.arange(0, BN)).to(tl.int64)
                g = own_tile(cotangent, g_base, node, here, o, outs)
                matrix = weight + (i + 1) * w_row + (group * outs + o)[:, None] * w_out + c[None, :] * w_in
                w = tl.load(matrix, mask=(o < outs)[:, None] & (c < ins)[None, :], other=0.0)
                h = tl.dot(g, w, h, input_precision="ieee", out_dtype=wide)
            own = own_tile(source, base, node, here, c, ins).to(wide)
            for entry in range(degree):
                there = first + entry < last
                other = tl.load(rows.nodes + first + entry, mask=there, other=0)
                edge = tl.load(rows.edges + first + entry, mask=there, other=0)
                x = own_tile(source, base, other, there, c, ins).to(wide)
                if incidence:
                    x = tl.where(there[:, None], x - own, 0.0)
                place = rows.weights + i * rows.count + edge
                # Of this program alone: what an earlier round wrote is there.
                before = tl.load(place, mask=there, other=0.0)
                tl.store(place, before + tl.sum(h * x, 1), mask=there)
            tl.debug_barrier()
