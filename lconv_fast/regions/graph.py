"""A model as a graph of operators on the whole grid, each with the rule that says what it reads."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lconv_fast.regions.rules import REDUCTIONS, Kind, NotLocal, Value, operator_name, rule_for
from lconv_fast.regions.rules.base import nodes_in

# Results that share memory with their first operand.
VIEWS = frozenset(
    "aten." + name
    for name in [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "narrow",
        "slice",
        "permute",
        "transpose",
        "movedim",
        "expand",
        "squeeze",
        "unsqueeze",
        "select",
        "alias",
        "detach",
        "contiguous",
        "to",
        "dropout",
        "feature_dropout",
        "unbind",
        "split",
        "chunk",
        "split_with_sizes",
        "swapaxes",
    ]
)


@dataclass(frozen=True)
class NonLocal:
    """An operator whose output at a point needs more than the points around it."""

    path: str  # of the module
    operator: str
    needs: str
    summable: bool  # whether sums over space are all it needs, so that tiles can be exact
    where: str = ""  # in the source

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'}: {self.operator} {self.needs}"


@dataclass
class Graph:
    """The traced model: values in the order in which they are computed."""

    model: nn.Module
    values: dict[fx.Node, Value]
    inputs: list[Value]
    output: Value
    constants: dict[fx.Node, Any]  # names of parameters and buffers, or tensors
    ndim: int
    nonlocal_: list[NonLocal]

    def __iter__(self) -> Iterator[Value]:
        return iter(self.values.values())

    def users(self, value: Value) -> list[Value]:
        """The operators that read a value."""
        return [self.values[node] for node in value.node.users if node in self.values]

    @property
    def input(self) -> Value:
        return self.inputs[0]


def trace(model: nn.Module, shape: Sequence[int], dtype: torch.dtype, ndim: int, caller: str = "regions") -> Graph:
    """The graph of a model on an input of that shape, whose last `ndim` dimensions are space. Nothing is computed.

    Raises ValueError where the model cannot be traced, naming the module path, the operator and its place.
    """
    program = _export(model, tuple(shape), dtype, caller)
    graph = program.graph
    _resolve_inplace(graph, caller)
    _unexpand(graph)
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {**program.constants, **dict(model.named_buffers(remove_duplicate=False)), **parameters}
    constants: dict[fx.Node, Any] = {}
    values: dict[fx.Node, Value] = {}
    inputs: list[Value] = []
    output = None
    found: list[NonLocal] = []
    for node in graph.nodes:
        if node.op == "output":
            results = [n for n in nodes_in(node.args) if n in values and values[n].kind != Kind.CONSTANT]
            user = {
                s.arg.name for s in signature.output_specs if s.kind.name == "USER_OUTPUT" and hasattr(s.arg, "name")
            }
            results = [n for n in results if n.name in user]
            if len(results) != 1:
                raise ValueError(f"{caller}: expected a model with one output, got {len(results)}")
            output = values[results[0]]
            continue
        if node.op == "get_attr":
            raise ValueError(f"{caller}: {_path(node)} branches on data inside the graph, which has no regions")
        shape_, type_ = _described(node)
        value = Value(node, shape_, type_, _path(node))
        values[node] = value
        if node.op == "placeholder":
            if node.name in names:
                source = state.get(names[node.name])
                constants[node] = source if names[node.name] in program.constants else names[node.name]
                value.trainable = bool(getattr(source, "requires_grad", False))
            else:
                value.kind, value.dims = Kind.FIELD, (*(None,) * (len(shape_) - ndim), *range(ndim))
                inputs.append(value)
            continue
        _classify(value, values, found, ndim)
    if output is None or not inputs:
        raise ValueError(f"{caller}: the model has no input or no output")
    return Graph(model, values, inputs, output, constants, ndim, found)


def _classify(value: Value, values: dict[fx.Node, Value], found: list[NonLocal], ndim: int) -> None:
    """Kind, rule and axes of an operator's result, from those of its operands."""
    node = value.node
    operands = [values[n] for n in dict.fromkeys((*nodes_in(node.args), *nodes_in(node.kwargs)))]
    value.fields = [o for o in operands if o.kind == Kind.FIELD]
    value.others = [o for o in operands if o.kind != Kind.FIELD]
    value.level = max([o.level for o in operands], default=0)
    value.trainable = any(o.trainable for o in operands) and value.dtype.is_floating_point
    if any(o.kind == Kind.WHOLE for o in operands):
        value.kind = Kind.WHOLE
        if operator_name(node) in MIXES:
            found.append(_report(value, "lets every point see every other: needs the whole input", False))
        return
    if not value.fields:
        value.kind = Kind.GLOBAL if any(o.kind == Kind.GLOBAL for o in operands) else Kind.CONSTANT
        return
    name = operator_name(node)
    try:
        sums = REDUCTIONS.get(name)
        source = sums.reduces(value) if sums is not None else None
        if source is not None:
            value.rule, value.reduces, value.level = sums, source, value.level + 1
            value.kind = Kind.GLOBAL if name in GLOBAL_SUMS else Kind.FIELD
            value.dims = sums.dims(value) if value.kind == Kind.FIELD else ()  # type: ignore[union-attr]
            what = "normalises over space: mean and variance of" if value.kind == Kind.FIELD else "needs sums over"
            found.append(_report(value, f"{what} all points", True))
            return
        rule = rule_for(node)
        if rule is None:
            raise NotLocal("is not in the table of local operators (lconv_fast/regions/rules)")
        value.rule, value.kind = rule, Kind.FIELD
        value.dims = rule.dims(value)
        if sorted(d for d in value.dims if d is not None) != list(range(ndim)):
            raise NotLocal("removes an axis of space")
    except NotLocal as reason:
        value.kind, value.dims = Kind.WHOLE, ()
        found.append(_report(value, f"{reason}: needs the whole input", False))


# Named even where an operator before them has already needed the whole input.
MIXES = tuple(f"aten.{name}" for name in ("scaled_dot_product_attention", "bmm", "matmul", "fft_rfft", "fft_fft"))
GLOBAL_SUMS = ("aten.mean", "aten.sum", *(f"aten.adaptive_avg_pool{n}d" for n in (1, 2, 3)))


def _report(value: Value, needs: str, summable: bool) -> NonLocal:
    trace_ = (value.node.stack_trace or "").strip().splitlines()
    return NonLocal(value.path, value.operator, needs, summable, trace_[-1].strip() if trace_ else "")


def _described(node: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
    result = node.meta.get("val")
    while isinstance(result, (list, tuple)):
        result = result[0]
    if not isinstance(result, Tensor):
        return (), torch.float32
    return tuple(int(size) for size in result.shape), result.dtype


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    # A part of a list of modules is named after its slice.
    return re.sub(r"slice\((\d+), None, None\)\.(\d+)", lambda m: str(int(m[1]) + int(m[2])), path)


def _export(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, caller: str) -> Any:
    tensors = (*model.parameters(), *model.buffers())
    device = next((t.device for t in tensors), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        example = torch.empty(shape, dtype=dtype, device=device)
    inside: list[tuple[str, nn.Module]] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            inside.append((names[module], module))

    def leave(module: nn.Module, *_: Any) -> None:
        if inside and inside[-1][1] is module:
            inside.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        with _known_momentum(model), torch.no_grad():
            return torch.export.export(model, (example,), strict=False)
    except Exception as error:
        path, module = inside[-1] if inside else ("", model)
        kind = type(module).__name__
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if f.line and "/torch/" not in f.filename and "lconv_fast/regions" not in f.filename
        ]
        frames = frames or [f for f in traceback.extract_tb(error.__traceback__) if "/torch/nn/modules" in f.filename]
        place = (
            f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}, `{frames[-1].line}`" if frames else ""
        )
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{caller}: the model cannot be traced on an input of shape {shape}: in {path or 'the model itself'} "
            f"({kind})"
            f"{place}: {first}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _known_momentum(model: nn.Module) -> Iterator[None]:
    """Norms with a cumulative average look at their counter, which a trace has no number for."""
    unknown = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.momentum is None]
    for module in unknown:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module in unknown:
            module.momentum = None


def _resolve_inplace(graph: fx.Graph, caller: str) -> None:
    """What is read after an in-place operator is the operator's result."""
    base: dict[fx.Node, fx.Node] = {}
    order = {node: k for k, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        source = next(iter(node.all_input_nodes), None)
        name = operator_name(node)
        if node.op == "call_function" and source is not None and (name in VIEWS or name == "getitem"):
            base[node] = base.get(source, source)
        if node.op != "call_function" or not name.endswith("_") or name.endswith("__") or source is None:
            continue
        root = base.get(source, source)
        family = [n for n in order if n is not node and base.get(n, n) is root and n is not source]
        seen = [n for n in family if any(order[user] > order[node] for user in n.users if user is not node)]
        if root.op == "placeholder" and not node.users:
            continue  # counters of norms
        if seen or (root.op == "placeholder"):
            raise ValueError(
                f"{caller}: {_path(node) or 'the model itself'}: {name} writes into a part of {root.name}, which is "
                "read elsewhere; regions need results of their own (use the operator that returns a copy)"
            )
        base[node] = root
        source.replace_all_uses_with(node, delete_user_cb=lambda user, k=order[node]: order[user] > k)


def _unexpand(graph: fx.Graph) -> None:
    """Pointwise operators broadcast: a few numbers need no copies of the size of a field."""
    for node in list(graph.nodes):
        if operator_name(node) not in ("aten.expand", "aten.expand_as"):
            continue
        source = node.args[0]
        shape = _described(node)[0]

        def joined(user: fx.Node, node: fx.Node = node, shape: tuple[int, ...] = shape) -> bool:
            """Whether another operand brings the shape."""
            pointwise = torch.Tag.pointwise in getattr(user.target, "tags", ())
            return pointwise and any(n is not node and _described(n)[0] == shape for n in user.all_input_nodes)

        if len(_described(source)[0]) == len(shape) and all(map(joined, node.users)):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
