"""Losses and transforms that act on each voxel: checked on a few points before the work starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Tensor]
# Losses whose mean is weighted: which weight each voxel has, given the module and its target.
WEIGHTED: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {}


def _class_weights(loss: Any, target: Tensor) -> Tensor:
    if target.dtype.is_floating_point:  # probabilities of classes: every voxel counts as one
        return torch.ones_like(target.select(1, 0))
    keep = target != loss.ignore_index
    weight = (
        torch.ones_like(target, dtype=torch.float64) if loss.weight is None else loss.weight.double()[target * keep]
    )
    return weight * keep


WEIGHTED[nn.CrossEntropyLoss] = _class_weights
WEIGHTED[nn.NLLLoss] = _class_weights


class Loss:
    """sum or mean over all voxels of loss(prediction, target)."""

    def __init__(self, loss: Any, reduction: str | None) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a function of prediction and target, got {type(loss).__name__}")
        own = getattr(loss, "reduction", None)
        if isinstance(loss, functools.partial) and "reduction" in loss.keywords:
            own = loss.keywords["reduction"]
        self.given, self.module = loss, loss if isinstance(loss, nn.Module) else None
        if reduction is None:
            reduction = own if own in ("mean", "sum") else "mean"
        if not isinstance(reduction, str) or reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number for each voxel, or for each number of the prediction."""
        with _per_voxel(self.given) as function:
            return function(prediction, target)

    @property
    def weights(self) -> Callable[[Any, Tensor], Tensor] | None:
        """For the mean of losses that weight the voxels."""
        return WEIGHTED.get(type(self.module)) if self.module is not None and self.reduction == "mean" else None


@contextmanager
def _per_voxel(loss: Any) -> Iterator[Function]:
    """A loss that returns what it would reduce, where it says so itself."""
    if isinstance(loss, functools.partial) and loss.keywords.get("reduction") in ("mean", "sum"):
        yield functools.partial(loss.func, *loss.args, **{**loss.keywords, "reduction": "none"})
        return
    if getattr(loss, "reduction", None) not in ("mean", "sum"):
        yield loss
        return
    before = loss.reduction
    loss.reduction = "none"
    try:
        yield loss
    finally:
        loss.reduction = before


def probe_loss(loss: Loss, prediction: Tensor, target: Tensor, ndim: int) -> tuple[int, ...]:
    """The leading dimensions of the loss's result, of a small prediction and target.

    Raises ValueError where the result is not one number for each voxel, or depends on other voxels.
    """
    result = _call("loss", loss, prediction, target)
    leading = local_result("loss", result, prediction, ndim, "; pass a loss with reduction='none'")
    _check_alone("loss", lambda p, t: loss(p, t), (prediction, target), result, ndim)
    return leading


def probe_transform(transform: Function, prediction: Tensor, ndim: int) -> Tensor:
    """The transform of a small prediction. Raises ValueError where it is not local."""
    result = _call("transform", transform, prediction)
    local_result("transform", result, prediction, ndim, "; for the largest class, lambda p: p.argmax(1)")
    _check_alone("transform", transform, (prediction,), result, ndim)
    return result


def _call(name: str, function: Function, *arguments: Tensor) -> Tensor:
    shapes = " and ".join(f"{tuple(a.shape)} {str(a.dtype).removeprefix('torch.')}" for a in arguments)
    try:
        with torch.no_grad():
            result = function(*arguments)
    except Exception as error:
        raise type(error)(f"{name}: on a few points, of shapes {shapes}: {error}") from error
    if not isinstance(result, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(result).__name__}")
    return result


def local_result(name: str, result: Tensor, prediction: Tensor, ndim: int, hint: str) -> tuple[int, ...]:
    space = tuple(prediction.shape[-ndim:])
    if result.dim() < ndim or tuple(result.shape[-ndim:]) != space:
        raise ValueError(
            f"{name}: expected a result for each voxel, (..., {', '.join(map(str, space))}) of a prediction "
            f"{tuple(prediction.shape)}, got {tuple(result.shape)}{hint}"
        )
    return tuple(result.shape[:-ndim])


def _check_alone(name: str, function: Function, arguments: tuple[Tensor, ...], result: Tensor, ndim: int) -> None:
    """The first half of every axis alone gives the first half of the result; so does one point."""
    for part in (lambda n: max(1, n // 2), lambda n: 1):
        cut: Any = (..., *(slice(0, part(n)) for n in result.shape[-ndim:]))
        with torch.no_grad():
            alone = function(*(a[cut] for a in arguments))
        expected = result[cut]
        same = alone.shape == expected.shape and (
            torch.allclose(alone.double(), expected.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
        )
        if not same:
            raise ValueError(f"{name}: expected a local one, whose result at a voxel depends on that voxel alone")


def example(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Predictions between 0 and 1, which every loss can take."""
    count = torch.Size(shape).numel()
    return (torch.rand(count, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05).reshape(shape).to(dtype)


def known_transform(transform: Any) -> Function | None:
    """torch.argmax and "argmax" mean: over the channels."""
    if transform is None:
        return None
    if not callable(transform) and not isinstance(transform, str):
        raise TypeError(f"transform: expected a function of the prediction or 'argmax', got {transform!r}")
    if transform in (torch.argmax, "argmax"):
        return lambda prediction: prediction.argmax(1)
    if transform in (torch.softmax, F.softmax, "softmax"):
        return lambda prediction: prediction.softmax(1)
    if not callable(transform):
        raise TypeError(f"transform: expected a function of the prediction or 'argmax', got {transform!r}")
    return transform
