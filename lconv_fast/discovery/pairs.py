"""Pairs from a file: x, y and perhaps t of a .npz or .safetensors archive, and nothing else of it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = ("x", "y", "t")
SUFFIXES = (".npz", ".safetensors")


def read_pairs(path: str | Path) -> dict[str, Tensor]:
    """x and y, and t if it is there.

    Numbers of the other byte order are turned; other arrays of the archive are not looked at.

    Raises:
        ValueError: a file of another kind, one that is damaged, and one without x or y; TypeError: arrays that hold
            no numbers that torch has. The sentence names the file.
        OSError: a file that cannot be opened.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected a .npz or .safetensors file, got {path}")
    with path.open("rb") as file:  # an OSError of its own, in one line, before libraries word theirs
        if not file.read(1):
            raise ValueError(f"{path}: the file is empty")
    read: Callable[[Path], dict[str, Tensor]] = _npz if path.suffix.lower() == ".npz" else _safetensors
    try:
        return read(path)
    except (_UnreadableError, ModuleNotFoundError, TypeError):
        raise
    except Exception as damaged:  # a damaged archive raises whatever its decoder stumbles over
        reason = (str(damaged).strip() or type(damaged).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a whole {path.suffix} archive ({reason[:200]})") from None


class _UnreadableError(ValueError):
    """A sentence of our own."""


def _check_names(path: Path, names: list[str]) -> None:
    if not {"x", "y"} <= set(names):
        listed = ", ".join(sorted(names)[:10]) + (" and others" if len(names) > 10 else "")
        raise _UnreadableError(f"expected arrays x and y in {path}, got {listed or 'none'}")


def _npz(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        entries = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
        _check_names(path, list(entries))
        return {name: _array(path, archive, name, entries[name]) for name in NAMES if name in entries}


def _array(path: Path, archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo) -> Tensor:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
    native = dtype.newbyteorder("=")
    if dtype.hasobject or native.kind not in "fiub" or native.itemsize > 8:
        raise TypeError(f"{path}: {name}: expected real numbers of at most 8 bytes, got {dtype}")
    # Before room is made for them: a damaged header can promise anything.
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise _UnreadableError(f"{path}: {name}: its header promises {shape} of {dtype}, more than the archive holds")
    with archive.open(entry) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # to the end, where the checksum is compared
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as archive:
        names = list(archive.keys())
        _check_names(path, names)
        return {name: archive.get_tensor(name) for name in NAMES if name in names}
