"""The L-conv layer as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lconv_fast import form
from lconv_fast.checks import (
    check_float,
    check_groups,
    check_halo,
    check_input_type,
    check_on_grid,
    check_types,
    check_window,
    per_axis,
    positive_int,
)
from lconv_fast.epilogue import check_activation, check_residual, finish
from lconv_fast.generators import Generators
from lconv_fast.generators.on_grid import GridGenerators
from lconv_fast.grid import check_reach
from lconv_fast.ops.geometry import CoefficientKind, Stencil, Window, output_size


def lconv(
    input: Tensor,
    weight: Tensor,
    generators: Generators,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    groups: int = 1,
    window: tuple[Sequence[int], Sequence[int]] | None = None,
    halo: Sequence[tuple[int, int]] | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """y = activation(f W0^T + sum_i (L_i f) Wi^T + bias + residual), eq. (15) and (17) of Dehmamy et al. 2021,
    differentiable to every order.

    With taps on a grid, L_i f is never written to memory, and nothing but the arguments is kept for backward; dense,
    low-rank and spectral generators write it.

    Args:
        input: f, (N, C_in, *spatial), or (C_in, *spatial) unbatched; any strides. float32, float64, bfloat16 or
            float16; the half types accumulate in float32. Under autocast, input, weight and bias are cast, unless they
            are float64.
        weight: (n_L + 1, C_out, C_in / groups), weight[0] = W^0; input's dtype and device.
        generators: L_1 .. L_nL; their numbers in input's dtype, or in float32 beside a half type.
        bias: (C_out,) or None.
        stride: y is computed at every stride-th point of each axis, from the first on; one integer or one per axis.
        groups: channels are mixed within groups alone, as in nn.Conv2d.
        window: (origin, full), for a piece of a larger grid: where its first point lies there, and the extents of the
            larger grid, n integers each. Affine generators then take their coordinates, and sampled ones their part,
            from the larger grid. What lies around the piece is what padding_mode says of its own border, unless halo
            brings it along.
        halo: n pairs (low, high): so many points of input on each side of an axis lie around the grid; y is computed
            on the grid without them. Goes with padding_mode 'zeros'; beyond the halo there is nothing.
        residual: added before the activation; of the output's shape, in input's dtype.
        activation: None, "relu", "gelu" or "silu".

    Returns:
        (N, C_out, *ceil(spatial / stride)), in the memory format of input; spatial without the halo.

    Raises:
        TypeError: arguments of the wrong type or dtype, or mixed dtypes or devices.
        ValueError: shapes that do not fit; both before anything is computed.
    """
    check_activation(activation)
    ndim = getattr(generators, "ndim", None)
    return lconv_for("lconv", input, weight, generators, bias, stride, groups, ndim, window, halo, residual, activation)


def lconv_for(
    caller: str,
    input: Tensor,
    weight: Tensor,
    generators: Generators,
    bias: Tensor | None,
    stride: int | tuple[int, ...],
    groups: int,
    ndim: int | None,
    window: tuple[Sequence[int], Sequence[int]] | None = None,
    halo: Sequence[tuple[int, int]] | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`lconv` on grids of `ndim` axes, with errors in the name of `caller`; None: dense generators on a batch."""
    plain = window is None and halo is None and residual is None
    call = _call(input, weight, generators, bias, stride, groups, ndim) if plain else None
    if call is not None and (passed := _passed.get(call)) is not None:
        v = generators.coefficients()
        return _mixed_and_finished(generators, v, input, weight, bias, None, activation, passed, groups)
    check_input_type(caller, input)
    check_float("weight", weight, (3,), "(n_L + 1, C_out, C_in / groups)")
    if not isinstance(generators, Generators):
        raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
    check_on_grid(generators)
    generators.check_filled()
    groups = positive_int("groups", groups)
    outs, ins = weight.shape[1], weight.shape[2] * groups
    _check_input(caller, input, ins, ndim)
    check_groups(groups, ins, outs)
    if weight.shape[0] != generators.num_generators + 1:
        raise ValueError(
            f"weight: expected {generators.num_generators + 1} matrices, W^0 and one for each generator, "
            f"got shape {tuple(weight.shape)}"
        )
    if bias is not None:
        check_float("bias", bias, (1,), "(C_out,)")
        if bias.shape[0] != outs:
            raise ValueError(f"bias: expected shape ({outs},), got {tuple(bias.shape)}")

    input, weight, bias = autocast(input, weight, bias)
    coefficients = generators.coefficients()
    check_types(input, weight=weight, bias=bias, generators=coefficients)

    unbatched = input.dim() - 1 == ndim
    if unbatched:
        input = input.unsqueeze(0)
    spatial = tuple(input.shape[2:])
    steps = per_axis("stride", stride, len(spatial))
    piece = None
    if window is None and halo is None:
        generators.check_shape(spatial)
    else:
        piece = _piece(caller, spatial, generators, coefficients, window, halo)
        spatial = piece.spatial
    if residual is not None:
        shape = (*input.shape[: 0 if unbatched else 1], outs, *output_size(spatial, steps))
        check_residual(caller, residual, input, shape)
        residual = residual.unsqueeze(0) if unbatched else residual
    if piece is None:
        if call is not None and not unbatched:
            if len(_passed) >= _MOST_PASSED:
                _passed.clear()
            _passed[call] = steps
        output = _mixed_and_finished(generators, coefficients, input, weight, bias, residual, activation, steps, groups)
    else:
        rest = (piece.stencil, steps, groups, piece.place, piece.sides)
        output = form.finished(piece.coefficients, input, weight, bias, residual, activation, *rest)
    return output.squeeze(0) if unbatched else output


def _mixed_and_finished(
    generators: Generators,
    coefficients: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    steps: Sequence[int],
    groups: int,
) -> Tensor:
    # Classes that mix in a way of their own, as those of sharded models, are asked for their own.
    own = getattr(type(generators), "mix", None) is not GridGenerators.mix
    if (residual is not None or activation is not None) and not own and (stencil := generators.stencil()) is not None:
        return form.finished(coefficients, input, weight, bias, residual, activation, stencil, steps, groups)
    return finish(generators.mix(coefficients, input, weight, bias, steps, groups), residual, activation)


# Calls of this description have passed all checks, and these are their strides, one for each axis: the checks of a
# small call cost as much as its arithmetic.
_passed: dict[tuple[object, ...], tuple[int, ...]] = {}
_MOST_PASSED = 1024


def _call(
    input: Tensor,
    weight: Tensor,
    generators: Generators,
    bias: Tensor | None,
    stride: object,
    groups: object,
    ndim: int | None,
) -> tuple[object, ...] | None:
    """All that the checks look at, tensors by shape, type and device; None where they look at more."""
    if torch.compiler.is_compiling() or type(input) is not Tensor or type(groups) is not int:
        return None
    if type(stride) is not int and not (type(stride) is tuple and all(type(s) is int for s in stride)):
        return None
    if not isinstance(generators, GridGenerators) or generators._raw or generators._modules or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return None
    if input.is_meta or not isinstance(weight, Tensor) or torch.is_autocast_enabled(input.device.type):
        return None
    if input.layout is not torch.strided:
        return None
    described: list[object] = [
        stride,
        groups,
        ndim,
        generators.num_generators,
        generators.stencil(),
        generators.grid_shape(),
    ]
    for t in (input, weight, bias, *generators._parameters.values(), *generators._buffers.values()):
        if t is None:
            described.append(None)
        elif (type(t) is Tensor or type(t) is Parameter) and t.layout is torch.strided:
            described += t.shape, t.dtype, t.device
        else:
            return None
    return tuple(described)


def autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments in the type that PyTorch's autocast asks for, where it is on; float64 stays as it is."""
    if input.dtype == torch.float64 or input.is_meta or not torch.is_autocast_enabled(input.device.type):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(input.device.type)
    weight = weight if weight.dtype == torch.float64 else weight.to(dtype)
    bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
    return input.to(dtype), weight, bias


class _Piece(NamedTuple):
    """What `form.lconv` needs beside the tensors, for a piece of a larger grid."""

    coefficients: Tensor
    stencil: Stencil
    spatial: tuple[int, ...]  # without the halo
    place: Window | None
    sides: Sequence[int] | None


def _piece(
    caller: str,
    spatial: tuple[int, ...],
    generators: Generators,
    coefficients: Tensor,
    window: tuple[Sequence[int], Sequence[int]] | None,
    halo: Sequence[tuple[int, int]] | None,
) -> _Piece:
    stencil = generators.stencil()
    if stencil is None:
        name = type(generators).__name__
        raise ValueError(f"{caller}: window and halo go with generators of taps on a grid, got {name}")
    sides = None if halo is None else check_halo(halo, spatial, stencil)
    place = None
    if sides is not None:
        spatial = tuple(size - sides[2 * a] - sides[2 * a + 1] for a, size in enumerate(spatial))
    if window is None:
        generators.check_shape(spatial)
    else:
        place = check_window(window, spatial)
        generators.check_shape(tuple(place.full))
        check_reach(stencil.taps, spatial, stencil.padding_mode)
        if stencil.kind == CoefficientKind.SAMPLED:
            for a, (first, size) in enumerate(zip(place.origin, spatial, strict=True)):
                coefficients = coefficients.narrow(2 + a, first, size)
    return _Piece(coefficients, stencil, spatial, place, sides)


def _check_input(caller: str, input: Tensor, channels: int, ndim: int | None) -> None:
    shape = tuple(input.shape)
    if ndim is None:
        if len(shape) < 3:
            raise ValueError(f"{caller}: expected input (N, C, *spatial), got {shape}")
        ndim = len(shape) - 2
    elif len(shape) not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"{caller}: expected input (N, C, *spatial) with {ndim} spatial axes, or unbatched, got {shape}"
        )
    if shape[-ndim - 1] != channels:
        raise ValueError(f"{caller}: expected input with {channels} channels, got {shape}")
    if 0 in shape[-ndim:]:
        raise ValueError(f"{caller}: expected at least one point on each axis, got {shape}")
