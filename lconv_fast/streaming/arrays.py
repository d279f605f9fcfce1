"""Volumes and results as users have them: tensors, numpy arrays and memmaps, zarr arrays, or anything with shape, dtype
and slices."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconv_fast.checks import check_strided
from lconv_fast.regions.intervals import Interval


def dtype_of(name: str, array: Any) -> torch.dtype:
    """As torch names it."""
    if isinstance(array, Tensor):
        check_strided(name, array)
        if array.is_meta:
            raise TypeError(f"{name}: expected a tensor with numbers, got one on the meta device")
        return array.dtype
    try:
        # Big-endian numbers, as in .nii files, are turned round when they are read.
        return (
            torch.empty(0).numpy().dtype
            and torch.from_numpy(np.empty(0, np.dtype(array.dtype).newbyteorder("="))).dtype
        )
    except (TypeError, AttributeError, ValueError):
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name}: expected a tensor, a numpy or a zarr array of numbers, got {kind}") from None


class Reader:
    """A volume, with as many leading dimensions of size one as the model expects; read by slices."""

    def __init__(self, name: str, array: Any, dims: int) -> None:
        self.array, self.dtype = array, dtype_of(name, array)
        self.given = tuple(int(n) for n in array.shape)
        self.missing = dims - len(self.given)
        self.shape = (1,) * self.missing + self.given

    def read(self, intervals: Sequence[Interval]) -> Tensor:
        """One box, (first, stop) for each dimension; a copy."""
        index = tuple(slice(first, stop) for first, stop in intervals[self.missing :])
        if isinstance(self.array, Tensor):
            part = self.array[index].detach().clone()
        else:
            data = np.asarray(self.array[index])
            part = torch.from_numpy(np.array(data, dtype=data.dtype.newbyteorder("="), order="C"))
            forget(self.array)
        return part.reshape([stop - first for first, stop in intervals])


class Writer:
    """An array that results are written to, by slices."""

    def __init__(self, array: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
        shape = tuple(shape)
        squeezed = [shape]
        while len(squeezed[-1]) > 1 and squeezed[-1][0] == 1:
            squeezed.append(squeezed[-1][1:])
        self.array = array
        given = tuple(int(n) for n in getattr(array, "shape", ()))
        kind = dtype_of("out", array)
        if given not in squeezed:
            raise ValueError(f"out: expected shape {shape}, got {given}")
        if not torch.can_cast(dtype, kind):
            raise TypeError(f"out: expected {dtype}, or a type that holds it, got {kind}")
        if read_only(array):
            raise ValueError("out: expected an array that can be written to, got a read-only one")
        self.cut = len(shape) - len(given)

    def write(self, intervals: Sequence[Interval], value: Tensor) -> None:
        index = tuple(slice(first, stop) for first, stop in intervals[self.cut :])
        value = value.detach().reshape(value.shape[self.cut :]).to("cpu")
        if isinstance(self.array, Tensor):
            self.array[index] = value.to(self.array.device)
        else:
            self.array[index] = value.numpy()
            forget(self.array)


def read_only(array: Any) -> bool:
    if isinstance(array, Tensor):
        return False
    if isinstance(array, np.ndarray):
        return not array.flags.writeable
    if getattr(array, "read_only", False):
        return True
    return not hasattr(array, "__setitem__")


def forget(array: Any) -> None:
    """Pages of a mapped file need not stay in this process once they are copied; shared ones lose nothing."""
    base = array
    while isinstance(base, np.ndarray):
        mapped = getattr(base, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and getattr(base, "mode", "c") != "c":
            mapped.madvise(mmap.MADV_DONTNEED)
            return
        base = base.base
