"""L-convs as plain PyTorch operators, for exporters and machines that have no use for this library's own.

Each L_i f is a sum of slices of a padded array, times coefficients; channels are mixed by one convolution with a kernel
of one point. Constant generators become one ordinary convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast.convert.frame import Frame, LConv
from lconv_fast.convert.plain import padded, plain_generators, rows_at
from lconv_fast.convert.taps import Offsets, constant_taps, halo, spread
from lconv_fast.epilogue import finish
from lconv_fast.generators import Generators, StencilGenerators
from lconv_fast.grid import every
from lconv_fast.modules import LConvGraph
from lconv_fast.ops.geometry import CoefficientKind, accumulate_type
from lconv_fast.recursive import DerivativeLConv

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class LoweredLConv(nn.Module):
    """LConv1d, LConv2d or LConv3d in plain PyTorch: the same input, output and parameters (`weight` composed)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.ndim, self.groups = layer.ndim, layer.groups
        stride = layer.stride
        self.stride = stride if isinstance(stride, tuple) else (stride,) * self.ndim
        self.weight: Any = (
            layer.weight if isinstance(layer.weight, nn.Parameter) else nn.Parameter(layer.weight.detach())
        )
        self.bias: Any = layer.bias
        self.activation: str | None = getattr(layer, "activation", None)
        self.frame: Frame | None = getattr(layer, "frame", None)
        self.generators: Any = plain_generators(layer.generators)
        # Learnable numbers may yet come to depend on x.
        free = layer.generators.coefficients().requires_grad and not isinstance(layer.generators, StencilGenerators)
        constant = None if free else constant_taps(layer.generators)
        self.offsets: Offsets | None = None if constant is None else [(0,) * self.ndim, *constant[0]]
        self.train(layer.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        unbatched = input.dim() == self.ndim + 1
        f = input.unsqueeze(0) if unbatched else input
        spatial = f.shape[2:]
        if self.frame is not None:
            f = self.frame.padded(f)
        dtype = accumulate_type(f.dtype)
        f, weight = f.to(dtype), self._matrices().to(dtype)
        y = self._mixed(f, weight) if self.offsets is None else self._convolved(f, weight, self.offsets)
        y = (y if self.bias is None else y + self.bias.reshape(-1, *[1] * self.ndim).to(dtype)).to(input.dtype)
        if self.frame is not None:
            y = self.frame.cropped(y, spatial)
        y = finish(y, residual.unsqueeze(0) if residual is not None and unbatched else residual, self.activation)
        return y.squeeze(0) if unbatched else y

    def _matrices(self) -> Tensor:
        """W^0 .. W^nL."""
        return self.weight

    def _mixed(self, f: Tensor, weight: Tensor) -> Tensor:
        """All of f, L_1 f, .. beside each other within each group, times the matrices."""
        terms = torch.cat([every(f, self.stride).unsqueeze(1), rows_at(self.generators, f, self.stride)], 1)
        terms = terms.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(1, 3)
        kernel = weight.transpose(0, 1).flatten(1)  # (out, (n_L + 1) in / groups)
        return CONV[self.ndim](terms, kernel.reshape(*kernel.shape, *[1] * self.ndim), groups=self.groups)

    def _convolved(self, f: Tensor, weight: Tensor, offsets: Offsets) -> Tensor:
        """One convolution, whose kernel is W^0 at offset 0 plus sum_i s[i,k] W^i at offset o_k."""
        plan, v = self.generators.plan, self.generators.coefficients()
        s = spread(plan, v[..., -1] if plan.kind == CoefficientKind.AFFINE else v).to(weight.dtype)
        values = torch.cat([weight[:1], torch.einsum("ik,ioc->koc", s, weight[1:])])
        around = halo(offsets)
        size = [low + high + 1 for low, high in around]
        places = []
        for offset in offsets:
            place = 0
            for o, (low, _), extent in zip(offset, around, size, strict=True):
                place = place * extent + low + o
            places.append(place)
        count = torch.Size(size).numel()
        chosen = torch.zeros(count, len(places), dtype=weight.dtype, device=weight.device)
        chosen[places, list(range(len(places)))] = 1
        kernel = (chosen @ values.flatten(1)).unflatten(1, values.shape[1:]).movedim(0, 2)
        f = padded(f, around, self.generators.padding_mode)
        return CONV[self.ndim](f, kernel.unflatten(2, size), stride=self.stride, groups=self.groups)


class _LoweredDerivative(LoweredLConv):
    """DerivativeLConv: W^0 = 0."""

    def _matrices(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.weight[:1]), self.weight])


class _LoweredGraph(nn.Module):
    """LConvGraph in plain PyTorch, as L_i f of graph generators is."""

    def __init__(self, layer: LConvGraph) -> None:
        super().__init__()
        self.weight, self.bias, self.generators = layer.weight, layer.bias, layer.generators
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        f = input if input.dim() == 3 else input.unsqueeze(0)
        y = F.linear(f, self.weight[0], self.bias) + torch.einsum("nimc,ioc->nmo", self.generators(f), self.weight[1:])
        return y if input.dim() == 3 else y.squeeze(0)


# The first entry that a module is an instance of. Kinds without taps are plain PyTorch as they are.
RULES: tuple[tuple[Any, Callable[[Any], nn.Module]], ...] = (
    (LConv, LoweredLConv),
    (DerivativeLConv, _LoweredDerivative),
    (LConvGraph, _LoweredGraph),
    (Generators, plain_generators),
)


def lower(model: nn.Module) -> nn.Module:
    """A copy of a model in which every L-conv is plain PyTorch operators: pad, slice, multiply, conv.

    Runs in whatever runs PyTorch's own operators: torch.onnx.export, TensorRT, AOTInductor, CoreML, machines without
    this library's compiled operators. Outputs agree to rounding; generators, boundaries, strides, groups, unbatched
    inputs and gradients are those of the model, and sizes may stay symbolic when it is traced. L_i f is written to
    memory, which the fused layer avoids. The model itself stays as it is; parameters of the copy are its own.

    Where a module calls lconv_fast.functional.lconv in its own forward, that call stays.

    Raises TypeError for what is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    done: dict[nn.Module, nn.Module] = {}

    def lowered(module: nn.Module) -> nn.Module:
        if module not in done:
            rule = next((make for kind, make in RULES if isinstance(module, kind)), None)
            done[module] = module if rule is None else rule(module)
            if rule is None:
                for name, child in module._modules.items():
                    if child is not None:
                        module._modules[name] = lowered(child)
        return done[module]

    return lowered(copy.deepcopy(model))
