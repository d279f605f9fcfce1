"""Where the grids of a model's layers lie while the model computes a piece of a larger grid.

`lconv_fast.window` opens a `Run`; layers ask for their place in it, each at its level. The runs of a thread stand in a
stack of its own. torch.compile reads the numbers of a run from the sizes of tensors without elements: integers that it
finds on objects outside of its frame are constants to it, and each origin would be compiled anew.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.ops.geometry import CoefficientKind
from lconv_fast.windows.levels import Level, Table, table_of
from lconv_fast.windows.stack import THREAD, Call, Ints, Place, first_tensor, identity

NOT_ZERO_OR_ONE = 2  # added to coded numbers: torch.compile makes a graph of its own for sizes 0 and 1


# Layers whose last call in eager mode was in a window: their activations must be recomputed in it as well.
_seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# The models that windows were opened for, by their ids: torch.compile finds them again by a constant.
_models: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
KEY: Any = "lconv_fast.window"


class Run:
    """A window that is open."""

    def __init__(self, model: nn.Module, ndim: int, places: list[Place], members: frozenset[int]) -> None:
        self.model, self.ndim, self.members = model, ndim, members
        self.model_id = id(model)  # torch.compile would take the model itself for another input
        self.plain = places  # one for all samples, or one for each
        self.coded = None if torch.compiler.is_compiling() else [_coded(place) for place in places]
        self.table: Table | None = None
        self.patch: Ints | None = None  # the spatial shape of the input, once the model is called
        self.kind: tuple[Any, ...] = ()  # of the input: channels, dtype, device
        self.restored = False  # opened again, to recompute activations

    def places(self) -> list[Place]:
        if self.coded is None or not torch.compiler.is_dynamo_compiling():
            return self.plain
        return [
            (
                tuple([t.shape[1] - NOT_ZERO_OR_ONE for t in axes]),
                tuple([t.shape[2] - NOT_ZERO_OR_ONE for t in axes]),
            )
            for axes in self.coded
        ]

    def levels(self, layer: nn.Module) -> tuple[Level, ...]:
        if torch.compiler.is_dynamo_compiling():
            return constant_levels(self.model_id, id(layer), self.ndim, *self.kind)
        return (self.table or {}).get(identity(layer), ())

    def call(self, layer: Any, input: Tensor, call: Call) -> Tensor | None:
        if not torch.compiler.is_dynamo_compiling():
            if identity(layer) not in self.members:
                return None
            if self.patch is None:
                raise RuntimeError(
                    f"window: {type(layer).__name__} was called, and not the {type(self.model).__name__} "
                    "that the window was opened for"
                )
            if torch._C._current_graph_task_id() != -1 and not self.restored:
                raise RuntimeError(_RECOMPUTED)
            _seen.add(layer)
        levels = self.levels(layer)
        if not levels:
            if torch.compiler.is_dynamo_compiling():
                return None
            raise RuntimeError(
                f"window: {type(layer).__name__} was not called when the levels of its model were learned"
            )
        windows = [place_of(layer, levels, self.patch, place, input.shape) for place in self.places()]  # type: ignore[arg-type]
        if len(windows) == 1:
            return call(input, windows[0])
        if input.shape[0] != len(windows):
            raise ValueError(
                f"window: {levels[0].path}: expected a batch of {len(windows)} samples, as many as origins, "
                f"got {tuple(input.shape)}"
            )
        if windows[0] is None:  # the same at every place
            return call(input, None)
        return torch.cat([call(f, windows[k], k) for k, f in enumerate(input.split(1))])


_RECOMPUTED = (
    "window: an activation checkpoint recomputes a layer that was called in a window; "
    "give it the place: checkpoint(..., use_reentrant=False, context_fn=lconv_fast.window.contexts)"
)


def call_in_place(layer: Any, input: Tensor, call: Call) -> Tensor:
    """call(input, window) with the layer's place in the innermost window of its model, None without one."""
    stack = THREAD.stack
    for entry in stack[::-1]:
        output = entry.call(layer, input, call)
        if output is not None:
            return output
    if not torch.compiler.is_compiling() and _seen and layer in _seen:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(_RECOMPUTED)
        _seen.discard(layer)
    return call(input, None)


def place_of(
    layer: Any, levels: Sequence[Level], patch: Sequence[int], place: Place, shape: Sequence[int]
) -> Place | None:
    """The window of a layer whose input has that shape; None where the layer is the same at every place."""
    n = len(patch)
    found = tuple(shape[len(shape) - n :])
    fitting = [v for v in levels if all(_fits(v.size(a, patch[a]), found[a]) for a in range(n))]
    if not fitting:
        expected = " or ".join(str(tuple([v.size(a, patch[a]) for a in range(n)])) for v in levels)
        raise ValueError(
            f"window: {levels[0].path}: expected a grid of {expected} from a patch of {tuple(patch)}, got {found}"
        )
    origin, full = place
    results = {}
    for level in fitting:
        for a in range(n):
            _check_divisible(layer, level, a, patch, origin, full)
        first = tuple([level.up[a] * origin[a] // level.step[a] for a in range(n)])
        whole: Any = tuple([level.size(a, full[a]) for a in range(n)])
        results[level.up, level.step] = (first, whole)
    windows = list(results.values())
    if any(w != windows[0] for w in windows[1:]):
        raise ValueError(
            f"window: {levels[0].path} serves several levels, and a grid of {found} from a patch of {tuple(patch)} "
            "may be any of them: take a larger patch"
        )
    if layer.generators.stencil().kind == CoefficientKind.CONSTANT:
        return None
    grid = layer.generators.grid_shape()
    if grid is not None and grid != windows[0][1]:
        raise ValueError(
            f"full: {levels[0].path} has generators for a grid of {grid}, and gets one of {windows[0][1]} "
            f"from {tuple(full)}"
        )
    return windows[0]


def _fits(expected: int | None, found: int) -> bool:
    return expected is None or expected == found


def _check_divisible(layer: Any, level: Level, a: int, patch: Sequence[int], origin: Ints, full: Ints) -> None:
    step = level.step[a] * layer.stride[a] // math.gcd(level.step[a] * layer.stride[a], level.up[a])
    if origin[a] % step:
        raise ValueError(
            f"origin: {level.path} computes one point in {step} of axis {a}: expected an origin divisible by {step}, "
            f"got {origin}"
        )
    if origin[a] % level.every[a]:
        raise ValueError(
            f"origin: {level.coarsest or 'the model'} computes one point in {level.every[a]} of axis {a}: expected an "
            f"origin divisible by {level.every[a]}, got {origin}"
        )
    for name, size in (("full", full[a]), ("a patch", patch[a])):
        if level.size(a, size) is None:
            raise ValueError(
                f"window: {level.path}: expected {name} with an extent divisible by {level.whole[a]} on axis {a}, "
                f"since the model's levels do not fit other grids, got {size}"
            )


def _coded(place: Place) -> list[Tensor]:
    tensors = [
        torch.empty(0, first + NOT_ZERO_OR_ONE, size + NOT_ZERO_OR_ONE, device="meta")
        for first, size in zip(*place, strict=True)
    ]
    if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
        for t in tensors:
            torch._dynamo.maybe_mark_dynamic(t, (1, 2))
    return tensors


def note_input(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook of models: the size of the patch, for the innermost window of that model."""
    for entry in reversed(THREAD.stack):
        if isinstance(entry, Run) and _is_model(entry, model):
            _note(entry, args, kwargs)
            return


def _is_model(run: Run, called: nn.Module) -> bool:
    if torch.compiler.is_dynamo_compiling():
        return run.model_id == id(called)
    return identity(run.model) == identity(called)


def _note(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    n, places = run.ndim, run.places()
    x = first_tensor(run.model, n, args, kwargs)
    if len(places) > 1 and (x.dim() != n + 2 or x.shape[0] != len(places)):
        raise ValueError(f"origin: expected one, or one for each sample of {tuple(x.shape)}, got {len(places)}")
    patch = tuple(x.shape[-n:])
    for origin, full in places:
        for first, size, whole in zip(origin, patch, full, strict=True):
            if first + size > whole:
                raise ValueError(f"window: a patch of {patch} at {origin} does not fit into a grid of {full}")
    run.patch, run.kind = patch, (x.shape[-n - 1], x.dtype, x.device.type)
    if not torch.compiler.is_dynamo_compiling():
        run.table = table_of(run.model, n, args, kwargs)


def watch(model: nn.Module) -> None:
    """Has calls of the model note the size of their input, for good; it does nothing outside of windows."""
    if torch.compiler.is_dynamo_compiling():
        if KEY not in model._forward_pre_hooks:
            raise RuntimeError("window: expected the first window of a model to be opened outside of torch.compile")
        return
    _models[id(model)] = model
    if KEY in model._forward_pre_hooks:
        return
    # As register_forward_pre_hook does, under a key that stays: torch.compile looks at the keys.
    model._forward_pre_hooks_with_kwargs[KEY] = True
    model._forward_pre_hooks[KEY] = note_input


def constant_levels(
    model: int, layer: int, ndim: int, channels: int, dtype: torch.dtype, device: str
) -> tuple[Level, ...]:
    """The levels of a layer, while torch.compile traces; they do not depend on sizes."""
    watched = _models[model]
    like = torch.empty(1, channels, *[1] * ndim, dtype=dtype, device=device)
    by_id = {id(module): identity(module) for module in watched.modules()}
    return table_of(watched, ndim, (like,), {}).get(by_id.get(layer, 0), ())


# What torch.compiler.assume_constant_result does, without importing the compiler.
constant_levels._dynamo_marked_constant = True  # type: ignore[attr-defined]
