"""Global memory: the tensors of a launch and nothing else, with who read and wrote each element."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tools.emulate.faults import Fault
from tools.emulate.numbers import BITS, Array

_SEVERAL = -1
_ALIGNED = 16


@dataclass
class Buffer:
    """A stretch of memory that tensors cover, in units of their smallest element."""

    start: int
    end: int
    unit: int
    covered: Array  # (units,): whether an element of a tensor is there, or a gap between elements
    reader: Array  # (units,): 1 + the program that read, -1 for several, 0 for none
    writer: Array


class Memory:
    """What the tensors of one launch make accessible.

    Checked on every access: alignment to its size; that all bytes belong to elements of tensors; that no program reads
    or writes what another one writes in the same launch, since programs run in any order.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        spans = []
        for t in tensors:
            if t.numel():
                size = t.element_size()
                reach = [(n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)]
                spans.append((t.data_ptr(), t.data_ptr() + (sum(reach) + 1) * size, size, t))
        spans.sort(key=lambda s: s[:2])
        groups: list[list] = []
        for span in spans:
            if groups and span[0] < max(s[1] for s in groups[-1]):
                groups[-1].append(span)
            else:
                groups.append([span])
        self.buffers = [_buffer(group) for group in groups]
        self._starts = np.array([b.start for b in self.buffers], np.uint64)

    def _locate(self, address: Array, size: int) -> list[tuple[Array, Buffer, Array]]:
        """(which accesses, their buffer, their offsets)."""
        wrong = address % np.uint64(size) != 0
        if wrong.any():
            raise Fault(f"access of {size} bytes at the misaligned address {int(address[wrong][0]):#x}")
        place = np.searchsorted(self._starts, address, side="right") - 1
        found = []
        for index in np.unique(place):
            which = np.nonzero(place == index)[0]
            first = int(address[which[0]])
            if index < 0:
                raise Fault(f"access of {size} bytes at {first:#x}, in no tensor of the launch")
            buffer = self.buffers[index]
            offset = (address[which] - np.uint64(buffer.start)).astype(np.int64)
            over = offset + size > buffer.end - buffer.start
            if over.any():
                beyond = int(offset[over][0]) + size - (buffer.end - buffer.start)
                raise Fault(f"access of {size} bytes that ends {beyond} bytes after a tensor of the launch")
            found.append((which, buffer, offset))
        return found

    def _units(self, buffer: Buffer, offset: Array, size: int) -> Array:
        count = max(1, size // buffer.unit)
        units = (offset // buffer.unit)[:, None] + np.arange(count)
        if not buffer.covered[units].all():
            raise Fault(f"access of {size} bytes between the elements of a tensor")
        return units

    def load(self, address: Array, size: int, item: int, program: Array) -> Array:
        """Items of `item` bytes, (accesses, size / item)."""
        result = np.empty((len(address), size // item), BITS[item])
        for which, buffer, offset in self._locate(address, size):
            units = self._units(buffer, offset, size)
            mine = (program[which] + 1)[:, None]
            writer = buffer.writer[units]
            if ((writer != 0) & (writer != mine)).any():
                raise Fault("reads what another program writes in the same launch")
            reader = buffer.reader[units]
            buffer.reader[units] = np.where((reader == 0) | (reader == mine), mine, _SEVERAL)
            others = buffer.reader[units] != mine  # several programs in this very access
            if others.any():
                buffer.reader[units[others]] = _SEVERAL
            result[which] = _view(buffer, item)[_items(buffer, offset, size, item)]
        return result

    def store(self, address: Array, values: Array, program: Array) -> None:
        """values: (accesses, items)."""
        item = values.dtype.itemsize
        size = item * values.shape[1]
        for which, buffer, offset in self._locate(address, size):
            units = self._units(buffer, offset, size)
            mine = (program[which] + 1)[:, None]
            before, reader = buffer.writer[units], buffer.reader[units]
            buffer.writer[units] = mine
            if ((before != 0) & (before != mine)).any() or (buffer.writer[units] != mine).any():
                raise Fault("writes what another program writes in the same launch")
            if ((reader != 0) & (reader != mine)).any():
                raise Fault("writes what another program reads in the same launch")
            _view(buffer, item)[_items(buffer, offset, size, item)] = values[which]


def _buffer(group: list) -> Buffer:
    start, end = group[0][0], max(s[1] for s in group)
    unit = min(s[2] for s in group)
    count = (end - start) // unit
    covered = np.zeros(count, bool)
    for address, _, size, t in group:
        strides = [step * size // unit for step in t.stride()]
        each = np.lib.stride_tricks.as_strided(
            covered[(address - start) // unit :], (*t.shape, size // unit), (*strides, 1)
        )
        each[...] = True
    return Buffer(start, end, unit, covered, np.zeros(count, np.int32), np.zeros(count, np.int32))


def _view(buffer: Buffer, item: int) -> Array:
    """The memory itself, from an aligned address on."""
    first = buffer.start - buffer.start % _ALIGNED
    count = -(-(buffer.end - first) // item)
    raw = (ctypes.c_uint8 * (count * item)).from_address(first)
    return np.frombuffer(memoryview(raw).cast("B"), BITS[item])


def _items(buffer: Buffer, offset: Array, size: int, item: int) -> Array:
    return ((offset + buffer.start % _ALIGNED) // item)[:, None] + np.arange(size // item)
