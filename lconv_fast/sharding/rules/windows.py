"""Convolutions, pooling, padding and interpolation: each point of the result sees a window of the input.

Point j sees the input points j s - p .. j s - p + d (k - 1) (stride s, padding p, kernel k, dilation d), of which j s
- p + d (k - 1) // 2 is the middle: the result lies on the rank that holds the middle. So a layer of stride 1 that
keeps the extent keeps the sharding, and strides divide the offsets, rounding up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lconv_fast.ops.boundary import PAD_MODES
from lconv_fast.sharding.calls import Call, bind
from lconv_fast.sharding.exchange import extended, moved
from lconv_fast.sharding.layout import Move, Points, Split, axes_of
from lconv_fast.sharding.plan import Planner
from lconv_fast.sharding.rules.pointwise import Prepared
from lconv_fast.sharding.sums import shared

CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
POOLS = {
    "max": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
# How far an interpolation by an integer factor reaches, in points of the input.
INTERPOLATIONS = {"nearest": 0, "nearest-exact": 0, "linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 2}


def per_axis(value: Any, n: int) -> list[int]:
    return [value] * n if isinstance(value, int) else list(value) * (n if len(value) == 1 else 1)


def axes_from(planner: Planner, call: Call, x: Tensor, n: int) -> dict[int, Split]:
    """The splits of x by spatial axis; no other dimension may be sharded."""
    found: dict[int, Split] = {}
    for dim, split in planner.layout(x):
        if isinstance(split, Points) or dim < x.dim() - n:
            planner.refuse(
                call.name,
                f"acts on dimensions {list(range(x.dim() - n, x.dim()))} of shape {tuple(x.shape)}, and dimension "
                f"{dim} is sharded",
            )
        found[dim - x.dim() + n] = split
    return found


def windows(split: Split, extent: int, stride: int, padding: int, span: int) -> tuple[Split, list[tuple[int, int]]]:
    """How a result of `extent` points lies on the ranks, and the input interval that each rank needs."""
    offsets = [min(max(-(-(o + padding - span // 2) // stride), 0), extent) for o in split.offsets]
    offsets[0], offsets[-1] = 0, extent
    wants = [(a * stride - padding, (b - 1) * stride - padding + span + 1) for a, b in itertools.pairwise(offsets)]
    return Split(split.axis, tuple(offsets)), wants


class Window:
    """Receives what the windows of this rank's points see, and calls the function on it without padding there."""

    needs_plan = True

    def __init__(
        self, names: Sequence[str], moves: tuple[Move, ...], groups: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.names, self.moves, self.groups, self.options = names, moves, groups, options

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        bound = {**bind(self.names, args, kwargs, {}), **self.options}
        weights = [name for name in ("weight", "bias") if isinstance(bound.get(name), Tensor)]
        learned = [name for name in weights if bound[name].requires_grad]
        for name, value in zip(learned, shared(self.groups, [bound[name] for name in learned]), strict=True):
            bound[name] = value
        x, context = extended(bound.pop("input"), self.moves)
        with context:
            return func(x, **bound)


def _window(
    planner: Planner,
    call: Call,
    names: Sequence[str],
    n: int,
    bound: dict[str, Any],
    kernel: list[int],
    value: float,
    same: bool = False,
) -> Any:
    x = bound["input"]
    result = call.run()
    stride = per_axis(bound["stride"] or kernel, n)
    dilation, padding = per_axis(bound.get("dilation", 1), n), [0] * n
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if same:
        padding = [span // 2 for span in spans]
        if any(span % 2 for axis, span in enumerate(spans) if axis not in axes_from(planner, call, x, n)):
            planner.refuse(call.name, "pads an even kernel by one point more on one side: take padding in numbers")
    else:
        padding = per_axis(bound["padding"], n)
    new, wants = [], {}
    for axis, split in axes_from(planner, call, x, n).items():
        dim = x.dim() - n + axis
        out, wants[dim] = windows(split, result.shape[dim], stride[axis], padding[axis], spans[axis])
        planner.keep(result, ((dim, out),))
        if names is POOLS["avg"] and not bound["count_include_pad"] and padding[axis]:
            planner.refuse(
                call.name,
                "divides by the number of points inside the grid (count_include_pad=False) along a sharded dimension",
            )
        if names is POOLS["avg"] and wants[dim][-1][1] > x.shape[dim] + padding[axis]:
            planner.refuse(call.name, "has a last window that is not full (ceil_mode) along a sharded dimension")
        padding[axis] = 0
        new.append((dim, out))
    layout = planner.layout(x)
    moves = planner.moves(call.name, x, layout, wants, "zeros", value)
    options = {"stride": stride, "padding": padding}
    groups = planner.groups(axes_of(layout))
    if "weight" in bound:
        planner.count_sum(call.name, sum(t.numel() for t in call.tensors[1:]), True)
    planner.record(call, Window(names, moves, groups, options))
    return planner.keep(result, tuple(new))


def convolution(planner: Planner, call: Call) -> Any:
    n = int(call.name[4])
    bound = call.bound(CONV, bias=None, stride=1, padding=0, dilation=1, groups=1)
    if planner.layout(bound["weight"]):
        planner.refuse(call.name, "has a sharded weight")
    same = bound["padding"] == "same"
    if bound["padding"] == "valid":
        bound["padding"] = 0
    return _window(planner, call, CONV, n, bound, list(bound["weight"].shape[2:]), 0.0, same)


def pooling(planner: Planner, call: Call) -> Any:
    kind, n = call.name[:3], int(call.name[8])
    defaults: dict[str, Any] = {"stride": None, "padding": 0, "ceil_mode": False}
    defaults |= (
        {"dilation": 1, "return_indices": False}
        if kind == "max"
        else {"count_include_pad": True, "divisor_override": None}
    )
    bound = call.bound(POOLS[kind], **defaults)
    if bound.get("return_indices"):
        planner.refuse(call.name, "returns indices, which count the points of the shard")
    value = float("-inf") if kind == "max" else 0.0
    return _window(planner, call, POOLS[kind], n, bound, per_axis(bound["kernel_size"], n), value)


class Transposed(Window):
    """conv_transpose on the points that reach this rank's part of the result, which is then cut out."""

    def __init__(
        self,
        moves: tuple[Move, ...],
        groups: tuple[Any, ...],
        options: dict[str, Any],
        cuts: tuple[tuple[int, int, int], ...],
    ) -> None:
        super().__init__(TRANSPOSED, moves, groups, options)
        self.cuts = cuts

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = super().__call__(func, args, kwargs)
        for dim, start, length in self.cuts:
            result = result.narrow(dim, start, length)
        return result


def transposed(planner: Planner, call: Call) -> Any:
    """Point i reaches the result's points i s - p .. i s - p + d (k - 1); the offsets are multiplied by s."""
    n = int(call.name[14])
    bound = call.bound(TRANSPOSED, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    x, result = bound["input"], call.run()
    kernel = list(bound["weight"].shape[2:])
    stride, padding, dilation, more = (
        per_axis(bound[name], n) for name in ("stride", "padding", "dilation", "output_padding")
    )
    new, cuts = [], []
    wants: dict[int, list[tuple[int, int]]] = {}
    for axis, split in axes_from(planner, call, x, n).items():
        dim, s, p, span = x.dim() - n + axis, stride[axis], padding[axis], dilation[axis] * (kernel[axis] - 1)
        offsets = [min(o * s, result.shape[dim]) for o in split.offsets]
        offsets[-1] = result.shape[dim]
        out = Split(split.axis, tuple(offsets))
        planner.keep(result, ((dim, out),))
        wants[dim] = []
        for a, b in itertools.pairwise(offsets):
            first = max(-(-(a + p - span) // s), 0)
            last = min((b - 1 + p) // s, split.extent - 1)
            wants[dim].append((first, max(last, first) + 1))
        r = planner.domain.place[split.axis]
        cuts.append((dim, offsets[r] + p - wants[dim][r][0] * s, offsets[r + 1] - offsets[r]))
        padding[axis] = 0
        # The points past the last window, which only the bias reaches.
        held = (wants[dim][r][1] - 1 - wants[dim][r][0]) * s + span + 1
        more[axis] = max(0, cuts[-1][1] + cuts[-1][2] - held)
        new.append((dim, out))
    layout = planner.layout(x)
    moves = planner.moves(call.name, x, layout, wants)
    planner.count_sum(call.name, sum(t.numel() for t in call.tensors[1:]), True)
    options = {"padding": padding, "output_padding": more}
    planner.record(call, Transposed(moves, planner.groups(axes_of(layout)), options, tuple(cuts)))
    return planner.keep(result, tuple(new))


class Padded:
    """F.pad, whose points beyond the grid lie on the first and the last rank."""

    needs_plan = True

    def __init__(self, moves: tuple[Move, ...], pads: tuple[int, ...], mode: str, value: float) -> None:
        self.moves, self.pads, self.mode, self.value = moves, pads, mode, value

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        x = moved(args[0] if args else kwargs["input"], self.moves)
        return func(x, self.pads, self.mode, self.value) if any(self.pads) else x


def padded(planner: Planner, call: Call) -> Any:
    bound = call.bound(("input", "pad", "mode", "value"), mode="constant", value=None)
    x, result = bound["input"], call.run()
    layout = dict(planner.layout(x))
    pads, border = list(bound["pad"]), PAD_MODES.get(bound["mode"])
    new, wants = dict(layout), {}
    for k in range(0, len(pads), 2):
        dim = x.dim() - 1 - k // 2
        low, high = pads[k : k + 2]
        if dim not in layout or (low, high) == (0, 0):
            continue
        split = layout[dim]
        if isinstance(split, Points) or border is None or min(low, high) < 0:
            planner.refuse(call.name, f"by {(low, high)} with mode {bound['mode']!r} along the sharded dimension {dim}")
        offsets = split.offsets
        wants[dim] = [
            (a - (low if a == 0 else 0), b + (high if b == offsets[-1] else 0)) for a, b in itertools.pairwise(offsets)
        ]
        new[dim] = Split(split.axis, (0, *(o + low for o in offsets[1:-1]), offsets[-1] + low + high))
        pads[k : k + 2] = [0, 0]
    value = bound["value"] or 0.0
    moves = (
        planner.moves(call.name, x, planner.layout(x), wants, border.name.lower(), float(value))
        if wants and border is not None
        else ()
    )
    planner.record(call, Padded(moves, tuple(pads), bound["mode"], value) if wants else Prepared([]))
    return planner.keep(result, tuple(new.items()))


class Interpolated:
    """interpolate by integer factors on the shard and its halo, which is then cut off."""

    needs_plan = True

    def __init__(
        self, moves: tuple[Move, ...], factors: tuple[float, ...], mode: str, cuts: tuple[tuple[int, int, int], ...]
    ) -> None:
        self.moves, self.factors, self.mode, self.cuts = moves, factors, mode, cuts

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        linear = {} if self.mode.startswith("nearest") else {"align_corners": False}
        x = moved(args[0] if args else kwargs["input"], self.moves)
        size = [int(n * f) for n, f in zip(x.shape[2:], self.factors, strict=True)]
        result = func(x, size=size, mode=self.mode, **linear)
        for dim, start, length in self.cuts:
            result = result.narrow(dim, start, length)
        return result


def interpolated(planner: Planner, call: Call) -> Any:
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    bound = call.bound(names, mode="nearest", align_corners=None, antialias=False)
    x, result = bound["input"], call.run()
    mode, splits = bound["mode"], axes_from(planner, call, x, x.dim() - 2)
    if mode not in INTERPOLATIONS or bound["align_corners"] or bound["antialias"]:
        planner.refuse(
            call.name,
            f"with mode={mode!r}, align_corners={bound['align_corners']}, antialias={bound['antialias']} depends "
            "on the whole grid",
        )
    factors = [b / a for a, b in zip(x.shape[2:], result.shape[2:], strict=True)]
    if any(f != int(f) for f in factors):
        planner.refuse(call.name, f"from {tuple(x.shape[2:])} to {tuple(result.shape[2:])} is not by integer factors")
    reach, new, wants, cuts = INTERPOLATIONS[mode], [], {}, []
    for axis, split in splits.items():
        dim, f = axis + 2, int(factors[axis])
        wants[dim] = [(a - reach, b + reach) for a, b in zip(split.offsets, split.offsets[1:], strict=False)]
        out = Split(split.axis, tuple(o * f for o in split.offsets))
        new.append((dim, out))
        cuts.append((dim, reach * f, out.size(planner.domain.place)))
    moves = planner.moves(call.name, x, planner.layout(x), wants, "replicate")
    planner.record(call, Interpolated(moves, tuple(factors), mode, tuple(cuts)))
    return planner.keep(result, tuple(new))
