"""Models on pieces of a larger grid, at their true coordinates."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import _AttrProxy

from lconv_fast.checks import is_integer
from lconv_fast.generators import Generators
from lconv_fast.invariants import DifferentialInvariants
from lconv_fast.modules import LConv1d, LConv2d, LConv3d
from lconv_fast.ops.geometry import MOST_POINTS, CoefficientKind
from lconv_fast.recursive import DerivativeLConv
from lconv_fast.windows.place import Run, watch
from lconv_fast.windows.stack import THREAD, Place, identity

LAYERS = (LConv1d, LConv2d, LConv3d, DerivativeLConv)


class window:
    """Makes every L-conv of a model compute at a patch's true coordinates in a larger grid, while it is open.

        with lc.window(model, origin=(z, y, x), full=(D, H, W)):
            y = model(patch)

    A layer whose grid is coarser than the patch by s points an axis (strided L-convs and convolutions, pooling) lies at
    origin / s in a grid of the size that the model makes of `full`; one that is finer by u (transposed convolutions,
    interpolation) at u * origin in u * full. Affine generators take their coordinates,
    x = (index + origin - (full - 1) / 2) / scale, and sampled ones their part, from there; gradients of learned fields
    lie in that part. How sizes follow each other is learned once, by running the model on tensors without memory.

    **Borders.** The output has the size that the model gives a patch. Where the patch's border is that of the full
    grid, padding_mode applies as there. Elsewhere the padding stands for points that the patch does not hold: as deep
    as the model sees (its halo), the output is not that of the full grid, and has to be cut off; all other points are
    those of the full grid to rounding. (With padding_mode 'circular' the border of the full grid has its neighbours on
    the other side: there, too, unless the patch spans the axis.) Layers that are not local (norms over points, global
    pooling, attention) see the patch alone, as ever.

    Args:
        model: a module with LConv1d, LConv2d, LConv3d or DerivativeLConv layers on `len(full)` axes, or what
            torch.compile or DistributedDataParallel made of one. It gets a forward pre-hook, which does nothing
            outside of windows.
        origin: the patch's first point in the full grid, n integers, divisible by the strides of the model's levels;
            or one such row for each sample of the batch: a list of tuples, or an integer tensor or array (N, n).
        full: extents of the full grid; or one row for each sample.

    Windows may be nested (the innermost of a model counts), entered again, and opened by several threads at once on one
    model. torch.compile makes one graph for all origins; torch.export keeps the origin it was traced with, unless the
    window is opened in what is exported, with integers that are inputs. Where an activation is recomputed in the
    backward pass, pass ``context_fn=lc.window.contexts`` to torch.utils.checkpoint (lconv_fast.nets do).

    Raises:
        TypeError, ValueError: origins that do not fit or are not divisible, in the name of the module; generators that
            have no place in a larger grid (dense, low rank, spectral, graphs), when the window is made.
    """

    def __init__(self, model: nn.Module, origin: Any, full: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a module, got {type(model).__name__}")
        self.model = _unwrapped(model)
        self.places = _places(origin, full)
        self.ndim = len(self.places[0][1])
        self._members = _check_model(self.model, self.ndim)

    def __enter__(self) -> window:
        watch(self.model)
        THREAD.stack = (*THREAD.stack, Run(self.model, self.ndim, self.places, self._members))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        THREAD.stack = THREAD.stack[:-1]

    @staticmethod
    def contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        """The context_fn of torch.utils.checkpoint (use_reentrant=False): recomputes in the windows of the forward
        pass, in whatever thread that is."""
        stack: tuple[Any, ...] = tuple(copy.copy(entry) for entry in THREAD.stack)
        for entry in stack:
            entry.restored = True
        return contextlib.nullcontext(), _reopened(stack)


@contextlib.contextmanager
def _reopened(stack: tuple[Any, ...]) -> Iterator[None]:
    before = THREAD.stack
    THREAD.stack = stack
    try:
        yield
    finally:
        THREAD.stack = before


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module under torch.compile, DistributedDataParallel and the proxies of torch.export."""
    inner: Any = model
    while True:
        if "_orig_mod" in inner._modules:
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif isinstance(inner, _AttrProxy):
            inner = inner.get_base()  # type: ignore[attr-defined]
        else:
            break
    if isinstance(inner, nn.DataParallel):
        raise TypeError(
            "model: expected a module that runs in this thread, got DataParallel; use DistributedDataParallel"
        )
    return inner


def _check_model(model: nn.Module, ndim: int) -> frozenset[int]:
    """The identities of the model's L-convs, each of which has a place in a larger grid."""
    members = set()
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if isinstance(module, LAYERS):
            generators = module.generators
            if generators.stencil() is None:
                raise ValueError(
                    f"model: {name}: {type(generators).__name__} without taps on a grid have no place in a larger one"
                )
            if generators.ndim != ndim:
                raise ValueError(f"full: expected {generators.ndim} extents, as {name} has axes, got {ndim}")
            members.add(identity(module))
        elif isinstance(module, DifferentialInvariants) and module.group in ("rotation", "scaling"):
            raise ValueError(f"model: {name}: invariants under {module.group} know no window")
        elif not isinstance(module, Generators):
            for child in module.children():
                if isinstance(child, Generators) and _depends_on_place(child):
                    raise ValueError(f"model: {name}: {type(module).__name__} knows no window")
    return frozenset(members)


def _depends_on_place(generators: Generators) -> bool:
    stencil = generators.stencil()
    return stencil is None or stencil.kind != CoefficientKind.CONSTANT


def _places(origin: Any, full: Any) -> list[Place]:
    """One place for all samples, or one for each."""
    origins, extents = _rows("origin", origin), _rows("full", full)
    if len(origins) != len(extents):
        if 1 not in (len(origins), len(extents)):
            raise ValueError(f"full: expected one grid, or {len(origins)} as origin has rows, got {len(extents)}")
        count = max(len(origins), len(extents))
        origins, extents = origins * (count // len(origins)), extents * (count // len(extents))
    for first, sizes in zip(origins, extents, strict=True):
        if len(sizes) not in (1, 2, 3) or len(sizes) != len(extents[0]):
            raise ValueError(f"full: expected 1, 2 or 3 extents, in all rows alike, got {full!r}")
        if len(first) != len(sizes):
            raise ValueError(f"origin: expected {len(sizes)} integers, as many as full has, got {first}")
        if min(first) < 0:
            raise ValueError(f"origin: expected integers from 0 on, got {first}")
        if min(sizes) < 1 or max(sizes) > MOST_POINTS:
            raise ValueError(f"full: expected extents from 1 to 2^48, got {sizes}")
    return list(zip(origins, extents, strict=True))


def _rows(name: str, value: Any) -> list[Any]:
    def expected() -> str:
        return (
            f"{name}: expected n integers, or such a row for each sample (a list, or an (N, n) tensor), got {value!r}"
        )

    if isinstance(value, Tensor | np.ndarray):
        if value.ndim not in (1, 2) or 0 in value.shape:
            raise ValueError(expected())
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TypeError(expected())
    rows = [value] if all(map(is_integer, value)) else value
    for row in rows:
        if not isinstance(row, Sequence) or isinstance(row, str) or not row or not all(map(is_integer, row)):
            raise TypeError(expected())
    return [tuple([v if isinstance(v, torch.SymInt) else int(v) for v in row]) for row in rows]
