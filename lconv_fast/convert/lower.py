"""L-convs as plain PyTorch operators, for exporters and machines that have no use for this library's own.

Each L_i f is a sum of slices of a padded array, times coefficients; channels are mixed by one convolution with a kernel
of one point. Constant generators become one ordinary convolution. No number depends on the size of a traced input.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lconv_fast.convert.frame import Frame, LConv
from lconv_fast.convert.taps import Taps, constant_taps
from lconv_fast.generators import DenseGenerators, Generators, GridGenerators
from lconv_fast.graph import GraphGenerators, LConvGraph
from lconv_fast.grid import every
from lconv_fast.recursive import DerivativeLConv

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
HALF = (torch.float16, torch.bfloat16)


class LoweredGenerators(Generators):
    """Generators on a grid in plain PyTorch; `forward` takes and gives what theirs does."""

    def __init__(self, generators: GridGenerators) -> None:
        super().__init__()
        self.taps = Taps.of(generators)
        self.num_generators, self.ndim = generators.num_generators, generators.ndim
        self.padding_mode, self.transposed = self.taps.padding_mode, self.taps.transposed
        numbers = generators.coefficients()
        self._keep("numbers", numbers, numbers.requires_grad)
        self._rates = generators.mean_square()

    def coefficients(self) -> Tensor:
        return self.numbers  # type: ignore[return-value]

    def mean_square(self) -> Tensor:
        return self._rates

    def to_dense(self, spatial_shape: tuple[int, ...]) -> Tensor:
        points = torch.Size(spatial_shape).numel()
        units = torch.eye(points, dtype=self.numbers.dtype, device=self.numbers.device)
        return self(units.reshape(points, 1, *spatial_shape))[:, :, 0].flatten(2).permute(1, 2, 0)

    def forward(self, f: Tensor) -> Tensor:
        """L_i f for every i: (N, C, *spatial) -> (N, n_L, C, *spatial)."""
        return self.at(f, (1,) * self.ndim)

    def at(self, f: Tensor, stride: tuple[int, ...]) -> Tensor:
        """L_i f at every stride-th point. Half types are computed and returned in float32."""
        f = f.float() if f.dtype in HALF else f
        v = self._values(f)
        if self.transposed:
            return every(self._transposed(f, v), stride)
        v, result = every(v, stride) if self.taps.kind != "constant" else v, None
        windows = _Windows(f, self.taps, stride)
        for a in range(v.shape[1]):
            difference = windows.sum(j for j, component in enumerate(self.taps.components) if component == a)
            term = difference.unsqueeze(1) * v[:, a].unsqueeze(1)  # (N, n_L, C, *out)
            result = term if result is None else result + term
        return result

    def _values(self, f: Tensor) -> Tensor:
        """v[i,a](x): (n_L, m, *spatial), or with extents 1 where it is the same at all points."""
        v, n = self.numbers.to(f.dtype), self.ndim
        if self.taps.kind == "sampled":
            return v
        if self.taps.kind == "constant":
            return v.reshape(*v.shape, *[1] * n)
        axes = []
        for size in f.shape[2:]:
            index = torch.arange(size, dtype=f.dtype, device=f.device)
            axes.append(index - index[-1] / 2)
        if self.taps.coordinate_scale is not None:
            scale = torch.full((), self.taps.coordinate_scale, dtype=f.dtype, device=f.device)
        else:
            scale = functools.reduce(torch.maximum, [axis[-1] for axis in axes])
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # one point
        result = v[..., n].reshape(*v.shape[:2], *[1] * n)
        for b, axis in enumerate(axes):
            x = (axis / scale).reshape([-1 if a == b else 1 for a in range(n)])
            result = result + v[..., b].reshape(*v.shape[:2], *[1] * n) * x
        return result

    def _transposed(self, g: Tensor, v: Tensor) -> Tensor:
        """(L_i^T g)(y) = sum over taps j and points x that see y through them, of weights[j] v[i,a](x) g(x)."""
        taps = self.taps
        products = [g.unsqueeze(1) * v[:, a].unsqueeze(1) for a in range(v.shape[1])]  # (N, n_L, C, *spatial)
        merged = [p.flatten(1, 2) for p in products]
        if taps.padding_mode in ("zeros", "circular"):
            turned = Taps(
                taps.kind,
                tuple(tuple(-o for o in tap) for tap in taps.taps),
                *(taps.weights, taps.components, taps.padding_mode, None, False),
            )
            windows = [_Windows(p, turned, (1,) * self.ndim) for p in merged]
            terms = [windows[a].sum([j]) for j, a in enumerate(taps.components)]
            return sum(terms[1:], terms[0]).unflatten(1, products[0].shape[1:3])
        halo, extended = taps.halo(), None
        for tap, weight, a in zip(taps.taps, taps.weights, taps.components, strict=True):
            around = [w for o, (low, high) in zip(tap, halo, strict=True) for w in (low + o, high - o)]
            around = [w for axis in reversed(range(self.ndim)) for w in around[2 * axis : 2 * axis + 2]]
            term = F.pad(merged[a] * weight, around)
            extended = term if extended is None else extended + term
        for axis, (low, high) in enumerate(halo):
            extended = _folded(extended, axis + 2, low, high, taps.padding_mode)
        return extended.unflatten(1, products[0].shape[1:3])


class _Windows:
    """f(x + tap) at every stride-th point x, from one padded array."""

    def __init__(self, f: Tensor, taps: Taps, stride: tuple[int, ...]) -> None:
        self.spatial, self.taps, self.stride, self.halo = f.shape[2:], taps, stride, taps.halo()
        for axis, (low, high) in enumerate(self.halo):
            f = _padded(f, axis + 2, low, high, taps.padding_mode)
        self.array = f

    def sum(self, taps: Any) -> Tensor:
        """The sum over these taps j, of weights[j] f(x + taps[j])."""
        result = None
        for j in taps:
            term = self.array
            for axis, (size, step) in enumerate(zip(self.spatial, self.stride, strict=True)):
                first = self.halo[axis][0] + self.taps.taps[j][axis]
                window = (slice(None),) * (axis + 2) + (slice(first, first + size, step),)
                term = term[window]
            term = term * self.taps.weights[j]
            result = term if result is None else result + term
        return result


def _padded(f: Tensor, dim: int, low: int, high: int, mode: str) -> Tensor:
    """`f` with what its boundary shows, on one axis. By an index, since F.pad takes no size below the padding."""
    if low == high == 0:
        return f
    size = f.shape[dim]
    if mode == "zeros":
        return F.pad(f, [0, 0] * (f.dim() - 1 - dim) + [low, high])
    # Tensors in the place of numbers: exporters have no rules for index arithmetic with symbolic sizes.
    last = torch.arange(size, device=f.device)[-1]
    index = torch.arange(low + high + size, device=f.device) - low
    if mode == "circular":
        index = torch.remainder(index, last + 1)
    elif mode == "replicate":
        index = torch.minimum(index.clamp(min=0), last)
    else:
        index = last - (last - index.abs()).abs()
    return f.index_select(dim, index)


def _folded(array: Tensor, dim: int, low: int, high: int, mode: str) -> Tensor:
    """The transpose of `_padded` for 'replicate' and 'reflect': each point of the border added to what it showed."""
    size = array.shape[dim] - low - high
    result = array.narrow(dim, low, size)

    def placed(part: Tensor, before: Any, after: Any) -> Tensor:
        return F.pad(part, [0, 0] * (array.dim() - 1 - dim) + [before, after])

    for width, first, at_start in ((low, 0, True), (high, low + size, False)):
        if width == 0:
            continue
        border = array.narrow(dim, first, width)
        if mode == "replicate":
            shown, near, far = border.sum(dim, keepdim=True), 0, size - 1
        else:
            shown, near, far = border.flip(dim), 1, size - 1 - width
        result = result + (placed(shown, near, far) if at_start else placed(shown, far, near))
    return result


class LoweredLConv(nn.Module):
    """LConv1d, LConv2d or LConv3d in plain PyTorch: the same input, output and parameters (`weight` composed)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.ndim, self.groups = layer.generators.ndim, layer.groups
        stride = layer.stride
        self.stride = stride if isinstance(stride, tuple) else (stride,) * self.ndim
        self.weight: Any = (
            layer.weight if isinstance(layer.weight, nn.Parameter) else nn.Parameter(layer.weight.detach())
        )
        self.bias: Any = layer.bias
        self.frame: Frame | None = getattr(layer, "frame", None)
        self.generators = LoweredGenerators(layer.generators)
        constant = constant_taps(layer.generators)
        self.offsets = None if constant is None else [(0,) * self.ndim, *constant[0]]
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        f = input.unsqueeze(0) if input.dim() == self.ndim + 1 else input
        spatial = f.shape[2:]
        if self.frame is not None:
            f = self.frame.padded(f)
        half = f.dtype in HALF
        f, weight, bias = (t.float() if half and t is not None else t for t in (f, self._matrices(), self.bias))
        y = self._mixed(f, weight) if self.offsets is None else self._convolved(f, weight)
        y = y if bias is None else y + bias.reshape(-1, *[1] * self.ndim)
        y = y.to(input.dtype) if half else y
        if self.frame is not None:
            y = self.frame.cropped(y, spatial)
        return y.squeeze(0) if input.dim() == self.ndim + 1 else y

    def _matrices(self) -> Tensor:
        """W^0 .. W^nL."""
        return self.weight

    def _mixed(self, f: Tensor, weight: Tensor) -> Tensor:
        """All of f, L_1 f, .. beside each other within each group, times the matrices."""
        terms = torch.cat([every(f, self.stride).unsqueeze(1), self.generators.at(f, self.stride)], 1)
        terms = terms.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(1, 3)
        kernel = weight.transpose(0, 1).flatten(1)  # (out, (n_L + 1) in / groups)
        return CONV[self.ndim](terms, kernel.reshape(*kernel.shape, *[1] * self.ndim), groups=self.groups)

    def _convolved(self, f: Tensor, weight: Tensor) -> Tensor:
        """One convolution, whose kernel is W^0 at offset 0 plus sum_i s[i,k] W^i at offset o_k."""
        v, taps = self.generators.numbers, self.generators.taps
        s = taps.spread(v[..., -1] if taps.kind == "affine" else v).to(weight.dtype)
        values = torch.cat([weight[:1], torch.einsum("ik,ioc->koc", s, weight[1:])])
        low = [-min(axis) for axis in zip(*self.offsets, strict=True)]
        high = [max(axis) for axis in zip(*self.offsets, strict=True)]
        size = [a + b + 1 for a, b in zip(low, high, strict=True)]
        places = []
        for offset in self.offsets:
            place = 0
            for o, first, extent in zip(offset, low, size, strict=True):
                place = place * extent + o + first
            places.append(place)
        count = torch.Size(size).numel()
        chosen = torch.zeros(count, len(places), dtype=weight.dtype, device=weight.device)
        chosen[places, list(range(len(places)))] = 1
        kernel = (chosen @ values.flatten(1)).unflatten(1, values.shape[1:]).movedim(0, 2)
        for axis in range(self.ndim):
            f = _padded(f, axis + 2, low[axis], high[axis], taps.padding_mode)
        return CONV[self.ndim](f, kernel.unflatten(2, size), stride=self.stride, groups=self.groups)


class _LoweredDerivative(LoweredLConv):
    """DerivativeLConv: W^0 = 0."""

    def _matrices(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.weight[:1]), self.weight])


class _LoweredGraph(nn.Module):
    """LConvGraph in plain PyTorch."""

    def __init__(self, layer: LConvGraph) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.generators = _LoweredEdges(layer.generators)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        f = input if input.dim() == 3 else input.unsqueeze(0)
        y = F.linear(f, self.weight[0], self.bias) + torch.einsum("nimc,ioc->nmo", self.generators(f), self.weight[1:])
        return y if input.dim() == 3 else y.squeeze(0)


class _LoweredEdges(nn.Module):
    def __init__(self, generators: GraphGenerators) -> None:
        super().__init__()
        source, target = generators.edge_index.flip(0) if generators.transposed else generators.edge_index
        self.register_buffer("source", source)
        self.register_buffer("target", target)
        self.edge_weight = generators.edge_weight

    def forward(self, f: Tensor) -> Tensor:
        """(N, nodes, C) to (N, n_L, nodes, C)."""
        sent = f[:, self.source].unsqueeze(1) * self.edge_weight.to(f.dtype).unsqueeze(2)  # (N, n_L, E, C)
        into = self.target.reshape(1, 1, -1, 1).expand_as(sent)
        zero = torch.zeros_like(f).unsqueeze(1).repeat(1, self.edge_weight.shape[0], 1, 1)
        return zero.scatter_add(2, into, sent)


class _LoweredDense(nn.Module):
    """An L-conv with dense generators, eq. (17) of Dehmamy et al. 2021 as it stands."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.ndim, self.groups, self.stride = layer.ndim, layer.groups, layer.stride
        self.weight = layer.weight if isinstance(layer.weight, nn.Parameter) else nn.Parameter(layer.weight.detach())
        self.bias, self.generators = layer.bias, layer.generators
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        f = input.unsqueeze(0) if input.dim() == self.ndim + 1 else input
        moved = torch.einsum("ixy,ncy->nicx", self.generators.coefficients().to(f.dtype), f.flatten(2))
        terms = torch.cat([f.flatten(2).unsqueeze(1), moved], 1).unflatten(2, (self.groups, -1))  # (N, i, g, c, x)
        weight = self.weight.unflatten(1, (self.groups, -1))  # (i, g, o, c)
        y = torch.einsum("nigcx,igoc->ngox", terms, weight).flatten(1, 2)
        y = every(y.unflatten(2, f.shape[2:]), self.stride)
        y = y if self.bias is None else y + self.bias.reshape(-1, *[1] * self.ndim)
        return y.squeeze(0) if input.dim() == self.ndim + 1 else y


def _lowered_layer(layer: Any) -> nn.Module:
    return _LoweredDense(layer) if isinstance(layer.generators, DenseGenerators) else LoweredLConv(layer)


def _lowered_derivative(layer: Any) -> nn.Module:
    if not isinstance(layer.generators, GridGenerators):
        raise TypeError(f"cannot lower {type(layer).__name__} with {type(layer.generators).__name__}")
    return _LoweredDerivative(layer)


# The first entry that a module is an instance of; DenseGenerators are plain PyTorch already.
RULES: tuple[tuple[Any, Callable[[Any], nn.Module]], ...] = (
    (LConv, _lowered_layer),
    (LConvGraph, _LoweredGraph),
    (DerivativeLConv, _lowered_derivative),
    (DenseGenerators, lambda generators: generators),
    (GridGenerators, LoweredGenerators),
    (GraphGenerators, _LoweredEdges),
)


def lower(model: nn.Module) -> nn.Module:
    """A copy of a model in which every L-conv is plain PyTorch operators: pad, slice, multiply, conv.

    Runs in whatever runs PyTorch's own operators: torch.onnx.export, TensorRT, AOTInductor, CoreML, machines without
    this library's compiled operators. Outputs agree to rounding; generators, boundaries, strides, groups, unbatched
    inputs and gradients are those of the model, and sizes may stay symbolic when it is traced. L_i f is written to
    memory, which the fused layer avoids. The model itself stays as it is; parameters of the copy are its own.

    Where a module calls lconv_fast.functional.lconv in its own forward, that call stays.

    Raises:
        TypeError: for generators that have no plain form here, naming the module's path.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    done: dict[nn.Module, nn.Module] = {}

    def lowered(module: nn.Module, path: str) -> nn.Module:
        if module not in done:
            rule = next((make for kind, make in RULES if isinstance(module, kind)), None)
            if rule is not None:
                try:
                    done[module] = rule(module)
                except TypeError as error:
                    raise TypeError(f"{path or 'model'}: {error}") from error
            elif isinstance(module, Generators):
                raise TypeError(f"{path or 'model'}: cannot lower {type(module).__name__}")
            else:
                done[module] = module
                for name, child in module._modules.items():
                    if child is not None:
                        module._modules[name] = lowered(child, f"{path}.{name}" if path else name)
        return done[module]

    return lowered(copy.deepcopy(model), "")
