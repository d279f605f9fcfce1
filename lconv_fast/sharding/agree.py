"""What the ranks of a domain tell each other before work starts, so that an error on one of them is an error on all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lconv_fast.checks import FLOAT_TYPES
from lconv_fast.sharding.layout import Domain, Split, split_of

TENSORS, AXES = 4, 8  # most that a row describes of a call
ROW = 3 + TENSORS * (AXES + 3)


def gathered(domain: Domain, value: Any) -> list[Any]:
    """The value of each rank, in row-major order of the mesh."""
    values = [value]
    for group in reversed(domain.groups):
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, values, group=group)
        values = [item for part in parts for item in part]
    return values


def same_everywhere(domain: Domain, caller: str, what: str, value: Any) -> None:
    """Raises ValueError on every rank unless all of them have the same value."""
    values = gathered(domain, value)
    if any(other != values[0] for other in values):
        shown = ", ".join(f"rank {k}: {other}" for k, other in enumerate(values))
        raise ValueError(f"{caller}: expected the same {what} on every rank, got {shown}")


def same_parameters(domain: Domain, model: nn.Module) -> None:
    """Raises ValueError on every rank, naming the first that differs, unless all have the same parameters and
    buffers, bit for bit."""
    digests = []
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        raw = t.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes() if t.numel() else b""
        digests.append((name, tuple(t.shape), str(t.dtype), hashlib.sha256(raw).hexdigest()))
    everywhere = gathered(domain, digests)
    for rank, other in enumerate(everywhere):
        if other == everywhere[0]:
            continue
        if [d[:3] for d in other] != [d[:3] for d in everywhere[0]]:
            raise ValueError(
                f"shard: expected the same model on every rank; the names or shapes of parameters on rank {rank} "
                "differ from those on rank 0"
            )
        name = next(a[0] for a, b in zip(other, everywhere[0], strict=True) if a != b)
        raise ValueError(
            f"shard: expected the same parameters on every rank; {name!r} on rank {rank} differs from that on rank 0 "
            "(seed all ranks alike, or load one state dict)"
        )


def _row(tensors: Sequence[Tensor], training: bool, look: bool) -> list[int]:
    finite = all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point()) if look else True
    row = [len(tensors), int(training) + 2 * int(torch.is_grad_enabled()), 0 if finite else 1]
    for t in tensors:
        shape = [*t.shape, *[0] * AXES][:AXES]
        row += [t.dim(), *shape, FLOAT_TYPES.index(t.dtype) if t.dtype in FLOAT_TYPES else -1, int(t.requires_grad)]
    return [*row, *[0] * ROW][:ROW]


def described(domain: Domain, tensors: Sequence[Tensor], training: bool, look: bool) -> list[list[int]]:
    """A row of numbers from each rank about its part of the input; one sum over the ranks, in which each fills a
    row of its own."""
    me = 0
    for place, size in zip(domain.place, domain.sizes, strict=True):
        me = me * size + place
    device = tensors[0].device if tensors else torch.device("cpu")
    table = torch.zeros(domain.ranks, ROW, dtype=torch.int64)
    table[me] = torch.tensor(_row(tensors, training, look))
    table = table.to(device)
    for group in domain.groups:
        dist.all_reduce(table, group=group)
    return table.tolist()


def whole_shapes(domain: Domain, rows: list[list[int]]) -> list[tuple[tuple[int, ...], tuple[tuple[int, Split], ...]]]:
    """The shape of each whole input and how it is split, from the rows of all ranks. Raises on all alike what does
    not fit together."""
    first = rows[0]
    for rank, row in enumerate(rows):
        if row[2]:
            bad = [k for k, other in enumerate(rows) if other[2]]
            raise FloatingPointError(f"sharded model: the input has NaN or infinity on rank {', '.join(map(str, bad))}")
        if row[:2] != first[:2]:
            raise ValueError(
                f"sharded model: rank {rank} gives {row[0]} tensors in mode {row[1]} (training, gradients), rank "
                f"0 {first[0]} in mode {first[1]}"
            )
    found = []
    for index in range(first[0]):
        start = 3 + index * (AXES + 3)
        parts = [(row[start + 1 : start + 1 + row[start]], row[start + 1 + AXES :][:2]) for row in rows]
        found.append(_whole(domain, parts))
    return found


def _whole(
    domain: Domain, parts: list[tuple[list[int], list[int]]]
) -> tuple[tuple[int, ...], tuple[tuple[int, Split], ...]]:
    shapes = [shape for shape, _ in parts]
    listed = ", ".join(f"rank {k}: {tuple(shape)}" for k, shape in enumerate(shapes))
    if any(kind != parts[0][1] for _, kind in parts):
        raise ValueError("sharded model: expected input of one dtype, and requires_grad alike, on every rank")
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise ValueError(f"sharded model: expected parts of one volume, got {listed}")
    whole, layout = list(shapes[0]), []
    dims = {dim: axis for dim, axis in domain.dims if len(shapes[0]) > max(d for d, _ in domain.dims)}
    for dim in range(len(whole)):
        axis = dims.get(dim)
        inner = 1
        for size in domain.sizes[(len(domain.sizes) if axis is None else axis) + 1 :]:
            inner *= size
        parts_of = 1 if axis is None else domain.sizes[axis]
        sizes = [shapes[k * inner][dim] for k in range(parts_of)]
        expected = [sizes[0] if axis is None else sizes[k // inner % parts_of] for k in range(len(shapes))]
        if [shape[dim] for shape in shapes] != expected:
            raise ValueError(
                f"sharded model: expected parts of one volume, which agree in dimension {dim}, got {listed}"
            )
        if min(sizes) < 1:
            raise ValueError(f"sharded model: expected at least one point on every rank, got {listed}")
        if axis is not None:
            split = split_of(axis, sizes)
            whole[dim] = split.extent
            layout.append((dim, split))
    return tuple(whole), tuple(layout)
