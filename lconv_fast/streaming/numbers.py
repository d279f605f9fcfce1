"""The few numbers that all tiles share: parameters and what is made of them, and what sums over space determine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from lconv_fast.regions.graph import Graph
from lconv_fast.regions.rules import Kind, Value, operator_name
from lconv_fast.streaming.sums import Gradients


def named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names: modules may share them."""
    return dict((*model.named_buffers(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)))


class Numbers:
    """Constants (of parameters and buffers alone) and globals (of sums over space too), each computed once.

    Tiles get detached copies, whose gradients are summed in `gradients`; `finish` hands them on to the parameters.
    """

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        model = graph.model
        self.state = named(model)
        self.results: dict[Value, tuple[Tensor, ...]] = {}  # of sums over space
        self.counts: dict[Value, int] = {}  # points that they ran over
        self.gradients = Gradients()
        self._made: dict[fx.Node, Any] = {}  # with their history
        self._leaves: dict[Value, Tensor] = {}  # constants, and results of sums, as globals see them

    def constant(self, value: Value) -> Any:
        """A constant or global with its history down to parameters, or to the leaves that globals are made of."""
        node = value.node
        if node not in self._made:
            with torch.enable_grad():
                self._made[node] = self._make(value)
        return self._made[node]

    def _make(self, value: Value) -> Any:
        node = value.node
        if node.op == "placeholder":
            source = self.graph.constants[node]
            found = self.state.get(source) if isinstance(source, str) else source
            if found is None:
                raise ValueError(f"stream: the trace has lost {source}")
            return found
        if value.reduces is not None:
            (result,) = self.results[value]
            self._leaves[value] = result.detach().requires_grad_(value.trainable)
            return self._leaves[value]

        def given(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                operand = self.graph.values[argument]
                if value.kind == Kind.GLOBAL and operand.kind == Kind.CONSTANT:
                    return self._leaf(operand)
                return self.constant(operand)
            if isinstance(argument, (list, tuple)):
                return type(argument)(given(item) for item in argument)
            return argument

        function: Any = node.target
        if operator_name(node).endswith("_"):  # parameters and buffers stay as they are
            first, *rest = node.args
            return function(given(first).clone(), *map(given, rest), **{k: given(v) for k, v in node.kwargs.items()})
        return function(*map(given, node.args), **{k: given(v) for k, v in node.kwargs.items()})

    def _leaf(self, operand: Value) -> Any:
        made = self.constant(operand)
        if not isinstance(made, Tensor) or not made.requires_grad:
            return made
        if operand not in self._leaves:
            self._leaves[operand] = made.detach().requires_grad_()
        return self._leaves[operand]

    def pull_globals(self, level: int) -> None:
        """Hands the gradients of the globals of one level to the sums and constants they are made of."""
        roots, gradients = [], []
        for value in self.graph:
            total = self.gradients.get(value)
            if value.kind == Kind.GLOBAL and value.level == level and total is not None:
                made = self.constant(value)
                if made.requires_grad:
                    roots.append(made)
                    gradients.append(total.to(made.dtype))
        if roots:
            torch.autograd.backward(roots, gradients, retain_graph=True)

    def cotangents(self, value: Value) -> tuple[Tensor, ...]:
        """Of the results of a sum over space, in float64."""
        if value.kind == Kind.GLOBAL:
            leaf = self._leaves.get(value)
            found: list[Tensor | None] = [None if leaf is None else leaf.grad]
        else:
            found = [self.gradients.get((value, k)) for k in range(len(self.results[value]))]
        return tuple(
            torch.zeros_like(result, dtype=torch.float64) if g is None else g.double()
            for g, result in zip(found, self.results[value], strict=True)
        )

    def finish(self) -> None:
        """Adds to .grad of the parameters, as backward() does."""
        roots, gradients = [], []
        for value in self.graph:
            if value.kind != Kind.CONSTANT or not value.trainable:
                continue
            total, leaf = self.gradients.get(value), self._leaves.get(value)
            if leaf is not None and leaf.grad is not None:
                total = leaf.grad.double() if total is None else total + leaf.grad.double()
            if total is not None:
                made = self.constant(value)
                roots.append(made)
                gradients.append(total.to(made.dtype))
        if roots:
            torch.autograd.backward(roots, gradients)
