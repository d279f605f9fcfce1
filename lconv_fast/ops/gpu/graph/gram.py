"""gram on a graph: dQ/dW = sum over nodes of (L_r f)^T g; parts of the nodes by programs, added up in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.graph.rows import NODES, WARPS, Nodes, Rows, block, moved_tile, own_tile, wide
from lconv_fast.ops.graph import Graph

MOST_PARTS = 64  # whatever the card: so are the bits of the sums


def gram(input: Tensor, cotangent: Tensor, coefficients: Tensor, *arguments) -> Tensor:
    *described, identity = arguments
    graph = Graph(*described)
    ins, outs, rows = input.shape[1] // graph.groups, cotangent.shape[1] // graph.groups, coefficients.shape[0] + 1
    batch, _, nodes = input.shape
    tiles = batch * triton.cdiv(nodes, NODES)
    parts = max(1, min(MOST_PARTS, tiles))
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    partial = torch.zeros(parts, rows, graph.groups * outs, ins, dtype=dtype, device=input.device)
    blocks = (triton.cdiv(ins, block(ins)), triton.cdiv(outs, block(outs)))
    if partial.numel() and input.numel():
        gram_kernel[(parts * rows * graph.groups * blocks[0] * blocks[1],)](
            Rows.of(graph, coefficients, False),
            Nodes.of(input),
            Nodes.of(cotangent),
            partial,
            nodes,
            batch,
            graph.groups,
            ins,
            outs,
            rows,
            parts,
            *blocks,
            identity=identity,
            incidence=graph.incidence,
            wide=wide(input.dtype),
            BM=NODES,
            BN=block(outs),
            BK=block(ins),
            num_warps=WARPS,
        )
    return partial.sum(0).to(input.dtype)


@triton.jit
def gram_kernel(
    rows,
    source,
    cotangent,
    partial,
    nodes,
    samples,
    groups,
    ins,
    outs,
    count,  # rows of W
    parts,
    in_blocks,
    out_blocks,
    identity: tl.constexpr,
    incidence: tl.constexpr,
    wide: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    of_outs, program = program % out_blocks, program // out_blocks
    of_ins, program = program % in_blocks, program // in_blocks
    group, program = program % groups, program // groups
    r, part = program % count, program // count
    c, o = of_ins * BK + tl.arange(0, BK), of_outs * BN + tl.arange(0, BN)
    narrow: tl.constexpr = source.data.dtype.element_ty
    tiles = (nodes + BM - 1) // BM
    all_tiles = samples * tiles

    total = tl.zeros((BK, BN), wide)
    if identity or r > 0:
        for k in range(all_tiles * part // parts, all_tiles * (part + 1) // parts):
            batch = k // tiles
            node = k % tiles * BM + tl.arange(0, BM)
            here = node < nodes
            base = source.data + batch * source.batch + group * ins * source.channel
            if r == 0:
                f = own_tile(source, base, node, here, c, ins)
            else:
                f = moved_tile(r - 1, rows, source, base, node, here, c, ins, incidence, False, wide).to(narrow)
            g_base = cotangent.data + batch * cotangent.batch + group * outs * cotangent.channel
            g = own_tile(cotangent, g_base, node, here, o, outs)
            total = tl.dot(tl.trans(f), g, total, input_precision="ieee", out_dtype=wide)
    at = partial + ((part * count + r) * groups + group) * outs * ins + o[None, :] * ins + c[:, None]
    tl.store(at, total, mask=(c < ins)[:, None] & (o < outs)[None, :])
