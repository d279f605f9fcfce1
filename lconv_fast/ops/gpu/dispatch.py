"""Which kernel a call takes: a closed list of ways for each operator, in order. Each answers a plan, or why not.

A plan depends on what `Call` holds, and never on the numbers in tensors or on where the grid lies in a full one; plans
are kept, so that only the first of calls that are alike is checked and planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lconv_fast.epilogue import finish_and_keep
from lconv_fast.ops.geometry import Geometry, accumulate_type, empty_like_format, require
from lconv_fast.ops.gpu import checks
from lconv_fast.ops.gpu.call import Call, Epilogue, Layout, precision_of
from lconv_fast.ops.gpu.card import Card, card_of
from lconv_fast.ops.gpu.launch import Launch
from lconv_fast.ops.gpu.march import apply as march_apply
from lconv_fast.ops.gpu.march import backward as march_backward
from lconv_fast.ops.gpu.march import gram as march_gram
from lconv_fast.ops.gpu.march import planes, planes_gram
from lconv_fast.ops.gpu.tables import Table, tuned
from lconv_fast.ops.gpu.tile import apply as tile_apply
from lconv_fast.ops.gpu.tile import correlate as tile_correlate
from lconv_fast.ops.gpu.tile import gram as tile_gram
from lconv_fast.ops.gpu.views import Coordinates

MOST_PLANS = 4096  # kept at a time


class Way(NamedTuple):
    name: str
    plan: Callable[[Call], Any]  # a plan, whose run(coordinates, *tensors) is the operator; or why not


Ways = tuple[Way, ...]


class Both(NamedTuple):
    """backward as its two parts."""

    transposed: Any
    gram: Any

    def run(self, coordinates: Coordinates, cotangent: Tensor, input: Tensor, weight: Tensor, v: Tensor) -> Any:
        features = self.transposed.run(coordinates, cotangent, weight, v, None)
        return features, self.gram.run(coordinates, input, cotangent, v)


def _both(call: Call) -> Both:
    assert call.partner is not None
    transposed = call._replace(operator="transposed", partner=None)
    gram = call._replace(operator="gram", source=call.partner, partner=call.source)
    return Both(_first(transposed), _first(gram))


class Composed(NamedTuple):
    """finished as its parts."""

    call: Call
    forward: Any

    def run(
        self,
        coordinates: Coordinates,
        input: Tensor,
        weight: Tensor,
        v: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        assert self.call.epilogue is not None
        output = self.forward.run(coordinates, input, weight, v, bias)
        return finish_and_keep(output, residual, *self.call.epilogue)


def _composed(call: Call) -> Composed:
    return Composed(call, _first(call._replace(operator="forward", epilogue=None, residual=None)))


class Zeros(NamedTuple):
    """Without points or channels to sum over, or to fill, the result is zero, or nothing."""

    call: Call

    def run(self, coordinates: Coordinates, *tensors: Tensor) -> Tensor:
        call, like = self.call, tensors[0]
        g, wide = call.geometry, accumulate_type(like.dtype)
        if call.operator == "gram":
            return like.new_zeros((call.generators + 1, call.outs * g.groups, call.ins))
        if call.operator == "correlate":
            return like.new_zeros(g.coefficient_shape(call.generators), dtype=wide)
        channels, extent = (call.ins, g.array) if call.transposed else (call.outs, g.out)
        return empty_like_format(like, channels * g.groups, extent)


def _zeros(call: Call) -> Zeros | str:
    sizes = {
        "forward": (call.batch, call.outs),
        "transposed": (call.batch, call.ins),
        "gram": (call.batch, call.ins, call.outs),
        "correlate": (call.batch, call.ins, call.outs, call.generators, call.geometry.component_count),
    }
    return Zeros(call) if 0 in sizes[call.operator] else "there is something to compute"


ZEROS = Way("zeros", _zeros)


def _marching(march: Callable[[Call], Any], on_planes: Callable[[Call], Any], tile: Callable[[Call], Any]) -> Ways:
    return ZEROS, Way("march", march), Way("march, planes", on_planes), Way("tile", tile)


APPLY = _marching(march_apply.plan, planes.plan, tile_apply.plan)
WAYS: dict[str, Ways] = {
    "forward": APPLY,
    "finished": (
        Way("march", march_apply.finished_plan),
        Way("march, planes", planes.finished_plan),
        Way("forward, then its epilogue", _composed),
    ),
    "transposed": APPLY,
    "gram": _marching(march_gram.plan, planes_gram.plan, tile_gram.plan),
    "correlate": _marching(march_gram.correlate_plan, planes_gram.correlate_plan, tile_correlate.plan),
    "backward": (Way("march", march_backward.plan), Way("transposed, then gram", _both)),
}


def ways(
    geometry: Geometry,
    operator: str,
    dtype: torch.dtype,
    shape: Sequence[int],
    out_channels: int,
    generators: int,
    card: Card,
    *,
    channels_last: bool = True,
    identity: bool = True,
    table: Table | None = None,
) -> list[tuple[str, Any]]:
    """Every way of an operator with its plan, or with the reason why it does not serve, as far as the first that does.

    Needs no GPU: `card` may be one of `card.CARDS`.

    Args:
        geometry: the call's.
        operator: forward, transposed, gram, correlate or backward.
        dtype: of input, weight and cotangent.
        shape: (N, C_in, *spatial) of f.
        out_channels: C_out.
        generators: n_L.
        channels_last: how f and g are laid out, else contiguous.
        identity: whether W^0 takes part.
    """
    if operator not in WAYS:
        raise ValueError(f"ways: expected one of {', '.join(WAYS)}, got {operator!r}")

    def layout(channels: int, extent: Sequence[int]) -> Layout:
        like = torch.empty(
            (shape[0], *extent, channels) if channels_last else (shape[0], channels, *extent), device="meta"
        )
        return Layout.of(like.movedim(-1, 1) if channels_last else like)._replace(dtype=dtype)

    f, g = layout(shape[1], geometry.array), layout(out_channels, geometry.out)
    v = Layout.of(torch.empty(geometry.coefficient_shape(generators), device="meta"))
    source, partner = (g, f) if operator in ("transposed", "backward") else (f, g)
    call = Call(
        operator,
        geometry,
        generators,
        identity,
        shape[1] // geometry.groups,
        out_channels // geometry.groups,
        source,
        partner,
        v,
        precision=precision_of(dtype),
        card=card,
        table=table or Table(),
        launcher=Launch,
    )
    return list(_answers(call))


def _answers(call: Call) -> Iterator[tuple[str, Any]]:
    for way in WAYS[call.operator]:
        answer = way.plan(call)
        yield way.name, answer
        if not isinstance(answer, str):
            return


def _first(call: Call) -> Any:
    """The plan of the first way that serves."""
    *_, (_, answer) = _answers(call)
    assert not isinstance(answer, str), answer
    return answer


class Operators:
    """The functions behind torch.ops.lconv_fast on CUDA tensors."""

    def __init__(
        self,
        card_of: Callable[[torch.device], Card] = card_of,
        table_of: Callable[[Card], Table] = lambda card: tuned(card.name),
        launcher: Callable[..., Any] = Launch,
    ) -> None:
        self._card_of, self._table_of, self._launcher = card_of, table_of, launcher
        self._plans: dict[Any, Any] = {}
        self._coordinates: dict[Any, Coordinates] = {}
        self._machines: dict[torch.device, tuple[Card, Table]] = {}

    def apply(
        self, input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None, *arguments: Any
    ) -> Tensor:
        *geometry, identity, transposed = arguments
        if bias is not None:
            bias = bias.contiguous()
        tensors = (input, weight, coefficients, bias)
        operator = "transposed" if transposed else "forward"
        coordinates, plan = self._planned(operator, geometry, identity, tensors, _apply_call)
        return plan.run(coordinates, *tensors)

    def finished(
        self,
        input: Tensor,
        weight: Tensor,
        coefficients: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str | None,
        keep: bool,
        *arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        *geometry, identity = arguments
        if bias is not None:
            bias = bias.contiguous()
        tensors = (input, weight, coefficients, bias, residual)
        coordinates, plan = self._planned(
            "finished", geometry, identity, tensors, _finished_call, Epilogue(activation, keep)
        )
        return plan.run(coordinates, *tensors)

    def gram(self, input: Tensor, cotangent: Tensor, coefficients: Tensor, *arguments: Any) -> Tensor:
        *geometry, identity = arguments
        tensors = (input, cotangent, coefficients)
        coordinates, plan = self._planned("gram", geometry, identity, tensors, _gram_call)
        return plan.run(coordinates, *tensors)

    def correlate(self, input: Tensor, weight: Tensor, cotangent: Tensor, *geometry: Any) -> Tensor:
        tensors = (input, weight, cotangent)
        coordinates, plan = self._planned("correlate", geometry, False, tensors, _correlate_call)
        return plan.run(coordinates, *tensors)

    def backward(
        self, cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        *geometry, identity = arguments
        tensors = (cotangent, input, weight, coefficients)
        coordinates, plan = self._planned("backward", geometry, identity, tensors, _backward_call)
        return plan.run(coordinates, *tensors)

    def _planned(
        self,
        operator: str,
        arguments: Sequence[Any],
        identity: bool,
        tensors: Sequence[Any],
        call_of: Callable[..., Call],
        epilogue: Epilogue | None = None,
    ) -> tuple[Coordinates, Any]:
        frozen: tuple[Any, ...] = tuple([tuple(a) if isinstance(a, list) else a for a in arguments])
        about = tuple([None if t is None else _about(t) for t in tensors])
        data = tensors[0]
        coordinates = self._coordinates.get(frozen)
        if coordinates is None:
            g = Geometry(*frozen)
            g.check()
            coordinates = _keep(self._coordinates, frozen, Coordinates.of(g))
        key = (operator, epilogue, frozen[:7], frozen[10:], identity, about, data.device, precision_of(data.dtype))
        plan = self._plans.get(key)
        if plan is None:
            if data.device not in self._machines:
                card = self._card_of(data.device)
                self._machines[data.device] = (card, self._table_of(card))
            card, table = self._machines[data.device]
            call = call_of(operator, Geometry(*frozen), *tensors)._replace(
                identity=bool(identity),
                epilogue=epilogue,
                precision=precision_of(data.dtype),
                card=card,
                table=table,
                launcher=self._launcher,
            )
            plan = _keep(self._plans, key, _first(call))
        return coordinates, plan


def _keep(found: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(found) >= MOST_PLANS:
        found.clear()
    found[key] = value
    return value


def _about(t: Tensor) -> Any:
    """All that plans and compilations may depend on."""
    return t.shape, t.stride(), t.dtype, t.data_ptr() % 16 == 0, t.device


def _apply_call(
    operator: str, g: Geometry, input: Tensor, weight: Tensor, coefficients: Tensor, bias: Tensor | None
) -> Call:
    checks.check_tensors(input, {"weight": weight, "bias": bias}, {"coefficients": coefficients})
    checks.check_weight(g, weight)
    generators, outs, ins = weight.shape[0] - 1, weight.shape[1] // g.groups, weight.shape[2]
    checks.check_coefficients(g, coefficients, generators)
    transposed = operator == "transposed"
    if transposed:
        checks.check_inverts(g)
    checks.check_data(input, (outs if transposed else ins) * g.groups, g.out if transposed else g.array, "input")
    if bias is not None:
        made = (ins if transposed else outs) * g.groups
        require(tuple(bias.shape) == (made,), "the shape of bias does not fit the other arguments")
    v = Layout.of(coefficients)
    return Call(operator, g, generators, True, ins, outs, Layout.of(input), None, v, bias is not None)


def _finished_call(
    operator: str,
    g: Geometry,
    input: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Call:
    call = _apply_call(operator, g, input, weight, coefficients, bias)
    if residual is None:
        return call
    checks.check_tensors(input, {"residual": residual}, {})
    checks.check_data(residual, call.outs * g.groups, g.out, "residual")
    require(residual.shape[0] == input.shape[0], "input and residual differ in batch")
    return call._replace(residual=Layout.of(residual))


def _gram_call(operator: str, g: Geometry, input: Tensor, cotangent: Tensor, coefficients: Tensor) -> Call:
    checks.check_tensors(input, {"cotangent": cotangent}, {"coefficients": coefficients})
    generators = coefficients.shape[0]
    checks.check_coefficients(g, coefficients, generators)
    checks.check_data(input, input.shape[1], g.array, "input")
    require(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    checks.check_data(cotangent, cotangent.shape[1], g.out, "cotangent")
    ins, outs = input.shape[1], cotangent.shape[1]
    require(ins % g.groups == 0 and outs % g.groups == 0, "groups does not divide the channels")
    layouts = (Layout.of(input), Layout.of(cotangent), Layout.of(coefficients))
    return Call(operator, g, generators, True, ins // g.groups, outs // g.groups, *layouts)


def _correlate_call(operator: str, g: Geometry, input: Tensor, weight: Tensor, cotangent: Tensor) -> Call:
    checks.check_tensors(input, {"weight": weight, "cotangent": cotangent}, {})
    ins, outs = _check_pair(g, input, weight, cotangent)
    return Call(operator, g, weight.shape[0] - 1, False, ins, outs, Layout.of(input), Layout.of(cotangent))


def _backward_call(
    operator: str, g: Geometry, cotangent: Tensor, input: Tensor, weight: Tensor, coefficients: Tensor
) -> Call:
    checks.check_tensors(input, {"cotangent": cotangent, "weight": weight}, {"coefficients": coefficients})
    ins, outs = _check_pair(g, input, weight, cotangent)
    generators = weight.shape[0] - 1
    checks.check_coefficients(g, coefficients, generators)
    checks.check_inverts(g)
    layouts = (Layout.of(cotangent), Layout.of(input), Layout.of(coefficients))
    return Call(operator, g, generators, True, ins, outs, *layouts)


def _check_pair(g: Geometry, input: Tensor, weight: Tensor, cotangent: Tensor) -> tuple[int, int]:
    """Channels in a group of f and g."""
    checks.check_weight(g, weight)
    checks.check_data(input, weight.shape[2] * g.groups, g.array, "input")
    checks.check_data(cotangent, weight.shape[1], g.out, "cotangent")
    require(cotangent.shape[0] == input.shape[0], "input and cotangent differ in batch")
    return weight.shape[2], weight.shape[1] // g.groups


OPERATORS = Operators()
