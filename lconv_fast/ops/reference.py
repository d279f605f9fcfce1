"""The operators in plain PyTorch, under the same names and arguments as ``torch.ops.lconv_fast``: the slow truth.

Every tap is gathered into memory, so the cost is T times the data; all tests compare the kernels with these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry, accumulate_type


def _padded_index(index: Tensor, size: int, padding_mode: int) -> Tensor:
    """What the padded array shows at `index`; -1 for zero."""
    shown = PaddingMode(padding_mode).boundary.shown
    if shown is not None:
        return shown(index, size)
    return torch.where((index >= 0) & (index < size), index, torch.full_like(index, -1))


def _source(g: Geometry, tap: Sequence[int]) -> Tensor:
    """Row-major index into the array of f that each output point sees through `tap`, -1 for zero: (P,)."""
    flat = torch.zeros((), dtype=torch.long)
    outside = torch.zeros((), dtype=torch.bool)
    for a, (points, size) in enumerate(zip(g.out, g.array, strict=True)):
        index = torch.arange(points) * g.stride[a] + g.halo[2 * a] + tap[a]
        index = _padded_index(index, size, g.padding_mode)
        shape = [-1] + [1] * (g.ndim - 1 - a)
        flat = flat * size + index.reshape(shape)
        outside = outside | (index < 0).reshape(shape)
    return torch.where(outside, torch.full_like(flat, -1), flat).flatten()


def _sources(g: Geometry) -> Tensor:
    """(T + 1, P): one row per tap, then the identity."""
    taps = [list(g.taps[j : j + g.ndim]) for j in range(0, len(g.taps), g.ndim)]
    return torch.stack([_source(g, tap) for tap in [*taps, [0] * g.ndim]])


def _coefficients(v: Tensor, g: Geometry) -> Tensor:
    """v[i, a](x) at the output points: (n_L, m, P)."""
    shape = (*v.shape[:2], *g.out)
    if g.kind == CoefficientKind.CONSTANT:
        sampled = v.reshape(*v.shape, *[1] * g.ndim).expand(shape)
    elif g.kind == CoefficientKind.SAMPLED:
        every: tuple[Any, ...] = (Ellipsis, *(slice(None, None, step) for step in g.stride))
        sampled = v[every]
    else:
        axes = [
            (torch.arange(points, dtype=v.dtype) * step - center) / g.scale
            for points, step, center in zip(g.out, g.stride, g.center, strict=True)
        ]
        x = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (n, *out)
        sampled = torch.einsum("lab,b...->la...", v[..., :-1], x) + v[..., -1].reshape(*v.shape[:2], *[1] * g.ndim)
    return sampled.reshape(*v.shape[:2], -1)


def _tap_coefficients(v: Tensor, g: Geometry, identity: bool) -> Tensor:
    """s[r, j](x), r = 0 the identity (zero when it takes no part): (n_L + 1, T + 1, P)."""
    components = torch.tensor(list(g.components), dtype=torch.long)
    weights = torch.tensor(list(g.tap_weights), dtype=v.dtype)
    s = _coefficients(v, g)[:, components] * weights[:, None]  # (n_L, T, P)
    first = s.new_zeros(1, s.shape[1] + 1, s.shape[2])
    first[0, -1] = 1.0 if identity else 0.0
    return torch.cat([first, torch.cat([s, torch.zeros_like(s[:, :1])], dim=1)])


def _gathered(f: Tensor, g: Geometry) -> Tensor:
    """f[b, c, x + tap_j]: (N, groups, C / groups, T + 1, P)."""
    source = _sources(g)
    values = f.reshape(f.shape[0], f.shape[1], -1)[:, :, source.clamp(min=0)]
    values = torch.where(source >= 0, values, torch.zeros_like(values))
    return values.reshape(f.shape[0], g.groups, -1, *source.shape)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(weight.shape[0], groups, -1, weight.shape[2])


def _accumulate(*tensors: Tensor) -> list[Tensor]:
    return [t.to(accumulate_type(tensors[0].dtype)) for t in tensors]


def apply(input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """y[b,o,x] = sum s[r,j](x) f[b,c,x + tap_j] W[r,o,c] + bias[o]; transposed, the gradient of f from g = input."""
    *geometry, identity, transposed = arguments
    g = Geometry(*geometry)
    data, weight_, v = _accumulate(input, weight, coefficients)
    s, w = _tap_coefficients(v, g, identity), _grouped(weight_, g.groups)
    if transposed:
        cotangent = data.reshape(data.shape[0], g.groups, -1, data[0, 0].numel())
        values = torch.einsum("rjp,rgoc,ngop->ngcjp", s, w, cotangent)
        source = _sources(g)
        result = data.new_zeros(data.shape[0], g.groups * weight.shape[2], torch.Size(g.array).numel())
        seen = source >= 0
        result.index_add_(2, source[seen], values.flatten(1, 2)[:, :, seen])
        result = result.reshape(*result.shape[:2], *g.array)
    else:
        result = torch.einsum("rjp,ngcjp,rgoc->ngop", s, _gathered(data, g), w)
        result = result.reshape(data.shape[0], -1, *g.out)
    if bias is not None:
        result = result + bias.to(result.dtype).reshape(-1, *[1] * g.ndim)
    return result.to(input.dtype)


def gram(input: Tensor, cotangent: Tensor, coefficients: Tensor, *arguments: Any) -> Tensor:
    """dQ/dW[r,o,c] = sum over b, x of (L_r f)[b,c,x] g[b,o,x]."""
    *geometry, identity = arguments
    g = Geometry(*geometry)
    data, u, v = _accumulate(input, cotangent, coefficients)
    u = u.reshape(u.shape[0], g.groups, -1, torch.Size(g.out).numel())
    s = _tap_coefficients(v, g, identity)
    result = torch.einsum("rjp,ngcjp,ngop->rgoc", s, _gathered(data, g), u)
    return result.reshape(result.shape[0], -1, result.shape[3]).to(input.dtype)


def correlate(input: Tensor, weight: Tensor, cotangent: Tensor, *geometry: Any) -> Tensor:
    """dQ/dv: h[i,a](x) = sum (D_a f)[b,c,x] W[i,o,c] g[b,o,x], summed against what v[i,a](x) is made of."""
    g = Geometry(*geometry)
    data, w, u = _accumulate(input, weight, cotangent)
    u = u.reshape(u.shape[0], g.groups, -1, torch.Size(g.out).numel())
    taps = torch.einsum("ngcjp,rgoc,ngop->rjp", _gathered(data, g), _grouped(w, g.groups), u)[1:, :-1]
    taps = taps * torch.tensor(list(g.tap_weights), dtype=taps.dtype)[:, None]
    components = torch.tensor(list(g.components), dtype=torch.long)
    h = taps.new_zeros(taps.shape[0], g.component_count, taps.shape[2]).index_add(1, components, taps)
    v = h.new_zeros(g.coefficient_shape(h.shape[0])).requires_grad_()
    with torch.enable_grad():  # the coefficients are linear in v: their transpose is their own gradient
        (result,) = torch.autograd.grad(_coefficients(v, g), v, h)
    return result


def backward(
    cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    *geometry, identity = arguments
    features = apply(cotangent, weight, coefficients, None, *geometry, identity, True)
    return features, gram(input, cotangent, coefficients, *geometry, identity)


def sum_points(cotangent: Tensor) -> Tensor:
    """sum over b, x of g[b,c,x]: (C,)."""
    return cotangent.sum([0, *range(2, cotangent.dim())], dtype=torch.float64).to(cotangent.dtype)
