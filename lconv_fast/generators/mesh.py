"""Gradients on triangle meshes, as weights of differences along edges."""

from __future__ import annotations

import torch
from torch import Tensor

from lconv_fast.checks import check_float


def gradient_edges(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (2, E), source and target, and vectors (E, k) with grad f at mu = sum over e = (nu, mu) of
    vector[e] (f[nu] - f[mu]): the mean of the gradients on the faces around mu, with weights sin(u, v) / (|u| |v|), of
    N. Max, "Weights for computing vertex normals from facet normals" (1999), whose normals are exact on spheres.

    On the face (a, b, c) with sides u = b - a, v = c - a, grad f = (f[b] - f[a]) u* + (f[c] - f[a]) v*, where u*, v* is
    the basis of its plane that is dual to u, v.
    """
    check_mesh(vertices, faces)
    count, dtype, corners = vertices.shape[0], vertices.dtype, faces.long()
    vertices = vertices.double()
    sources, targets, vectors, shares = [], [], [], []
    for turn in range(3):
        a, b, c = corners.roll(-turn, 1).unbind(1)
        u, v = vertices[b] - vertices[a], vertices[c] - vertices[a]
        uu, vv, uv = ((p * q).sum(1, keepdim=True) for p, q in ((u, u), (v, v), (u, v)))
        square = uu * vv - uv * uv  # (2 area)^2
        if turn == 0:
            check_areas(vertices, corners, square.squeeze(1).clamp_min(0).sqrt())
        share = square.sqrt() / (uu * vv)
        sources += [b, c]
        targets += [a, a]
        vectors += [share * (vv * u - uv * v) / square, share * (uu * v - uv * u) / square]
        shares.append(share.squeeze(1))
    source, target = torch.cat(sources), torch.cat(targets)
    total = vertices.new_zeros(count).index_add(0, corners.t().flatten(), torch.cat(shares))
    # The two faces of an edge give one weight; sorted by target, sums run along memory.
    names, place = torch.unique(target * count + source, return_inverse=True)
    vector = vertices.new_zeros(names.shape[0], vertices.shape[1]).index_add(0, place, torch.cat(vectors))
    target = torch.div(names, count, rounding_mode="floor") if names.numel() else names
    return torch.stack([names - target * count, target]), (vector / total[target].unsqueeze(1)).to(dtype)


def check_mesh(vertices: object, faces: object) -> None:
    """A surface: triangles of three corners that exist, two at an edge at most, those at a vertex side by side."""
    check_float("vertices", vertices, (2,), "(V, k)")
    assert isinstance(vertices, Tensor)
    if vertices.shape[0] == 0 or vertices.shape[1] < 2:
        raise ValueError(f"vertices: expected shape (V, k) with k of 2 or more, got {tuple(vertices.shape)}")
    if vertices.is_meta:
        raise TypeError("vertices: expected positions, got a tensor on the meta device, which has none")
    if not bool(vertices.isfinite().all()):
        raise ValueError("vertices: expected finite positions")
    if not isinstance(faces, Tensor) or faces.dtype not in (torch.int32, torch.int64):
        found = faces.dtype if isinstance(faces, Tensor) else type(faces).__name__
        raise TypeError(f"faces: expected a tensor of integers (F, 3), got {found}")
    if faces.dim() != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces: expected shape (F, 3), got {tuple(faces.shape)}")
    if faces.device != vertices.device:
        raise TypeError(f"faces: expected device {vertices.device} as vertices, got {faces.device}")
    if not faces.numel():
        return
    least, most = int(faces.min()), int(faces.max())
    if least < 0 or most >= vertices.shape[0]:
        raise ValueError(f"faces: expected vertices 0 to {vertices.shape[0] - 1}, got {least} to {most}")
    twice = (faces == faces.roll(1, 1)).any(1)
    if bool(twice.any()):
        worst = int(twice.nonzero()[0])
        raise ValueError(f"faces: expected three corners that differ, got {faces[worst].tolist()} as face {worst}")
    triangles, counts = faces.sort(1).values.unique(dim=0, return_counts=True)
    if int(counts.max()) > 1:
        worst = int(counts.argmax())
        raise ValueError(f"faces: expected each face once, got {triangles[worst].tolist()} {int(counts[worst])} times")
    edges = torch.stack([faces, faces.roll(-1, 1)], 2).flatten(0, 1).sort(1).values  # 3 face + side
    unique, places, counts = edges.unique(dim=0, return_inverse=True, return_counts=True)
    if int(counts.max()) > 2:
        worst = int(counts.argmax())
        raise ValueError(
            f"faces: expected a surface, with at most two faces at an edge, got {int(counts[worst])} at the edge "
            f"{unique[worst].tolist()}"
        )
    check_fans(faces, places, counts)


def check_fans(faces: Tensor, places: Tensor, counts: Tensor) -> None:
    """The faces at each vertex are one fan: each can be reached from any other through edges at the vertex.

    places: the edge of each side (3 face + side); counts: faces of each edge, at most 2.
    """
    order = places.argsort(stable=True)
    first = order[counts.cumsum(0) - counts][counts == 2]
    second = order[counts.cumsum(0) - 1][counts == 2]  # the two sides that are one edge
    corners = faces.flatten()

    def end(side: Tensor) -> Tensor:
        return side // 3 * 3 + (side + 1) % 3

    same_way = corners[first] == corners[second]
    links = torch.cat(
        [
            torch.stack([first, torch.where(same_way, second, end(second))]),
            torch.stack([end(first), torch.where(same_way, end(second), second)]),
        ],
        1,
    )
    # The least corner of each fan, by the links and then by what it stands for itself.
    label, before = torch.arange(corners.shape[0], device=faces.device), None
    while before is None or not torch.equal(label, before):
        before = label
        least = torch.minimum(label[links[0]], label[links[1]])
        label = label.scatter_reduce(0, links[0], least, "amin").scatter_reduce(0, links[1], least, "amin")
        label = label[label]
    fans = torch.bincount(corners[label.unique()])
    if int(fans.max()) > 1:
        worst = int(fans.argmax())
        raise ValueError(
            f"faces: expected a surface, with the faces at a vertex next to each other, got {int(fans[worst])} "
            f"separate fans of them at vertex {worst}"
        )


def check_areas(vertices: Tensor, faces: Tensor, areas: Tensor) -> None:
    """No triangle is a line or a point, by what rounding leaves of its sides."""
    if not faces.numel():
        return
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    longest = torch.stack([(p - q).square().sum(1) for p, q in ((a, b), (b, c), (c, a))]).amax(0)
    flat = ~(areas > longest * torch.finfo(vertices.dtype).eps ** 0.5)
    if bool(flat.any()):
        worst = int(flat.nonzero()[0])
        raise ValueError(f"faces: expected triangles with an area, got {faces[worst].tolist()} as face {worst}")
