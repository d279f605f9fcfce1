"""The heap while tiles come and go: what one leaves free is kept for the next, and no more than one needs."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "free", "top")
    ]


def _function(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


_trim, _heap, _set = _function("malloc_trim"), _function("mallinfo2"), _function("mallopt")
if _heap is not None:
    _heap.restype = _Heap  # type: ignore[attr-defined]

# mallopt's numbers (malloc.h). While tiles come and go: no array has a mapping of its own, and the heap's end stays.
# Afterwards: the limits that glibc itself reaches in a process that has freed an array of 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DURING = ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0))
_AFTER = ((_TRIM_THRESHOLD, 2**26), (_MMAP_THRESHOLD, 2**25), (_MMAP_MAX, 65536))
_lock, _users = threading.Lock(), 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """glibc hands large arrays back when they are freed, and gets them anew: page by page, each filled with zeros by
    the system. That took a quarter to two fifths of the time of a step. Here the heap keeps them until `give_back`."""
    if _set is None or _heap is None or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    _count(1, _DURING)
    try:
        yield
    finally:
        _count(-1, _AFTER)
        give_back(0)


def _count(step: int, options: tuple[tuple[int, int], ...]) -> None:
    """Runs may overlap: the first sets the options, the last sets them back."""
    global _users
    with _lock:
        if _users + min(step, 0) == 0:
            for option in options:
                _set(*option)  # type: ignore[misc]
        _users += step


def give_back(kept: int) -> None:
    """Hands free memory back to the system where the heap holds more than `kept` bytes of it: tiles of unequal size
    leave gaps, and it would grow."""
    if _trim is not None and (_heap is None or _heap().free > kept):
        _trim(0)
