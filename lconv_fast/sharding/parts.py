"""A rank's part of a volume, and the volume again from all parts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lconv_fast.checks import check_strided, check_tensor
from lconv_fast.sharding.agree import gathered
from lconv_fast.sharding.layout import split_evenly, split_of
from lconv_fast.sharding.model import Dims, domain_of


def local_part(volume: Any, mesh: DeviceMesh, dims: Dims, *, like: Tensor | None = None) -> Tensor:
    """This rank's part of a volume, as a tensor of its own.

    Along dimension d, rank r of the mesh axis dims[d] gets the points r c .. (r + 1) c with c = ceil(extent / ranks),
    as DTensor splits; fewer on the last one. Only that part is read.

    Args:
        volume: a tensor, numpy array, numpy.memmap or zarr array, (N, C, *spatial) for example; the same on every rank.
        mesh: a DeviceMesh whose axes are named.
        dims: {dimension: name of a mesh axis}; {0: "dp", 2: "z"} takes examples by data-parallel rank too.
        like: a part of another volume of the same extents (a model's result), to be cut in the same way: a strided
        layer leaves shards
            that are not those of the rule above. All ranks call with it.

    Raises:
        TypeError, ValueError: on every rank alike, if one of them would get no point, or if dims do not fit.
    """
    domain = domain_of("local_part", mesh, dims)
    if like is not None:
        check_tensor("like", like)
    if isinstance(volume, Tensor):
        check_strided("volume", volume)
    shape = getattr(volume, "shape", None)
    if shape is None:
        raise TypeError(
            "local_part: expected volume to be a tensor, numpy array, memmap or zarr array, got "
            f"{type(volume).__name__}"
        )
    if max(dims) >= len(shape):
        raise ValueError(
            f"local_part: expected dims below {len(shape)} for a volume of shape {tuple(shape)}, got {dict(dims)}"
        )
    index = [slice(0, n) for n in shape]
    parts = None if like is None else gathered(domain, tuple(like.shape))
    for dim, axis in domain.dims:
        if parts is None:
            split = split_evenly("local_part", shape, dim, axis, domain.sizes[axis], domain.names[axis])
        else:
            step = 1
            for size in domain.sizes[axis + 1 :]:
                step *= size
            split = split_of(axis, [parts[k * step][dim] for k in range(domain.sizes[axis])])
            if split.extent != shape[dim]:
                raise ValueError(
                    f"local_part: expected a volume of {split.extent} points in dimension {dim} as `like` is a "
                    f"part of, got shape {tuple(shape)}"
                )
        r = domain.place[axis]
        index[dim] = slice(split.offsets[r], split.offsets[r + 1])
    part = volume[tuple(index)]
    if isinstance(part, Tensor):
        return part.clone(memory_format=torch.contiguous_format)
    import numpy as np

    array = np.array(part)  # a copy: memory maps may be read-only
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def full_tensor(part: Tensor, mesh: DeviceMesh, dims: Dims) -> Tensor:
    """The whole tensor from the parts of all ranks, on every rank: for tests and small results; without gradients.

    Parts may differ in size. All ranks of the mesh axes in `dims` call it. Raises ValueError on all where parts do not
    fit together.
    """
    domain = domain_of("full_tensor", mesh, dims)
    check_tensor("part", part)
    check_strided("part", part)
    result = part.detach()
    for dim, axis in reversed(domain.dims):
        group, parts = domain.groups[axis], domain.sizes[axis]
        shapes: list[Any] = [None] * parts
        dist.all_gather_object(shapes, tuple(result.shape), group=group)
        if any(s[:dim] + s[dim + 1 :] != shapes[0][:dim] + shapes[0][dim + 1 :] for s in shapes):
            raise ValueError(f"full_tensor: expected parts that agree but in dimension {dim}, got {shapes}")
        # Parts of one size for the collective; what is beyond a part's own is cut off again.
        most = max(s[dim] for s in shapes)
        moved = result.movedim(dim, 0).contiguous()
        held = moved.new_zeros(most, *moved.shape[1:])
        held[: moved.shape[0]] = moved
        pieces = [torch.empty_like(held) for _ in range(parts)]
        dist.all_gather(pieces, held, group=group)
        result = torch.cat([p[: s[dim]] for p, s in zip(pieces, shapes, strict=True)]).movedim(0, dim)
    return result.contiguous()
