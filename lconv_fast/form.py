"""The 4-linear form behind the layer, and every derivative of it.

    Q(s, f, W, g) = sum over b, x, i, k, o, c of  g[b,x,o] s[i,k](x) f[b, x + tap_k, c] W[i,o,c]

with coefficients s = s(v), f the features, W the weight and g a cotangent. Its four partials are all there is:

    dQ/dg = apply(s, f, W)             the layer, eq. (17) of Dehmamy et al. 2021
    dQ/df = apply(s, g, W) transposed  the gradient of the features
    dQ/dW = gram(s, f, g)              the gradient of the weight
    dQ/ds = correlate(f, W, g)         the gradient of the coefficients

A partial leaves one slot empty. Its derivative in another slot, contracted with a cotangent u, is the partial that
leaves that other slot empty and has u in the slot that was empty; its tangent is the same partial with the tangent in
its slot. So derivatives of every order, backward and forward, are these four again. The identity term W^0 of the layer
is linear in f, W and g alone: it takes part only while the s slot holds s itself, never a cotangent or tangent of it.

Where a backward pass wants dQ/df and dQ/dW of one cotangent and keeps no record for further derivatives, one operator
gives both, since they can share L_i^T g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import lconv_fast.ops  # noqa: F401  registers torch.ops.lconv_fast
from lconv_fast import grid

KINDS = ("constant", "sampled", "affine")
S, F, W, G = range(4)  # the slots


@dataclass(frozen=True)
class Stencil:
    """What Q is apart from its tensors: L_i f(x) = sum_a v[i,a](x) (D_a f)(x), with the difference
    (D_a f)(x) = sum over the taps j of component a of tap_weights[j] f(x + taps[j])."""

    kind: str  # what the coefficients v hold, one of KINDS
    taps: tuple[tuple[int, ...], ...]
    tap_weights: tuple[float, ...]
    components: tuple[int, ...]  # the component of each tap, counting up from 0
    spatial: tuple[int, ...]
    padding_mode: str
    center: tuple[float, ...] = ()  # affine: x_b = (index_b - center_b) / scale
    scale: float = 1.0
    transposed: bool = False  # L_i^T, the exact transpose of the padded operator, in the place of L_i


class Geometry(NamedTuple):
    """The arguments that the three operators share, in the order of their schemas."""

    kind: int
    taps: list[int]
    tap_weights: list[float]
    components: list[int]
    spatial: Sequence[int]
    padding_mode: int
    halo: list[int]
    center: list[float]
    scale: float
    stride: Sequence[int]
    groups: int

    @staticmethod
    def of(stencil: Stencil, stride: Sequence[int], groups: int) -> Geometry:
        return Geometry(
            kind=KINDS.index(stencil.kind),
            taps=[offset for tap in stencil.taps for offset in tap],
            tap_weights=list(stencil.tap_weights),
            components=list(stencil.components),
            spatial=stencil.spatial,
            padding_mode=grid.PADDING_MODES.index(stencil.padding_mode),
            halo=[0, 0] * len(stencil.spatial),
            center=list(stencil.center),
            scale=stencil.scale,
            stride=stride,
            groups=groups,
        )

    def extended(self) -> Geometry:
        """The same taps on an array that already holds all the points they reach: no boundary is left."""
        ndim = len(self.spatial)
        halo = []
        for a in range(ndim):
            offsets = self.taps[a::ndim]
            halo += [max([0, *(-t for t in offsets)]), max([0, *offsets])]
        return self._replace(padding_mode=grid.PADDING_MODES.index("zeros"), halo=halo)


Slots = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _contract(empty: int, slots: Slots, geometry: Geometry, identity: bool, bias: Tensor | None) -> Tensor:
    """The partial of Q that leaves slot `empty` open, by the operators; the bias is added to dQ/dg alone."""
    s, f, w, g = slots
    ops = torch.ops.lconv_fast
    if empty == G:
        return ops.apply(f, w, s, bias, *geometry, identity, False)
    if empty == W:
        return ops.gram(f, g, s, *geometry, identity)
    if empty == S:
        return ops.correlate(f, w, g, *geometry)
    mode = grid.PADDING_MODES[geometry.padding_mode]
    if mode in ("zeros", "circular"):
        return ops.apply(g, w, s, None, *geometry, identity, True)
    # Clamped and mirrored taps do not invert: transpose on the extended array, then fold its border back. Half types
    # stay in float32 until then, so that points are rounded once.
    assert g is not None and w is not None
    extended, dtype = geometry.extended(), g.dtype
    if dtype in (torch.float16, torch.bfloat16):
        g, w = g.float(), w.float()
    array = ops.apply(g, w, s, None, *extended, identity, True)
    return grid.fold(array, geometry.spatial, extended.halo, mode).to(dtype)


def _filled(slots: Slots, index: int, value: Tensor | None) -> Slots:
    return (*slots[:index], value, *slots[index + 1 :])  # type: ignore[return-value]


def _gradients(
    empty: int, slots: Slots, geometry: Geometry, identity: bool, u: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """u contracted with the derivatives of a partial in its slots, None where not needed."""
    full = _filled(slots, empty, u)
    result: list[Tensor | None] = [None] * 4
    if empty != S and needed[S] and _affine_basis_pays(geometry, full, needed[W] and empty != W):
        result[S], weight_gradient = _affine_gradients(full, geometry, identity)
        if needed[W] and empty != W:
            result[W] = weight_gradient
        needed = [k in (F, G) and needed[k] for k in range(4)]
    if empty not in (F, W) and needed[F] and needed[W] and _both_at_once(geometry):
        for slot, gradient in zip((F, W), _backward(full, geometry, identity and empty != S), strict=True):
            result[slot] = gradient.to(slots[slot].dtype)  # type: ignore[union-attr]
        needed = [k in (S, G) and result[k] is None and needed[k] for k in range(4)]
    for slot in range(4):
        value = slots[slot]
        if slot == empty or value is None or not needed[slot]:
            continue
        gradient = partial(slot, _filled(full, slot, None), geometry, identity and empty != S)
        result[slot] = gradient.to(value.dtype)
    return result


def _both_at_once(geometry: Geometry) -> bool:
    """Whether one operator may give dQ/df and dQ/dW: where no derivatives of them are asked for."""
    recorded = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    return not recorded and grid.PADDING_MODES[geometry.padding_mode] in ("zeros", "circular")


def _backward(full: Slots, geometry: Geometry, identity: bool) -> tuple[Tensor, Tensor]:
    s, f, w, g = full
    arguments = (g, f, w, s, *geometry, identity)
    if torch.compiler.is_compiling():
        return torch.ops.lconv_fast.backward(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lconv_fast.backward(*arguments)


def _affine_basis_pays(geometry: Geometry, full: Slots, with_weight: bool) -> bool:
    """Whether one gram in the basis x_b d_a, d_a, whose rows take 2 n + 1 products with C_in x C_out matrices a point,
    beats n_L products for dQ/ds and n_L + 1 for dQ/dW. Half types keep their float32 dQ/ds."""
    s, f = full[S], full[F]
    if KINDS[geometry.kind] != "affine" or s is None or f is None or f.dtype not in (torch.float32, torch.float64):
        return False
    count, ndim = s.shape[0], len(geometry.spatial)
    return 2 * ndim + 1 < count + (min(count, 2 * ndim) + 1 if with_weight else 0)


def _affine_gradients(full: Slots, geometry: Geometry, identity: bool) -> tuple[Tensor, Tensor]:
    """dQ/ds and dQ/dW of affine coefficients s[i,a,b], contractions of G_ab = dQ/dW in the basis E_ab:
    dQ/ds[i,a,b] = <W_i, G_ab>,  dQ/dW_i = sum_ab s[i,a,b] G_ab."""
    s, f, w, g = full
    assert s is not None and w is not None
    size = s.shape[1] * s.shape[2]
    basis = torch.eye(size, dtype=s.dtype, device=s.device).reshape(size, *s.shape[1:])
    found = partial(W, (basis, f, None, g), geometry, identity)
    places = found[1:].reshape(size, -1)
    s_gradient = (w[1:].reshape(s.shape[0], -1) @ places.t()).reshape(s.shape)
    w_gradient = torch.cat([found[:1], (s.reshape(-1, size) @ places).reshape(w[1:].shape)])
    return s_gradient, w_gradient


def _bias_gradient(u: Tensor) -> Tensor:
    return u.sum([0, *range(2, u.dim())])


def _map_over(
    call: Callable[..., Tensor],
    size: int,
    dims: Sequence[int | None],
    empty: int,
    slots: Slots,
    geometry: Geometry,
    identity: bool,
    bias,
    bias_dim,
) -> Tensor:
    """A partial, by `partial` or `_contract`, for `size` examples, stacked in dimension 0; dims[k] is the example axis
    of slots[k] or None."""
    data = F if empty == G else G
    if empty in (G, F) and bias_dim is None and [k for k in range(4) if dims[k] is not None] == [data]:
        # Only the data differ: examples are one more batch.
        values = slots[data].movedim(dims[data], 0)  # type: ignore[union-attr, arg-type]
        merged = _filled(slots, data, values.flatten(0, 1))
        result = call(empty, merged, geometry, identity, bias)
        return result.unflatten(0, (size, values.shape[1]))

    def example(t: Tensor | None, dim: int | None, k: int) -> Tensor | None:
        return t if t is None or dim is None else t.select(dim, k)

    results = []
    for k in range(size):
        one = tuple(example(t, dim, k) for t, dim in zip(slots, dims, strict=True))
        results.append(call(empty, one, geometry, identity, example(bias, bias_dim, k)))  # type: ignore[arg-type]
    return torch.stack(results)


class _Partial(torch.autograd.Function):
    """A partial of Q in eager mode: backward, forward-mode and vmap rules from the functions above."""

    @classmethod
    def apply(cls, *arguments):
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        # Past the signature inspection of Function.apply, which is for keyword arguments and costs as much as the rest.
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @staticmethod
    def forward(empty, geometry, identity, bias, *slots):
        # This function is the autograd of the call: that of the operators would only cost time.
        with torch._C._AutoDispatchBelowAutograd():
            return _contract(empty, slots, geometry, identity, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.empty, ctx.geometry, ctx.identity, _, *slots = inputs
        ctx.output_shape = output.shape
        ctx.save_for_backward(*slots)
        ctx.save_for_forward(*slots)

    @staticmethod
    def backward(ctx, u):
        needed = ctx.needs_input_grad
        gradients = _gradients(ctx.empty, ctx.saved_tensors, ctx.geometry, ctx.identity, u, needed[4:])
        return None, None, None, _bias_gradient(u) if needed[3] else None, *gradients

    @staticmethod
    def jvp(ctx, _empty, _geometry, _identity, bias_tangent, *tangents):
        slots = ctx.saved_tensors
        terms = [
            partial(ctx.empty, _filled(slots, k, t), ctx.geometry, ctx.identity and k != S)
            for k, t in enumerate(tangents)
            if t is not None
        ]
        if bias_tangent is not None:
            terms.append(bias_tangent.reshape(-1, *[1] * (len(ctx.output_shape) - 2)).expand(ctx.output_shape).clone())
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info, in_dims, empty, geometry, identity, bias, *slots):
        _, _, _, bias_dim, *dims = in_dims
        return _map_over(partial, info.batch_size, dims, empty, slots, geometry, identity, bias, bias_dim), 0


def partial(empty: int, slots: Slots, geometry: Geometry, identity: bool = True, bias: Tensor | None = None) -> Tensor:
    """The partial of Q that leaves slot `empty` open (None in `slots`), differentiable to every order.

    Tracing sees the operators themselves, whose autograd formulas are registered below: Dynamo takes no
    autograd.Function with a jvp of its own, and operators take no jvp. Both roads use the same rules.
    """
    if torch.compiler.is_compiling():
        return _contract(empty, slots, geometry, identity, bias)
    return _Partial.apply(empty, geometry, identity, bias, *slots)


def lconv(
    coefficients: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stencil: Stencil,
    stride: Sequence[int],
    groups: int,
) -> Tensor:
    """y = f W0^T + sum_i (L_i f) Wi^T + bias, at every stride-th point: eq. (17) of Dehmamy et al. 2021.

    coefficients: (n_L, m), (n_L, m, *spatial) or (n_L, m, n + 1) by `stencil.kind`; input (N, C_in, *spatial); weight
    (n_L + 1, C_out, C_in / groups); returns (N, C_out, *ceil(spatial / stride)). Arguments have been checked.
    """
    if not stencil.transposed:
        return partial(G, (coefficients, input, weight, None), Geometry.of(stencil, stride, groups), True, bias)
    # L_i^T f is dQ/df with f in the place of g, and W with its channel axes exchanged.
    rows, outs, ins = weight.shape
    swapped = weight.reshape(rows, groups, outs // groups, ins).transpose(2, 3).reshape(rows, groups * ins, -1)
    geometry = Geometry.of(stencil, [1] * len(stencil.spatial), groups)
    output = partial(F, (coefficients, None, swapped, input), geometry)
    output = grid.every(output, stride)
    return output if bias is None else output + bias.reshape(-1, *[1] * len(stencil.spatial))


# ---- the operators' own autograd and vmap, for tracing and for direct calls ------------------------------------------


def _slots_of(name: str, arguments) -> tuple[int, Slots, Geometry, bool, Tensor | None]:
    """An operator's arguments as arguments of `partial`."""
    if name == "apply":
        data, w, s, bias, *geometry, identity, transposed = arguments
        if transposed:
            return F, (s, None, w, data), Geometry(*geometry), identity, bias
        return G, (s, data, w, None), Geometry(*geometry), identity, bias
    if name == "gram":
        f, g, s, *geometry, identity = arguments
        return W, (s, f, None, g), Geometry(*geometry), identity, None
    f, w, g, *geometry = arguments
    return S, (None, f, w, g), Geometry(*geometry), True, None


# For each operator, the slots of its leading tensor arguments; for apply, "data" and "bias" as well.
_TENSORS = {"apply": ("data", W, S, "bias"), "gram": (F, G, S), "correlate": (F, W, G)}


def _register(name: str) -> None:
    tensors = _TENSORS[name]

    def slot_of(tensor: int | str, empty: int) -> int | str:
        return (G if empty == F else F) if tensor == "data" else tensor

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: len(tensors)])
        ctx.rest = inputs[len(tensors) :]

    def backward(ctx, u):
        arguments = (*ctx.saved_tensors, *ctx.rest)
        empty, slots, geometry, identity, _ = _slots_of(name, arguments)
        where = [slot_of(tensor, empty) for tensor in tensors]
        needed = [slot in where and ctx.needs_input_grad[where.index(slot)] for slot in range(4)]
        gradients = _gradients(empty, slots, geometry, identity, u, needed)
        result = []
        for k, slot in enumerate(where):
            if slot == "bias":
                result.append(_bias_gradient(u) if ctx.needs_input_grad[k] else None)
            else:
                result.append(gradients[slot])  # type: ignore[index]
        return *result, *[None] * len(ctx.rest)

    def vmap(info, in_dims, *arguments):
        empty, slots, geometry, identity, bias = _slots_of(name, arguments)
        by_slot = {slot_of(tensor, empty): dim for tensor, dim in zip(tensors, in_dims, strict=False)}
        dims = [by_slot.get(slot) for slot in range(4)]
        bias_dim = by_slot.get("bias")
        return _map_over(_contract, info.batch_size, dims, empty, slots, geometry, identity, bias, bias_dim), 0

    torch.library.register_autograd(f"lconv_fast::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"lconv_fast::{name}", vmap)


for _name in _TENSORS:
    _register(_name)


def _setup_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _backward_of_backward(ctx, u_features, u_weight):
    g, f, w, s = ctx.saved_tensors
    *geometry, identity = ctx.rest
    place = {G: 0, F: 1, W: 2, S: 3}
    needed = [ctx.needs_input_grad[place[slot]] for slot in range(4)]
    result: list[Tensor | None] = [None] * 4
    for empty, slots, u in ((F, (s, None, w, g), u_features), (W, (s, f, None, g), u_weight)):
        for slot, term in enumerate(_gradients(empty, slots, Geometry(*geometry), identity, u, needed)):
            if term is not None:
                before = result[place[slot]]
                result[place[slot]] = term if before is None else before + term
    return *result, *[None] * len(ctx.rest)


def _map_backward(info, in_dims, g, f, w, s, *rest):
    *geometry, identity = rest
    dims = dict(zip((G, F, W, S), in_dims, strict=False))
    results = []
    for empty, slots in ((F, (s, None, w, g)), (W, (s, f, None, g))):
        where = [None if k == empty else dims[k] for k in range(4)]
        arguments = (info.batch_size, where, empty, slots, Geometry(*geometry), identity, None, None)
        results.append(_map_over(_contract, *arguments))
    return tuple(results), (0, 0)


torch.library.register_autograd("lconv_fast::backward", _backward_of_backward, setup_context=_setup_backward)
torch.library.register_vmap("lconv_fast::backward", _map_backward)
