"""Which calls a kernel can march along: the conditions that all marching kernels share."""

from __future__ import annotations

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry
from lconv_fast.ops.gpu.call import HALVES, Call
from lconv_fast.ops.gpu.march.registers import BLOCK


def offsets_of(g: Geometry) -> list[tuple[int, ...]]:
    """The taps of a geometry."""
    return [tuple(g.taps[j : j + g.ndim]) for j in range(0, len(g.taps), g.ndim)]


def steps_of(g: Geometry) -> tuple[float, ...] | None:
    """The weights of f(x + e_a), where component a is a difference of f(x + e_a) and f(x - e_a) and no more."""
    n = g.ndim
    if list(g.components) != [a for a in range(n) for _ in range(2)]:
        return None
    offsets, steps = offsets_of(g), []
    for a in range(n):
        weights = {}
        for j in (2 * a, 2 * a + 1):
            tap = offsets[j]
            if any(t for b, t in enumerate(tap) if b != a) or abs(tap[a]) != 1:
                return None
            weights[tap[a]] = g.tap_weights[j]
        if len(weights) < 2 or weights[1] != -weights[-1]:
            return None
        steps.append(weights[1])
    return tuple(steps)


def why_not(call: Call, channels_last: bool = True) -> str:
    """Why a kernel cannot march along the data of a call, which are to be laid out so; empty if it can."""
    g, data = call.geometry, call.source
    channels = data.shape[1] // g.groups
    constant = g.kind == CoefficientKind.CONSTANT
    taps = len({*offsets_of(g), (0,) * g.ndim})
    reach = max((abs(offset) for offset in g.taps), default=0)
    reasons = (
        (data.dtype not in HALVES, f"{data.dtype} is not a half type"),
        (g.ndim < 2, "one axis has no lines to march along"),
        (not PaddingMode(g.padding_mode).inverts, "padding that does not invert"),
        (max(g.stride) > 1, "a stride"),
        (max(g.halo) > 0, "a halo"),
        (channels % BLOCK != 0, f"{channels} channels in a group are no multiple of {BLOCK}"),
        (channels_last and data.strides[1] != 1, "not channels-last"),
        (not channels_last and (data.strides[-1] != 1 or data.strides[1] == 1), "not contiguous"),
        (
            channels_last and (not data.aligned or any(s % BLOCK for k, s in enumerate(data.strides) if k != 1)),
            "not aligned to 16 bytes",
        ),
        (call.card.capability < 8, "a card before sm_80"),
        (constant and reach > min(g.spatial), "taps around the whole grid"),
        (constant and taps > call.table.most_taps, f"{taps} taps are more than {call.table.most_taps}"),
        (not constant and steps_of(g) is None, "taps other than central differences of order 2"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def filled(call: Call, points: int) -> bool:
    """Whether a program's columns are points enough: tile kernels' tiles run over lines, and serve narrower images."""
    return call.geometry.spatial[-1] >= call.table.least_filled * points
