"""apply on a graph: y = sum_r (L_r f) W_r, or its transpose; a program makes a tile of nodes by a tile of channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lconv_fast.ops.gpu.graph.rows import NODES, WARPS, Nodes, Rows, block, moved_tile, own_tile, wide
from lconv_fast.ops.graph import Graph


def apply(input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None, *arguments) -> Tensor:
    *described, identity, transposed = arguments
    graph = Graph(*described)
    rows, outs, ins = weight.shape[0], weight.shape[1] // graph.groups, weight.shape[2]
    from_, into = (outs, ins) if transposed else (ins, outs)
    batch, _, nodes = input.shape
    output = input.new_empty(batch, nodes, into * graph.groups).transpose(1, 2)
    tiles, blocks = triton.cdiv(nodes, NODES), triton.cdiv(into, block(into))
    if not output.numel():
        return output
    strides = weight.stride() if not transposed else (weight.stride(0), weight.stride(2), weight.stride(1))
    apply_kernel[(tiles * blocks * graph.groups * batch,)](
        Rows.of(graph, coefficients, transposed),
        Nodes.of(input),
        weight,
        *strides,
        outs * weight.stride(1),
        bias,
        Nodes.of(output),
        nodes,
        graph.groups,
        from_,
        into,
        rows - 1,
        tiles,
        blocks,
        identity=identity,
        incidence=graph.incidence,
        transposed=transposed,
        has_bias=bias is not None,
        wide=wide(input.dtype),
        BM=NODES,
        BN=block(into),
        BK=block(from_),
        num_warps=WARPS,
    )
    return output


@triton.jit
def apply_kernel(
    rows,
    source,
    weight,
    w_row,
    w_into,
    w_from,
    w_group,
    bias,
    target,
    nodes,
    groups,
    ins,  # channels of one group, of the source
    outs,  # and of the target
    count,
    tiles,
    blocks,
    identity: tl.constexpr,
    incidence: tl.constexpr,
    transposed: tl.constexpr,
    has_bias: tl.constexpr,
    wide: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    of_outs, program = program % blocks, program // blocks
    group, program = program % groups, program // groups
    tile, batch = program % tiles, program // tiles
    node = tile * BM + tl.arange(0, BM)
    here = node < nodes
    o = of_outs * BN + tl.arange(0, BN)
    narrow: tl.constexpr = source.data.dtype.element_ty
    base = source.data + batch * source.batch + group * ins * source.channel

    total = tl.zeros((BM, BN), wide)
    for first in range(0, ins, BK):
        c = (first + tl.arange(0, BK)).to(tl.int64)
        matrix = weight + group * w_group + c[:, None] * w_from + o[None, :] * w_into
        filled = (c < ins)[:, None] & (o < outs)[None, :]
        if identity:
            own = own_tile(source, base, node, here, c, ins)
            total = tl.dot(own, tl.load(matrix, mask=filled, other=0.0), total, input_precision="ieee", out_dtype=wide)
        for i in range(count):
            moved = moved_tile(i, rows, source, base, node, here, c, ins, incidence, transposed, wide)
            w = tl.load(matrix + (i + 1) * w_row, mask=filled, other=0.0)
            total = tl.dot(moved.to(narrow), w, total, input_precision="ieee", out_dtype=wide)
    if has_bias:
        total += tl.load(bias + group * outs + o, mask=o < outs, other=0.0).to(wide)[None, :]
    at = target.data + batch * target.batch + node[:, None] * target.node + (group * outs + o)[None, :] * target.channel
    tl.store(at, total.to(narrow), mask=here[:, None] & (o < outs)[None, :])
