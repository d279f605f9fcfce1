"""The L-conv itself: a shard is a window of the grid, with the points that its taps reach received from its
neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lconv_fast import form
from lconv_fast.generators import GridGenerators
from lconv_fast.ops.boundary import PaddingMode
from lconv_fast.ops.geometry import CoefficientKind, Stencil, Window, output_size
from lconv_fast.sharding.calls import Call
from lconv_fast.sharding.exchange import extended, moved
from lconv_fast.sharding.layout import Move, Split, axes_of, chunks
from lconv_fast.sharding.overlap import Overlap, Range, can_overlap
from lconv_fast.sharding.plan import Planner
from lconv_fast.sharding.sums import shared


class LConv:
    """form.lconv on this rank's points: window and halo in its geometry, zeros beyond."""

    needs_plan = True

    def __init__(
        self,
        moves: tuple[Move, ...],
        groups: tuple[Any, ...],
        stencil: Stencil,
        window: Window,
        halo: list[int],
        coefficient_moves: tuple[Move, ...],
        coefficient_part: tuple[tuple[int, int, int], ...],
        overlap: Overlap | None,
        always: bool,
    ) -> None:
        self.moves, self.groups, self.stencil, self.window, self.halo = moves, groups, stencil, window, halo
        self.coefficient_moves, self.coefficient_part = coefficient_moves, coefficient_part
        self.overlap, self.always = overlap, always

    def __call__(
        self,
        coefficients: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        groups: int,
    ) -> Tensor:
        learned: dict[str, Tensor] = {"weight": weight, "coefficients": coefficients}
        if bias is not None:
            learned["bias"] = bias
        if hasattr(coefficients, "to_local"):  # a field that is sharded like the domain
            del learned["coefficients"]
            coefficients = moved(coefficients.to_local(), self.coefficient_moves)
        names = [name for name, t in learned.items() if t.requires_grad]
        for name, t in zip(names, shared(self.groups, [learned[name] for name in names]), strict=True):
            learned[name] = t
        coefficients = learned.get("coefficients", coefficients)
        for dim, start, length in self.coefficient_part:
            coefficients = coefficients.narrow(dim, start, length)
        weight, bias = learned["weight"], learned.get("bias")
        if self.overlap is not None and can_overlap() and (self.always or self.overlap.pays(input)):
            sampled = self.stencil.kind == CoefficientKind.SAMPLED

            def piece(array: Tensor, ranges: Mapping[int, Range], halo: Mapping[int, Range]) -> Tensor:
                origin, sides, s = list(self.window.origin), [0] * len(self.halo), coefficients
                for dim, (first, last) in ranges.items():
                    origin[dim - 2] += first
                    sides[2 * dim - 4 : 2 * dim - 2] = halo[dim]
                    s = s.narrow(dim, first, last - first) if sampled else s
                window = Window(origin, self.window.full)
                return form.lconv(s, array, weight, bias, self.stencil, stride, groups, window, sides)

            return self.overlap(input, piece)
        array, context = extended(input, self.moves)
        with context:
            return form.lconv(coefficients, array, weight, bias, self.stencil, stride, groups, self.window, self.halo)


def lconv(
    planner: Planner,
    path: str,
    generators: GridGenerators,
    fields: Sequence[str],
    arguments: tuple[Tensor, Tensor, Tensor, Tensor | None, Sequence[int], int],
    result: Tensor,
) -> Tensor:
    """Plans Generators.mix on `arguments`, whose result on the whole grid is `result`; `fields` are the sharded
    parameters."""
    coefficients, x, weight, bias, stride, _ = arguments
    layout, n, name = planner.layout(x), x.dim() - 2, "an L-conv"
    stencil = generators.stencil()
    if stencil is None or stencil.transposed:
        planner.refuse(type(generators).__name__, "acts on all points, or is transposed: no halo makes it local")
    full, place = list(x.shape[2:]), planner.domain.place
    origin, halo, wants, new, part = [0] * n, [0] * (2 * n), {}, [], []
    splits = dict(layout)
    if any(dim < 2 for dim in splits):
        planner.refuse(name, "takes dimensions 0 and 1 for examples and channels, which are sharded here")
    mode = stencil.padding_mode
    own_moves: list[Move] = []
    field_wants, field_splits = {}, []
    for axis in range(n):
        dim = axis + 2
        low, high = reach_of(stencil, axis)
        if dim not in splits:
            if mode != PaddingMode.ZEROS and (low or high):
                # A periodic axis, say, that is whole on each rank: the kernel takes one boundary for all axes.
                own_moves.append(
                    Move(dim, None, (0, full[axis]), (), (0, 0), (0, 0), (low, high), mode.name.lower(), 1)
                )
                halo[2 * axis : 2 * axis + 2] = low, high
            continue
        split = splits[dim]
        if not isinstance(split, Split):
            planner.refuse(name, "needs neighbours along a dimension whose points have no order any more")
        out = [-(-o // stride[axis]) for o in split.offsets]
        planner.keep(result, ((dim, Split(split.axis, tuple(out))),))
        new.append((dim, Split(split.axis, tuple(out))))
        grids = [(a * stride[axis], (b - 1) * stride[axis] + 1) for a, b in itertools.pairwise(out)]
        clip = mode == PaddingMode.ZEROS
        wants[dim] = [(max(a - low, 0), min(b + high, full[axis])) if clip else (a - low, b + high) for a, b in grids]
        first, last = grids[place[split.axis]]
        origin[axis] = first
        begin, end = wants[dim][place[split.axis]]
        halo[2 * axis : 2 * axis + 2] = first - begin, end - last
        part.append((dim, first, last - first))
        field_splits.append((dim, Split(split.axis, chunks(full[axis], len(out) - 1))))
        field_wants[dim] = grids
    # What wraps round on this rank alone comes after what is sent, which it would make larger.
    moves = (*planner.moves(name, x, layout, wants, mode.name.lower()), *own_moves)
    coefficient_moves: tuple[Move, ...] = ()
    sampled = stencil.kind == CoefficientKind.SAMPLED
    if sampled and fields:
        coefficient_moves = planner.moves("a learned field", coefficients, tuple(field_splits), field_wants)
        part = []
    elif not sampled:
        part = []
    shares = weight.numel() + (0 if bias is None else bias.numel()) + (0 if fields else coefficients.numel())
    planner.count_sum(name, shares, True)
    overlap = None
    if planner.overlap is not False and not own_moves and all(s == 1 for s in stride):
        reach = {dim: reach_of(stencil, dim - 2) for dim in splits}
        overlap = Overlap.of(moves, reach, planner.local(x, layout))
        if overlap is not None:
            planner.plan.overlapped.add(planner.where)
    entry = LConv(
        moves,
        planner.groups(axes_of(layout)),
        stencil._replace(padding_mode=PaddingMode.ZEROS),
        Window(origin, full),
        halo,
        coefficient_moves,
        tuple(part),
        overlap,
        planner.overlap is True,
    )
    planner.record(Call(mix_name(stride), None, (x,), {}), entry, tuple(stencil), path)
    assert list(result.shape[2:]) == output_size(full, stride)
    return planner.keep(result, tuple(new))


def reach_of(stencil: Stencil, axis: int) -> Range:
    """How far taps reach down and up."""
    offsets = [tap[axis] for tap in stencil.taps]
    return max([0, *(-o for o in offsets)]), max([0, *offsets])


def mix_name(stride: Sequence[int]) -> str:
    """The name under which the plan keeps a layer of that stride."""
    return f"L-conv of stride {tuple(stride)}"
