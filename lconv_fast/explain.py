"""What a layer will do with an input, before it does it: the path of each operator, its arithmetic and its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lconv_fast import _C
from lconv_fast.checks import check_dtype, choice, extents
from lconv_fast.generators import Generators
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import Geometry, output_size

PATHS = {False: "direct: one product for each generator", True: "basis of a row: products for each axis (csrc/plan.h)"}


@dataclass(frozen=True)
class Step:
    """One operator of the layer."""

    operator: str
    path: str
    products: int  # with C_in x C_out matrices for each point
    flops: int  # of these products, a multiplication and an addition counted as two
    bytes_read: int  # of the arguments, each once
    bytes_written: int  # of the result
    alternative: float  # cost of the path not taken, relative to the one taken; inf: there is none


@dataclass(frozen=True, repr=False)
class Explanation:
    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    capability: str
    steps: tuple[Step, ...]
    bytes_held: int  # for backward, beyond input, weight and bias
    # For each operator on the card asked for, every way in order: why it does not serve, or "" for the one taken.
    gpu: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.layer}: {self.input_shape} -> {self.output_shape}, CPU kernels: {self.capability}",
            f"held for backward beyond the arguments: {self.bytes_held} bytes",
        ]
        for step in self.steps:
            other = (
                "" if math.isinf(step.alternative) else f"; the other way would cost {step.alternative:.2f} times that"
            )
            lines += [
                f"{step.operator}: {step.path}",
                f"    {step.products} products a point, {step.flops / 1e9:.3f} GFLOP{other}",
                f"    reads {step.bytes_read / 1e6:.1f} MB, writes {step.bytes_written / 1e6:.1f} MB",
            ]
        for operator, answers in self.gpu:
            told = "; ".join(f"not {way}: {reason}" if reason else f"taken: {way}" for way, reason in answers)
            lines.append(f"on the GPU, {operator}: {told}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    layer: Any, input_shape: Sequence[int], dtype: torch.dtype | None = None, *, card: str | None = None
) -> Explanation:
    """How a layer works on an input of this shape; print it, or read its fields.

    For the forward pass and for each gradient: the path chosen, by the costs that the kernels themselves compare, its
    products with C_in x C_out matrices, FLOPs, bytes of arguments and results; and the bytes held for backward.

    Args:
        layer: LConv1d, LConv2d or LConv3d with generators on a grid.
        input_shape: (N, C_in, *spatial) or unbatched (C_in, *spatial).
        dtype: of the input; by default that of the layer's weight.
        card: a GPU by name (A100, H100, H200, B200, MI300X), which need not be there: adds which kernels would serve a
            channels-last input on it, and why not the others. Needs the package triton.

    Raises:
        TypeError: not such a layer.
        ValueError: a shape that the layer does not take, or an unknown card.
    """
    generators = getattr(layer, "generators", None)
    if not isinstance(generators, Generators) or generators.ndim is None:
        raise TypeError(f"explain: expected a layer with generators on a grid, got {type(layer).__name__}")
    check_dtype(dtype)
    shape, ndim = extents("input_shape", input_shape), generators.ndim
    if len(shape) not in (ndim + 1, ndim + 2) or shape[-ndim - 1] != layer.in_channels:
        raise ValueError(
            f"input_shape: expected (N, {layer.in_channels}, *spatial) with {ndim} spatial axes, got {shape}"
        )
    spatial, batch = shape[-ndim:], shape[0] if len(shape) == ndim + 2 else 1
    generators.check_shape(spatial)
    stencil = generators.stencil()
    if stencil is None:
        raise TypeError(f"explain: expected generators that a fused kernel computes, got {generators!r}")
    # A transposed basis computes all points and keeps some.
    stride = [1] * ndim if stencil.transposed else list(layer.stride)
    geometry = Geometry.of(stencil, spatial, stride, layer.groups)
    coefficients = generators.coefficients()
    count = generators.num_generators
    plans = _C.plan(count, batch, *geometry)
    if stencil.transposed:  # L_i^T f is the gradient's operator, and the other way round
        plans["forward"], plans["input gradient"] = plans["input gradient"], plans["forward"]

    output = output_size(spatial, stride)
    weight_count = layer.out_channels * layer.in_channels // layer.groups
    dtype = dtype or (layer.weight0 if layer.factorized else layer.weight).dtype
    size = dtype.itemsize
    data = {
        "input": batch * layer.in_channels * math.prod(spatial) * size,
        "output": batch * layer.out_channels * math.prod(output) * size,
        "weight": (count + 1) * weight_count * size,
    }
    reads = {
        "forward": ("input", "output"),
        "input gradient": ("output", "input"),
        "weight gradient": ("input", "weight"),
    }
    numbers = coefficients.numel() * coefficients.element_size()
    steps = []
    for operator, plan in plans.items():
        source, target = reads[operator]
        points = batch * math.prod(spatial if operator == "input gradient" else output)
        costs = sorted((plan["direct_cost"], plan["row_basis_cost"]))
        other = data["output"] if operator == "weight gradient" else data["weight"]
        steps.append(
            Step(
                operator=operator,
                path=PATHS[bool(plan["row_basis"])],
                products=int(plan["products"]),
                flops=2 * int(plan["products"]) * points * weight_count,
                bytes_read=data[source] + other + numbers,
                bytes_written=data[target],
                alternative=costs[1] / costs[0] if costs[0] else math.inf,
            )
        )
    # Coefficients that are put together for the call, as matrix and shift are.
    held = 0 if any(coefficients is own for own in (*generators.parameters(), *generators.buffers())) else numbers
    return Explanation(
        layer=type(layer).__name__,
        input_shape=shape,
        output_shape=(*shape[: -ndim - 1], layer.out_channels, *output_size(spatial, layer.stride)),
        capability=_C.cpu_capability(),
        steps=tuple(steps),
        bytes_held=held,
        gpu=() if card is None else _on_gpu(card, geometry, dtype, batch, layer, count, stencil.transposed),
    )


def _on_gpu(
    card: str, geometry: Geometry, dtype: torch.dtype, batch: int, layer: Any, count: int, transposed: bool
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The ways of each operator on a card, as `Explanation.gpu` holds them."""
    from lconv_fast.ops.gpu.card import CARDS
    from lconv_fast.ops.gpu.dispatch import WAYS, ways

    choice("card", card, CARDS)
    # L_i^T f is dQ/df: input and output change places.
    ins, outs = layer.in_channels, layer.out_channels
    ins, outs = (outs, ins) if transposed else (ins, outs)
    shape = (batch, ins, *geometry.spatial)
    return tuple(
        (
            operator,
            tuple(
                (way, answer if isinstance(answer, str) else "")
                for way, answer in ways(geometry, operator, dtype, shape, outs, count, CARDS[card])
            ),
        )
        for operator in WAYS
        if operator != "finished" or (layer.activation is not None and not transposed)
        if PaddingMode(geometry.padding_mode).inverts or operator not in ("transposed", "backward")
    )
