"""Shared memory of programs that run side by side: poisoned at first, with a detector of accesses out of order.

Between two barriers (an epoch) no warp may read what another one writes, nor write what another one reads or writes.
Reads by the tensor core (wgmma) are asynchronous: they need a proxy fence by the writer after the write, and last until
their group has been waited for. The same holds for copies (cp.async) that are under way.
"""

from __future__ import annotations

import numpy as np

from tools.emulate.faults import Fault
from tools.emulate.numbers import BITS, Array

SHARED_BASE = 1024  # where a program's own shared memory begins on a card
_UNIT = 2  # bytes: nothing smaller is kept there
_WARPS = 64  # more than a program has; the last number stands for several
_SEVERAL = _WARPS - 1
_TWO_WRITERS = "race: two warps write different values to the same shared memory, with no barrier between"


class Shared:
    def __init__(self, programs: int, warps: int, size: int) -> None:
        self.size, self.warps = size, warps
        self.stride = -(-(SHARED_BASE + size) // 1024) * 1024  # of a program, here
        total = programs * self.stride
        self.bytes = np.full(total, 0xFF, np.uint8)
        self.views = {item: self.bytes.view(BITS[item]) for item in (1, 2, 4, 8)}
        units = total // _UNIT
        # Epoch and warp of the last access, epoch * _WARPS + warp; 0: none.
        self.written, self.read = np.zeros(units, np.int32), np.zeros(units, np.int32)
        self.fences = np.zeros(programs * warps, np.int32)  # of each warp, so far
        self.fence_at_write = np.zeros(units, np.int32)
        # What nobody has waited for: reads by the tensor core, of each warpgroup, and copies to here, of each program.
        self.in_use, self.arriving = Pending(units), Pending(units)
        self.epoch = np.ones(programs, np.int32)

    def place(self, address: Array, program: Array, size: int) -> Array:
        """Offsets into `bytes`."""
        offset = address.astype(np.int64)
        if (offset % size).any():
            raise Fault(f"access of {size} bytes at the misaligned shared address {int(offset[offset % size != 0][0])}")
        self.check_inside(offset, size)
        return offset + program * self.stride

    def check_inside(self, offset: Array, size: int) -> None:
        outside = (offset < SHARED_BASE) | (offset + size > SHARED_BASE + self.size)
        if outside.any():
            where = int(offset[outside][0]) - SHARED_BASE
            raise Fault(f"access of {size} bytes at {where} of {self.size} bytes of shared memory")

    def units(self, place: Array, size: int) -> Array:
        return (place // _UNIT)[..., None] + np.arange(max(1, size // _UNIT))

    def load(self, place: Array, size: int, item: int, program: Array, warp: Array) -> Array:
        """(accesses, size / item)."""
        units = self.units(place, size)
        self.note_read(units, (self.epoch[program] * _WARPS + warp)[:, None])
        return self.views[item][(place // item)[:, None] + np.arange(size // item)]

    def store(self, place: Array, values: Array, program: Array, warp: Array) -> None:
        item = values.dtype.itemsize
        size = item * values.shape[1]
        where = (place // item)[:, None] + np.arange(values.shape[1])
        self.write(self.units(place, size), self.views[item], where, values, program, warp)

    def note_read(self, units: Array, key: Array) -> None:
        """key: epoch * _WARPS + warp of each access, shaped to broadcast against `units`."""
        written = self.written[units]
        if not written.all():
            raise Fault("reads shared memory that was never written")
        if self.arriving.at[units].any():
            raise Fault("reads shared memory while an asynchronous copy to it is under way")
        if ((written // _WARPS == key // _WARPS) & (written != key)).any():
            raise Fault("race: reads shared memory that another warp writes, with no barrier between")
        self._mark_read(units, key)

    def _mark_read(self, units: Array, key: Array) -> None:
        before = self.read[units]
        several = key - key % _WARPS + _SEVERAL
        self.read[units] = np.where((before // _WARPS == key // _WARPS) & (before != key), several, key)
        clash = self.read[units] != key  # several warps in this very access, or before
        if clash.any():
            self.read[units[clash]] = np.broadcast_to(several, units.shape)[clash]

    def write(self, units: Array, view: Array, where: Array, values: Array, program: Array, warp: Array) -> None:
        """view[where] = values, each row by a warp of a program, where `units` are that row's."""
        key = (self.epoch[program] * _WARPS + warp)[:, None]
        read, written = self.read[units], self.written[units]
        if self.in_use.at[units].any():
            raise Fault("race: writes shared memory that a matrix product still reads (no wait for its group)")
        if self.arriving.at[units].any():
            raise Fault("writes shared memory while an asynchronous copy to it is under way")
        if ((read // _WARPS == key // _WARPS) & (read != key)).any():
            raise Fault("race: writes shared memory that another warp reads, with no barrier between")
        self.written[units] = key
        # Where a layout repeats itself across warps, all write the same values: that is no race.
        again = ((written // _WARPS == key // _WARPS) & (written != key)).any(1)
        if again.any() and (view[where[again]] != values[again]).any():
            raise Fault(_TWO_WRITERS)
        view[where] = values
        if (view[where] != values).any():
            raise Fault(_TWO_WRITERS)
        self.fence_at_write[units] = self.fences[program * self.warps + warp][:, None]

    def note_matrix_read(self, place: Array, program: Array, group: Array) -> None:
        """wgmma by each `group` of warps reads 2 bytes at each of place (groups, ...), until that is waited for."""
        units = place // _UNIT
        shape = (-1, *[1] * (units.ndim - 1))
        epoch = self.epoch[program].reshape(shape)
        written = self.written[units]
        if not written.all():
            raise Fault("a matrix product reads shared memory that was never written")
        if (written // _WARPS == epoch).any():
            raise Fault("race: a matrix product reads shared memory that a warp writes, with no barrier between")
        writer = written % _WARPS + (program * self.warps).reshape(shape)
        if (self.fences[writer] <= self.fence_at_write[units]).any():
            raise Fault("a matrix product reads shared memory without a proxy fence after the write")
        self.read[units] = epoch * _WARPS + _SEVERAL
        for key, of_group in zip(group.tolist(), units, strict=True):
            self.in_use.add(key, of_group)


class Pending:
    """Units of memory in asynchronous use, in groups that are committed and waited for in order, by owner."""

    def __init__(self, units: int) -> None:
        self.at = np.zeros(units, bool)
        self._open: dict[int, list[Array]] = {}
        self._groups: dict[int, list[list[Array]]] = {}

    def add(self, owner: int, units: Array) -> None:
        self.at[units] = True
        self._open.setdefault(owner, []).append(units)

    def commit(self, owners: Array) -> None:
        for owner in owners.tolist():
            self._groups.setdefault(owner, []).append(self._open.pop(owner, []))

    def wait(self, owners: Array, most: int) -> None:
        """Until no more than the `most` youngest groups of each owner are left."""
        for owner in owners.tolist():
            groups = self._groups.get(owner, [])
            done, left = groups[: len(groups) - most], groups[max(0, len(groups) - most) :]
            if not done:
                continue
            for units in (u for group in done for u in group):
                self.at[units] = False
            for units in (u for group in [*left, self._open.get(owner, [])] for u in group):
                self.at[units] = True
            self._groups[owner] = left
