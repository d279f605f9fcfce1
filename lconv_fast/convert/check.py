"""A converted model beside the one it was, on the user's own batch: numerics, speed and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_module, positive_int
from lconv_fast.convert.memory import peak_memory
from lconv_fast.convert.swap import original


@dataclass(frozen=True)
class Comparison:
    """Each pair holds the value before the conversion and after it; times in seconds, memory in bytes."""

    layers: int
    output_error: float  # |after - before| / |before|, over all outputs
    output_difference: float  # the largest
    gradient_error: float | None  # of the inputs' gradients; None where no input is floating-point
    parameters: tuple[int, int]
    forward: tuple[float, float]
    step: tuple[float, float]  # forward and backward
    forward_memory: tuple[int, int]  # peak beyond what was held before
    step_memory: tuple[int, int]

    def __str__(self) -> str:
        def memory(size: float) -> str:
            return f"{size / 2**20:.1f} MiB"

        def duration(seconds: float) -> str:
            return f"{seconds * 1e3:.2f} ms"

        rows: list[tuple[str, Callable[[float], str], tuple[float, float]]] = [
            ("parameters", lambda count: f"{count:,}", self.parameters),
            ("forward", duration, self.forward),
            ("forward and backward", duration, self.step),
            ("peak memory, forward", memory, self.forward_memory),
            ("peak memory, both", memory, self.step_memory),
        ]
        gradient = "" if self.gradient_error is None else f", input gradients by {self.gradient_error:.1e}"
        lines = [
            f"{self.layers} converted layers: outputs differ by {self.output_error:.1e} (relative RMS; at most "
            f"{self.output_difference:.1e}){gradient}",
            f"{'':22}{'before':>14}{'after':>14}{'after / before':>16}",
        ]
        for name, shown, (before, after) in rows:
            ratio = f"{after / before:.2f}" if before else "-"
            lines.append(f"{name:22}{shown(before):>14}{shown(after):>14}{ratio:>16}")
        return "\n".join(lines)


def check(model: nn.Module, batch: Any, *, repeats: int = 7) -> Comparison:
    """Compares a model that `swap` has converted with what it was, prints the table, and returns its numbers.

    The convolutions stand in the model for the time of the comparison only. All runs are in evaluation mode, with a
    fixed cotangent of random numbers; times are the least of `repeats` runs that alternate between the two. Neither
    gradients, buffers, training mode nor the state of the random numbers are changed.

    Args:
        model: holds L-convs that `swap` put there.
        batch: the model's input: one argument, a tuple of arguments, or a dictionary of keywords.
        repeats: of each timed run.

    Raises:
        TypeError: a model that is no nn.Module.
        ValueError: if no layer of the model was converted.
    """
    check_module("model", model)
    repeats = positive_int("repeats", repeats)
    places = [
        (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], module, conv)
        for path, module in model.named_modules(remove_duplicate=False)
        if path and (conv := original(module)) is not None
    ]
    if not places:
        raise ValueError("model: holds no layer that lconv_fast.convert.swap has converted")

    @contextmanager
    def before() -> Iterator[None]:
        try:
            for parent, name, layer, conv in places:
                conv.train(layer.training)
                parent._modules[name] = conv
            yield
        finally:
            for parent, name, layer, _ in places:
                parent._modules[name] = layer

    @contextmanager
    def after() -> Iterator[None]:
        yield

    devices = sorted({p.device.index or 0 for p in [*_tensors(batch), *model.parameters()] if p.is_cuda})
    modes = [(module, module.training) for module in model.modules()]
    sides = (before, after)
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices):
            results, gradients, parameters = [], [], []
            for side in sides:
                with side():
                    torch.manual_seed(0)
                    results.append(_tensors(_forward(model, batch)))
                    gradients.append(_step(model, batch))
                    parameters.append(sum(p.numel() for p in model.parameters()))
            seconds: dict[tuple[int, int], list[float]] = {}
            memory = {}
            for job, run in enumerate((_forward, _step)):
                for _ in range(repeats):
                    for k, side in enumerate(sides):
                        with side():
                            seconds.setdefault((job, k), []).append(_seconds(partial(run, model, batch), devices))
                for k, side in enumerate(sides):
                    with side():
                        memory[job, k] = peak_memory(partial(run, model, batch), devices)
    finally:
        for module, training in modes:
            module.training = training

    def pair(
        values: dict[tuple[int, int], Any], job: int, reduce: Callable[[Any], Any] = lambda v: v
    ) -> tuple[Any, Any]:
        return reduce(values[job, 0]), reduce(values[job, 1])

    comparison = Comparison(
        layers=len({layer for _, _, layer, _ in places}),
        output_error=_error(*results),
        output_difference=max((b - a).abs().max().item() for a, b in zip(*results, strict=True) if a.numel()),
        gradient_error=_error(*gradients) if gradients[0] else None,
        parameters=(parameters[0], parameters[1]),
        forward=pair(seconds, 0, min),
        step=pair(seconds, 1, min),
        forward_memory=pair(memory, 0),
        step_memory=pair(memory, 1),
    )
    print(comparison)
    return comparison


def _tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors in tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, (tuple, list)) else []


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def _forward(model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return _call(model, batch)


def _step(model: nn.Module, batch: Any) -> list[Tensor]:
    """The gradients of the inputs; those of the parameters are computed as well, and dropped."""
    copies: dict[Tensor, Tensor] = {}

    def recorded(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            if not tree.is_floating_point():
                return tree
            return copies.setdefault(tree, tree.detach().clone().requires_grad_())
        if isinstance(tree, dict):
            return {key: recorded(value) for key, value in tree.items()}
        return type(tree)(recorded(value) for value in tree) if type(tree) in (tuple, list) else tree

    with torch.enable_grad():
        outputs = [t for t in _tensors(_call(model, recorded(batch))) if t.requires_grad]
        random = torch.Generator().manual_seed(0)
        cotangents = [torch.randn(t.shape, generator=random).to(t) for t in outputs]
        inputs = list(copies.values())
        learned = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(outputs, [*inputs, *learned], cotangents, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=False)]


def _error(before: list[Tensor], after: list[Tensor]) -> float:
    difference = sum((b.double() - a.double()).square().sum().item() for a, b in zip(before, after, strict=True))
    size = sum(a.double().square().sum().item() for a in before)
    return (difference / size) ** 0.5 if size else difference**0.5


def _seconds(run: Callable[[], Any], devices: list[int]) -> float:
    def now() -> float:
        for device in devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    run()
    return now() - start
