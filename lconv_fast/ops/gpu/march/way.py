"""Which calls a kernel can march along: the conditions that all marching kernels share."""

from __future__ import annotations

from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Geometry
from lconv_fast.ops.gpu.call import HALVES, Call
from lconv_fast.ops.gpu.march.registers import BLOCK


def central_steps(g: Geometry) -> tuple[float, ...] | None:
    """The weights of f(x + e_a), where component a is a difference of f(x + e_a) and f(x - e_a) and no more."""
    n = g.ndim
    if list(g.components) != [a for a in range(n) for _ in range(2)]:
        return None
    steps = []
    for a in range(n):
        weights = {}
        for j in (2 * a, 2 * a + 1):
            tap = list(g.taps[j * n : j * n + n])
            if [t for b, t in enumerate(tap) if b != a] != [0] * (n - 1) or abs(tap[a]) != 1:
                return None
            weights[tap[a]] = g.tap_weights[j]
        if len(weights) < 2 or weights[1] != -weights[-1]:
            return None
        steps.append(weights[1])
    return tuple(steps)


def steps_of(call: Call) -> tuple[float, ...] | str:
    """The steps of a call on data that a kernel can march along, or why it cannot."""
    g, data = call.geometry, call.source
    channels = data.shape[1] // g.groups
    steps = central_steps(g)
    reasons = (
        (data.dtype not in HALVES, f"{data.dtype} is not a half type"),
        (g.ndim < 2, "one axis has no lines to march along"),
        (g.kind == CoefficientKind.CONSTANT, "constant coefficients"),
        (not PaddingMode(g.padding_mode).inverts, "padding that does not invert"),
        (max(g.stride) > 1, "a stride"),
        (max(g.halo) > 0, "a halo"),
        (channels % BLOCK != 0, f"{channels} channels in a group are no multiple of {BLOCK}"),
        (data.strides[1] != 1, "not channels-last"),
        (not data.aligned or any(s % BLOCK for k, s in enumerate(data.strides) if k != 1), "not aligned to 16 bytes"),
        (call.card.capability < 8, "a card before sm_80"),
        (steps is None, "taps other than central differences of order 2"),
    )
    for applies, reason in reasons:
        if applies:
            return reason
    assert steps is not None
    return steps


def filled(call: Call, points: int) -> bool:
    """Whether a program's columns are points enough: tile kernels' tiles run over lines, and serve narrower images."""
    return call.geometry.spatial[-1] >= call.table.least_filled * points
