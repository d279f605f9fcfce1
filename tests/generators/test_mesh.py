"""Derivatives on triangle meshes: constants, linear functions, the algebra so(3) on a sphere, meshes that are none."""

import itertools
import math

import pytest
import torch
from problems import relative_rms

import lconv_fast as lc

from_mesh = lc.GraphGenerators.from_mesh


def flat_mesh(size=7, seed=0):
    """A triangulated square with moved vertices, its triangles in both orientations."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    vertices = torch.stack([y, x], -1).reshape(-1, 2).double()
    vertices = vertices + 0.3 * torch.rand(vertices.shape, generator=random, dtype=torch.float64)
    faces = []
    for i, j in itertools.product(range(size - 1), repeat=2):
        a, b, c, d = i * size + j, i * size + j + 1, (i + 1) * size + j, (i + 1) * size + j + 1
        faces += [[a, b, d], [c, a, d]]
    return vertices, torch.tensor(faces)


def sphere(level):
    """Octahedron, each face split into four `level` times, on the unit sphere."""
    vertices = [tuple(float(s * (a == b)) for b in range(3)) for a in range(3) for s in (1, -1)]
    faces = [(a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5)]
    for _ in range(level):
        middle, split = {}, []

        def between(p, q, middle=middle):
            key = (min(p, q), max(p, q))
            if key not in middle:
                m = torch.tensor(vertices[p]).double() + torch.tensor(vertices[q]).double()
                middle[key] = len(vertices)
                vertices.append(tuple((m / m.norm()).tolist()))
            return middle[key]

        for a, b, c in faces:
            ab, bc, ca = between(a, b), between(b, c), between(c, a)
            split += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = split
    return torch.tensor(vertices, dtype=torch.float64), torch.tensor(faces)


def killing_fields(vertices):
    """X_i = e_i x p: rotations about the axes."""
    axes = torch.eye(3, dtype=vertices.dtype)
    return torch.stack([torch.linalg.cross(axis.expand_as(vertices), vertices) for axis in axes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mesh", [flat_mesh, lambda: sphere(2)], ids=["flat", "sphere"])
def test_constants_give_exactly_zero(mesh, dtype):
    vertices, faces = mesh()
    generators = from_mesh(vertices.to(dtype), faces)
    f = torch.full((1, len(vertices), 1), 0.1 + math.pi, dtype=dtype)
    assert generators(f).count_nonzero() == 0


def test_linear_functions_on_a_flat_mesh():
    """Exact at every vertex, the boundary too; in the plane, and in a plane turned into space."""
    vertices, faces = flat_mesh()
    slope = torch.tensor([1.7, -0.4], dtype=torch.float64)
    found = from_mesh(vertices, faces)((vertices @ slope).reshape(1, -1, 1))[0, :, :, 0]
    assert relative_rms(found, slope[:, None].expand_as(found)) < 1e-13
    plane, _ = torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64))
    found = from_mesh(vertices @ plane.T, faces)((vertices @ slope).reshape(1, -1, 1))[0, :, :, 0]
    assert relative_rms(found, (plane @ slope)[:, None].expand_as(found)) < 1e-13


def test_given_fields():
    """Turning about the origin: X . grad of a linear function."""
    vertices, faces = flat_mesh()
    field = torch.stack([-vertices[:, 1], vertices[:, 0]], 1)[None]
    f = (vertices @ torch.tensor([1.7, -0.4], dtype=torch.float64)).reshape(1, -1, 1)
    found = from_mesh(vertices, faces, field)(f)[0, 0, :, 0]
    assert relative_rms(found, -1.7 * vertices[:, 1] - 0.4 * vertices[:, 0]) < 1e-13


def test_transpose_and_dense():
    vertices, faces = flat_mesh(4)
    generators = from_mesh(vertices, faces)
    dense = generators.to_dense((16,))
    assert dense.sum(2).abs().max() < 1e-13
    assert relative_rms(generators.transpose().to_dense((16,)), dense.transpose(1, 2)) < 1e-14


def test_killing_fields_of_a_sphere_approach_so3():
    """On the coordinate functions, which span the rotations' representation of l = 1: L_i x_j = e_jik x_k, and the
    commutators [L_i, L_j] = e_ijk L_k up to the sign of fields. The error falls
    with the square of the edges."""
    errors, brackets = [], []
    for level in (2, 3, 4):
        vertices, faces = sphere(level)
        generators = from_mesh(vertices, faces, killing_fields(vertices))
        x = vertices[None]  # (1, nodes, 3): three functions
        moved = generators(x)[0]  # (3, nodes, 3)
        # (e_i x p)_j = e_jik p_k
        expected = killing_fields(vertices)
        errors.append(relative_rms(moved, expected))
        twice = torch.stack([generators(moved[j][None])[0] for j in range(3)])  # L_i L_j x at [j, i]
        bracket = twice[1, 0] - twice[0, 1]  # [L_0, L_1]
        brackets.append(relative_rms(bracket, -moved[2]))
    assert all(3.4 < a / b < 4.6 for a, b in itertools.pairwise(errors)) and errors[-1] < 5e-3, errors
    assert all(a / b > 2.5 for a, b in itertools.pairwise(brackets)) and brackets[-1] < 1e-2, brackets


def test_vertices_without_faces_and_meshes_without_faces():
    vertices, faces = flat_mesh(3)
    more = torch.cat([vertices, torch.tensor([[9.0, 9.0]], dtype=torch.float64)])
    f = torch.randn(1, 10, 2, dtype=torch.float64)
    generators = from_mesh(more, faces)
    assert generators(f)[:, :, 9].count_nonzero() == 0
    assert torch.equal(generators(f)[:, :, :9], from_mesh(vertices, faces)(f[:, :9]))
    empty = from_mesh(vertices, torch.zeros(0, 3, dtype=torch.long))
    assert empty(f[:, :9]).shape == (1, 2, 9, 2) and empty(f[:, :9]).count_nonzero() == 0


def test_learnable_in_a_layer():
    vertices, faces = flat_mesh(4)
    layer = lc.LConvGraph(2, 3, from_mesh(vertices, faces, learnable=True), dtype=torch.float64)
    f = torch.randn(2, 16, 2, dtype=torch.float64)
    expected = f @ layer.weight[0].T + torch.einsum("nixc,ioc->nxo", layer.generators(f), layer.weight[1:])
    assert torch.allclose(layer(f), expected)
    layer(f).square().sum().backward()
    assert layer.generators.edge_weight.grad.abs().max() > 0


V, T = flat_mesh(3)
BOOK = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 1, 5]])  # three pages at one edge
CONES = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [0, 4, 5], [0, 5, 6], [0, 6, 4]])  # two, tip to tip
LINE = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((V, torch.tensor([[0, 1, 3], [3, 0, 1]])), ValueError, r"each face once, got \[0, 1, 3\] 2 times"),
        ((V, torch.tensor([[0, 1, 3], [0, 2, 4]])), ValueError, "got 2 separate fans of them at vertex 0"),
        ((torch.randn(7, 3), CONES), ValueError, "got 2 separate fans of them at vertex 0"),
        ((torch.randn(4, 3, device="meta"), torch.tensor([[0, 1, 2]])), TypeError, "a tensor on the meta device"),
        ((V, BOOK), ValueError, r"at most two faces at an edge, got 3 at the edge \[0, 1\]"),
        ((V, torch.tensor([[0, 1, 1]])), ValueError, r"three corners that differ, got \[0, 1, 1\] as face 0"),
        ((LINE, torch.tensor([[0, 1, 2]])), ValueError, r"triangles with an area, got \[0, 1, 2\] as face 0"),
        ((LINE[[0, 0, 1]], torch.tensor([[0, 1, 2]])), ValueError, "triangles with an area"),
        ((V, torch.tensor([[0, 1, 9]])), ValueError, "faces: expected vertices 0 to 8, got 0 to 9"),
        ((V, torch.tensor([[0, -1, 2]])), ValueError, "faces: expected vertices 0 to 8, got -1 to 2"),
        ((V, T.double()), TypeError, "faces: expected a tensor of integers"),
        ((V, T[:, :2]), ValueError, r"faces: expected shape \(F, 3\), got"),
        ((V.long(), T), TypeError, "vertices: expected a real floating-point tensor"),
        ((V[:, :1], T), ValueError, r"vertices: expected shape \(V, k\) with k of 2 or more"),
        ((V * math.nan, T), ValueError, "vertices: expected finite positions"),
        ((V, T, V), ValueError, r"fields: expected shape \(n_L, V, k\)"),
        ((V, T, V[None, :5]), ValueError, r"fields: expected shape \(n_L, 9, 2\) beside those vertices"),
        ((V, T, V[None].float()), TypeError, "fields: expected dtype torch.float64"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        from_mesh(*arguments)
