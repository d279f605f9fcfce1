"""W in the order of what it is multiplied with: stacks of permuted tiles of one block of channels, or of several."""

from __future__ import annotations

import triton
import triton.language as tl

from lconv_fast.ops.gpu.march.registers import CHANNELS, channel_order


@triton.jit
def weight_rows(weight, group, row, c, there, o, outs):
    """W[row, o, c], (k, outs), with row and c of every k, where there is such a row; else zero."""
    return tl.load(
        weight.data
        + group * weight.group
        + row[:, None] * weight.row
        + c[:, None] * weight.into
        + o[None, :] * weight.out,
        mask=there[:, None] & (o < outs)[None, :],
        other=0.0,
    )


@triton.jit
def weight_stack(
    weight,
    group,
    block: tl.constexpr,
    first: tl.constexpr,
    size: tl.constexpr,
    stencil: tl.constexpr,
    o,
    outs,
):
    """What a stack of permuted tiles of one block of channels is multiplied with; zero where it repeats the last."""
    rows: tl.constexpr = stencil.generators + stencil.identity
    row = first + tl.arange(0, CHANNELS * size) // CHANNELS
    c = block * CHANNELS + channel_order(CHANNELS * size) % CHANNELS
    return weight_rows(weight, group, row + 1 - stencil.identity, c, row < rows, o, outs)


@triton.jit
def difference_weight(
    weight,
    group,
    block: tl.constexpr,
    first: tl.constexpr,
    size: tl.constexpr,
    b: tl.constexpr,
    blocks: tl.constexpr,
    stencil: tl.constexpr,
    o,
    outs,
):
    """W_ab for a stack of permuted tiles D_a f, all axes of block `block`, then of the next, from tile `first` on."""
    n: tl.constexpr = stencil.ndim
    tile = first + tl.arange(0, CHANNELS * size) // CHANNELS
    c = (block + tile // n) * CHANNELS + channel_order(CHANNELS * size) % CHANNELS
    return weight_rows(weight, group, 1 + tile % n * (n + 1) + b, c, tile < n * blocks, o, outs)


@triton.jit
def tap_weight(weight, group, first: tl.constexpr, size: tl.constexpr, rows: tl.constexpr, o, outs):
    """For a stack of permuted tiles, all rows of a block of channels, then of the next, from tile `first` on."""
    tile = first + tl.arange(0, CHANNELS * size) // CHANNELS
    c = (tile // rows) * CHANNELS + channel_order(CHANNELS * size) % CHANNELS
    return weight_rows(weight, group, tile % rows, c, c >= 0, o, outs)


@triton.jit
def own_weight(weight, group, block: tl.constexpr, blocks: tl.constexpr, o, outs):
    """W^0 for `blocks` blocks of channels."""
    c = block * CHANNELS + channel_order(CHANNELS * blocks)
    return weight_rows(weight, group, c * 0, c, c >= 0, o, outs)
