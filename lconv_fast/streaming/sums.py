"""Sums whose bits do not depend on the order in which tiles are visited: what comes early waits for its turn."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lconv_fast.regions.intervals import Interval

T = TypeVar("T")
Part = tuple[dict[int, Interval], Tensor]  # intervals of some dimensions, and the numbers there


class InOrder(Generic[T]):
    """Hands items 0, 1, 2, .. to a function in that order, as soon as all before have come."""

    def __init__(self, take: Callable[[T], None]) -> None:
        self.take, self.next, self.waiting = take, 0, {}  # type: ignore[var-annotated]

    def add(self, index: int, item: T) -> None:
        self.waiting[index] = item
        while self.next in self.waiting:
            self.take(self.waiting.pop(self.next))
            self.next += 1


class Gradients:
    """Gradients of numbers that many tiles share, in float64."""

    def __init__(self) -> None:
        self.sums: dict[Hashable, Tensor] = {}

    def take(self, parts: list[tuple[Hashable, tuple[int, ...], Part]]) -> None:
        for key, shape, (narrow, gradient) in parts:
            if key not in self.sums:
                self.sums[key] = torch.zeros(shape, dtype=torch.float64, device=gradient.device)
            target = self.sums[key]
            for dim, (first, stop) in narrow.items():
                target = target.narrow(dim, first, stop - first)
            target.add_(gradient)

    def get(self, key: Hashable) -> Tensor | None:
        return self.sums.get(key)


def merged(merge: Callable[[Any, Any], Any]) -> tuple[InOrder[Any], list[Any]]:
    """A sum in order by `merge`, and the list whose one element it is once something has come."""
    state: list[Any] = []

    def take(part: Any) -> None:
        state[:] = [merge(state[0], part)] if state else [part]

    return InOrder(take), state
