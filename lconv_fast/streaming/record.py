"""Which tiles of a prediction are written, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class Record:
    """Beside a file of results a text file with a line per tile; of arrays without a file the object's own list.

    The first line tells which prediction it is of: weights, shape and tiles.
    """

    def __init__(self, out: Any, key: str, memory: dict[int, tuple[str, list[int]]]) -> None:
        self.path, self.key, self.memory, self.owner = place_of(out), key, memory, id(out)

    def done(self) -> list[int] | None:
        """The tiles that are written; None where nothing is recorded. Raises ValueError for another prediction."""
        if self.path is None:
            key, tiles = self.memory.get(self.owner, (None, []))
        elif self.path.exists():
            key, *lines = self.path.read_text().split("\n")
            tiles = [int(line) for line in lines[:-1]]  # the last line may be half written
        else:
            key, tiles = None, []
        if key is None:
            return None
        if key != self.key:
            raise ValueError(
                "resume: the interrupted prediction was of other weights, another volume's shape or other tiles; "
                "start again with resume=False"
            )
        return tiles

    def start(self, tiles: list[int]) -> None:
        if self.path is None:
            self.memory[self.owner] = (self.key, list(tiles))
        else:
            self.path.write_text("".join(f"{line}\n" for line in (self.key, *tiles)))

    def add(self, tile: int) -> None:
        if self.path is None:
            self.memory[self.owner][1].append(tile)
        else:
            with self.path.open("a") as file:
                file.write(f"{tile}\n")

    def finish(self) -> None:
        self.memory.pop(self.owner, None)
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def place_of(out: Any) -> Path | None:
    """Where the record of a file of results stands."""
    base, name = out, None
    while isinstance(base, np.ndarray) and name is None:
        name, base = getattr(base, "filename", None), base.base
    if name is None:
        root = getattr(getattr(out, "store", None), "root", None)
        if root is None:
            return None
        inner = str(getattr(out, "path", "")).strip("/").replace("/", ".")
        name = f"{root}.{inner}" if inner else str(root)
    return Path(f"{name}.unfinished")


def fingerprint(model: nn.Module, *facts: Any) -> str:
    digest = hashlib.sha256(repr((facts, model.training)).encode())
    for name, tensor in _tensors(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
