"""Reading ahead of the computation, and writing behind it; on a GPU by pinned memory and a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)


class Transfer:
    """Two threads, one that reads the next tile and one that writes the last; copy engines work beside the kernels."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: list[Future[Any]] = []

    def ahead(
        self, order: Iterable[int], load: Callable[[int], dict[K, Tensor]]
    ) -> Iterator[tuple[int, dict[K, Tensor]]]:
        """(index, load(index) on the device) for each index, the next one being read meanwhile."""

        def read(index: int) -> tuple[dict[K, Tensor], Any]:
            loaded = load(index)
            if self.stream is None:
                return loaded, None
            with torch.cuda.stream(self.stream):
                moved = {key: t.pin_memory().to(self.device, non_blocking=True) for key, t in loaded.items()}
                return moved, self.stream.record_event()

        indices = list(order)
        future = self._reader.submit(read, indices[0]) if indices else None
        for place, index in enumerate(indices):
            loaded, event = future.result()  # type: ignore[union-attr]
            following = indices[place + 1 : place + 2]
            future = self._reader.submit(read, following[0]) if following else None
            if event is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(event)
                for t in loaded.values():
                    t.record_stream(current)
            yield index, loaded
            del loaded

    def write(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls it behind the computation, one tile behind at most; its errors come with the next call, or `wait`."""
        while len(self._writing) > 1:
            self._writing.pop(0).result()
        self._writing.append(self._writer.submit(function, *arguments))

    def wait(self) -> None:
        while self._writing:
            self._writing.pop(0).result()

    def close(self) -> None:
        """What has been computed is written, whatever has happened: an interrupted prediction goes on from there."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
