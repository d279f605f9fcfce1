"""Arrays on disk, in blocks: each tile's part stands in one piece, and is mapped into memory while it is read.

The files have no names: the system frees them when the process ends, however it ends. Blocks may overlap; a reader then
gets the sum, in the order of the blocks, whatever the order in which they were written.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lconv_fast.regions.intervals import Interval, Region, Segments, length, overlap
from lconv_fast.regions.rules import Value

_PAGE = mmap.ALLOCATIONGRANULARITY
# numpy has no bfloat16.
_CODES = {torch.bfloat16: torch.int16}


def region_shape(value: Value, region: Region) -> tuple[int, ...]:
    """Of the tensor that holds a region of a field."""
    return tuple(n if axis is None else length(region[axis]) for n, axis in zip(value.shape, value.dims, strict=True))


class Blocks:
    """Blocks of one field, one for each region."""

    def __init__(self, value: Value, regions: Sequence[Region], folder: Path) -> None:
        self.value, self.regions = value, list(regions)
        hulls = [[(s[0][0], s[-1][1]) if s else (0, 0) for s in region] for region in self.regions]
        self._hulls = np.array(hulls, dtype=np.int64)  # (blocks, axes, 2)
        self.shapes = [region_shape(value, region) for region in self.regions]
        self.code = _CODES.get(value.dtype, value.dtype)
        self.numpy = torch.empty(0, dtype=self.code).numpy().dtype
        sizes = [-(-prod(shape) * self.numpy.itemsize // _PAGE) * _PAGE for shape in self.shapes]
        self.offsets = [0, *itertools.accumulate(sizes)]
        self.bytes = self.offsets[-1]
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        if self.bytes:
            os.posix_fallocate(self._file.fileno(), 0, self.bytes)

    def close(self) -> None:
        self._file.close()

    def write(self, index: int, tensor: Tensor) -> int:
        """Fills a block; returns the bytes."""
        data = tensor.detach().to("cpu").contiguous().view(self.code).numpy()
        view = memoryview(data.data).cast("B") if data.size else memoryview(b"")
        place = self.offsets[index]
        while view:
            done = os.pwrite(self._file.fileno(), view[: 1 << 30], place)
            view, place = view[done:], place + done
        return data.nbytes

    def read(self, region: Region, add_to: Tensor | None = None) -> Tensor:
        """A region: what the blocks hold of it, or added to a tensor of its shape."""
        result = torch.zeros(region_shape(self.value, region), dtype=self.value.dtype) if add_to is None else add_to
        for index in self._near(region):
            there = self.regions[index]
            common = [_common(one, other) for one, other in zip(region, there, strict=True)]
            if not all(common):
                continue
            with mmap.mmap(
                self._file.fileno(),
                self.offsets[index + 1] - self.offsets[index],
                access=mmap.ACCESS_READ,
                offset=self.offsets[index],
            ) as mapped:
                block = np.frombuffer(mapped, self.numpy, prod(self.shapes[index]))
                part = _readonly(block).view(self.value.dtype).reshape(self.shapes[index])
                for places in itertools.product(*common):
                    target = self._cut(result, [(start, size) for start, _, size in places])
                    source = self._cut(part, [(start, size) for _, start, size in places])
                    target.add_(source) if add_to is not None else target.copy_(source)
                del block, part, source, target
        return result

    def _near(self, region: Region) -> list[int]:
        """The blocks whose hull meets a region's."""
        if not all(region):
            return []
        first = np.array([segments[0][0] for segments in region])
        stop = np.array([segments[-1][1] for segments in region])
        return np.flatnonzero(((self._hulls[..., 0] < stop) & (self._hulls[..., 1] > first)).all(1)).tolist()

    def _cut(self, tensor: Tensor, places: Sequence[Interval]) -> Tensor:
        for d, axis in enumerate(self.value.dims):
            if axis is not None:
                tensor = tensor.narrow(d, *places[axis])
        return tensor


def _readonly(array: np.ndarray) -> Tensor:
    array = array.view()
    # torch warns of arrays that may not be written to; nothing writes here.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _common(one: Segments, other: Segments) -> list[tuple[int, int, int]]:
    """Where two regions of an axis meet: (place in one, place in the other, points)."""
    result, before = [], 0
    for a in one:
        there = 0
        for b in other:
            both = overlap(a, b)
            if both:
                result.append((before + both[0] - a[0], there + both[0] - b[0], both[1] - both[0]))
            there += b[1] - b[0]
        before += a[1] - a[0]
    return result


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError unless the disk has room."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"spill: expected {gibibytes(needed)} of free space in {folder}, got {gibibytes(free)}; "
            "nothing was computed"
        )


def gibibytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
