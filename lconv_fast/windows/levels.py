"""The levels of a model: how the size of the grid of each of its layers follows from the size of its input.

The model runs on tensors without memory, of a size that common strides divide and of the sizes next to it; L-convs only
say what they get. So pooling, interpolation, strided and transposed convolutions are followed whatever code they stand
in, by the sizes that they make. Where no L-conv comes after them, the sizes of all results tell what an origin has to
be divisible by.
"""

from __future__ import annotations

import copy
import math
import weakref
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lconv_fast.ops.geometry import output_size
from lconv_fast.windows.stack import THREAD, Call, Ints, first_tensor, identity

BASE = 2**7 * 3**2 * 5 * 7  # three such extents, times channels and bytes, stay within 64 bits
MOST_STEP = 64


class Level(NamedTuple):
    """How the size of a layer's grid follows from that of the model's input: up * (size + extra) // step, per axis."""

    path: str
    up: Ints
    step: Ints
    extra: tuple[int | None, ...]  # from 0 to step - 1; None: known for multiples of `whole` alone
    whole: Ints
    every: Ints  # the points of the model's input for one of the coarsest grid that it makes, per axis
    coarsest: str  # the module that makes it

    def size(self, axis: int, size: int) -> int | None:
        extra, step = self.extra[axis], self.step[axis]
        if extra is None:
            return self.up[axis] * size // step if size % self.whole[axis] == 0 else None
        return self.up[axis] * ((size + extra) // step)


Table = dict[int, tuple[Level, ...]]  # of each layer, by its `identity`; several where it serves several levels

_tables: weakref.WeakKeyDictionary[nn.Module, dict[Any, Table]] = weakref.WeakKeyDictionary()


class _Recording(TorchDispatchMode):
    """Notes the spatial shape that each L-conv gets, and computes nothing; and those of all results."""

    def __init__(self, ndim: int, dims: int, paths: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ndim, self.dims, self.paths = ndim, dims, paths  # paths: of the modules that are being run
        self.shapes: dict[int, list[tuple[int, ...]]] = {}
        self.grids: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, Tensor) and one.dim() == self.dims:
                self.grids.append((self.paths[-1] if self.paths else "", tuple(one.shape[-self.ndim :])))
        return result

    def call(self, layer: Any, input: Tensor, call: Call) -> Tensor:
        spatial = tuple(input.shape[-self.ndim :])
        self.shapes.setdefault(identity(layer), []).append(spatial)
        leading = (*input.shape[: -self.ndim - 1], layer.weight.shape[1])
        return input.new_empty(*leading, *output_size(spatial, layer.stride))


def table_of(model: nn.Module, ndim: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Table:
    """The levels of all L-convs that `model` calls, learned once for each model and kind of input."""
    x = first_tensor(model, ndim, args, kwargs)
    ids = tuple(map(identity, model.modules()))
    key = (ndim, x.dim(), int(x.shape[-ndim - 1]), len(args), tuple(kwargs), model.training, ids)
    tables = _tables.setdefault(model, {})
    if key not in tables:
        tables[key] = _learn(model, ndim, args, kwargs)
    return tables[key]


def _learn(model: nn.Module, ndim: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Table:
    # Out of the modes of torch.export, which would take these runs for the model's.
    with _disable_current_modes(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        skeleton = _without_memory(model)
        names = {identity(layer): path or type(layer).__name__ for path, layer in skeleton.named_modules()}
        run = partial(_sizes, skeleton, ndim, args=args, kwargs=kwargs)
        shapes, grids = run(BASE)
        every, coarsest = _coarsest(grids, run(2 * BASE, may_fail=True)[1], ndim)
        ratios = {size: _ratio(size) for found in shapes.values() for spatial in found for size in spatial}
        for layer, found in shapes.items():
            for spatial in found:
                if any(ratios[size] is None for size in spatial):
                    raise ValueError(
                        f"window: {names[layer]} gets a grid of {spatial} from one of {(BASE,) * ndim}: expected grids "
                        f"coarser or finer than the input's by integer factors up to {MOST_STEP}, with no border cut "
                        "off (convolutions whose padding keeps it)"
                    )
        rules = {
            (layer, call, axis): _Rule(*ratios[size])  # type: ignore[misc]
            for layer, found in shapes.items()
            for call, spatial in enumerate(found)
            for axis, size in enumerate(spatial)
        }
        whole = math.lcm(*(rule.step for rule in rules.values()))
        # The first three settle grids that are rounded up or down at every level.
        for more in dict.fromkeys([whole, 1, whole - 1, *range(2, whole)]):
            if all(rule.settled for rule in rules.values()):
                break
            probe, _ = run(BASE + more, may_fail=True)
            for (layer, call, axis), rule in rules.items():
                if call < len(probe.get(layer, ())):
                    rule.learn(BASE + more, probe[layer][call][axis])

    table: Table = {}
    for ours, layer in zip(model.modules(), map(identity, skeleton.modules()), strict=True):
        levels = []
        for call in range(len(shapes.get(layer, ()))):
            axes = [rules[layer, call, axis] for axis in range(ndim)]
            ups, steps, extras = zip(*((rule.up, rule.step, rule.extra) for rule in axes), strict=True)
            levels.append(Level(names[layer], ups, steps, extras, (whole,) * ndim, every, coarsest))
        if levels:
            table[identity(ours)] = tuple(dict.fromkeys(levels))
    return table


def _coarsest(
    grids: list[tuple[str, tuple[int, ...]]], doubled: list[tuple[str, tuple[int, ...]]], ndim: int
) -> tuple[Ints, str]:
    """Points of the input for one of the coarsest grid, from the results on a grid and on one twice as large; borders
    that are cut off do not matter."""
    every, coarsest = [1] * ndim, ""
    for (path, small), (same, large) in zip(grids, doubled, strict=False):
        if path != same:
            break
        rates = [Fraction(two - one, BASE) for one, two in zip(small, large, strict=True)]
        if all(rate > 0 and rate.denominator <= MOST_STEP for rate in rates):
            joint = [math.lcm(e, rate.denominator) for e, rate in zip(every, rates, strict=True)]
            if joint != every or (path and not coarsest and [r.denominator for r in rates] == every):
                every, coarsest = joint, path
    return tuple(every), coarsest


class _Rule:
    """The numbers of `Level` along one axis, as far as they are known."""

    def __init__(self, up: int, step: int) -> None:
        self.up, self.step, self.probes = up, step, 0
        self.candidates = list(range(step))

    def learn(self, size: int, found: int) -> None:
        self.candidates = [c for c in self.candidates if self.up * ((size + c) // self.step) == found]
        self.probes += 1

    @property
    def settled(self) -> bool:
        return self.probes > 1 and len(self.candidates) < 2

    @property
    def extra(self) -> int | None:
        return self.candidates[0] if self.settled and self.candidates else None


def _ratio(size: int) -> tuple[int, int] | None:
    """(up, step) of a grid of that many points beside one of BASE."""
    if size and BASE % size == 0 and BASE // size <= MOST_STEP:
        return 1, BASE // size
    return (size // BASE, 1) if size and size % BASE == 0 and size // BASE <= MOST_STEP else None


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy whose tensors are fake: what it does leaves the model as it is."""

    def fake(t: Tensor) -> Tensor:
        empty = torch.empty(t.shape, dtype=t.dtype, device=t.device)
        return nn.Parameter(empty, requires_grad=False) if isinstance(t, nn.Parameter) else empty

    return copy.deepcopy(model, {id(t): fake(t) for t in (*model.parameters(), *model.buffers())})


def _sizes(
    model: nn.Module, ndim: int, size: int, args: tuple[Any, ...], kwargs: dict[str, Any], may_fail: bool = False
) -> tuple[dict[int, list[tuple[int, ...]]], list[tuple[str, tuple[int, ...]]]]:
    """The spatial shapes that each L-conv gets, in the order of its calls, from an input of `size` points an axis; and
    those of all results, with the modules that make them."""
    x = first_tensor(model, ndim, args, kwargs)
    patch = x.shape[-ndim:]

    def enlarged(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > ndim and value.shape[-ndim:] == patch:
            return torch.empty(*value.shape[:-ndim], *[size] * ndim, dtype=value.dtype, device=value.device)
        return value

    paths: list[str] = []
    recording, stack = _Recording(ndim, x.dim(), paths), THREAD.stack
    hooks = [hook for path, module in model.named_modules() for hook in _followed(module, path, paths)]
    THREAD.stack = (recording,)
    try:
        with recording:
            model(*map(enlarged, args), **{name: enlarged(value) for name, value in kwargs.items()})
    except Exception as error:
        # Grids that the model does not take; what it did before says how far its levels reach.
        if not may_fail:
            raise ValueError(
                f"window: {type(model).__name__} could not be followed on a grid of {(size,) * ndim}, which tells the "
                f"level of each layer: {error}"
            ) from error
    finally:
        THREAD.stack = stack
        for hook in hooks:
            hook.remove()
    return recording.shapes, recording.grids


def _followed(module: nn.Module, path: str, paths: list[str]) -> tuple[Any, Any]:
    """Hooks that keep the path of the module that is being run at the end of `paths`."""
    return (
        module.register_forward_pre_hook(lambda *_: paths.append(path)),
        module.register_forward_hook(lambda *_: paths.pop() and None),
    )
