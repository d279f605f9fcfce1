"""Differential invariants: exact under quarter turns, right to the order of the differences on smooth fields."""

import math

import pytest
import torch
from torch.func import hessian, jacrev, vmap

import lconv_fast as lc
from lconv_fast.invariants import GROUPS
from lconv_fast.ops.boundary import PADDING_MODES

SE = "se"


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def picture(x):
    """A smooth function of a point x (n,): sums of Gaussians, small at a distance of 10."""
    n = len(x)
    a = torch.tensor([1.0, -0.8, 0.4], dtype=x.dtype)[:n]
    b = torch.tensor([-1.2, 0.9, 0.7], dtype=x.dtype)[:n]
    return torch.exp(-((x - a).square().sum()) / 8) - 0.7 * torch.exp(-((x - b) * (1 + 0.2 * a)).square().sum() / 6)


def motion(ndim, angle=0.5):
    """A rotation (in 3D about an oblique axis)."""
    skew = torch.zeros(ndim, ndim, dtype=torch.float64)
    skew[0, 1] = 1.0
    if ndim == 3:
        skew[0, 2], skew[1, 2] = -0.5, 0.8
    return torch.linalg.matrix_exp(angle * (skew - skew.T))


def grid_of(ndim, spacing, extent=12.0):
    size = int(extent / spacing) + 1
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * spacing
    return torch.stack(torch.meshgrid(*[axis] * ndim, indexing="ij"), -1)


def exact(points, moved, spacing):
    """The se-invariants of picture o moved at points, by automatic differentiation, in pixels of `spacing`."""
    flat = points.reshape(-1, points.shape[-1])

    def f(x):
        return picture(moved(x))

    value, g, h = (vmap(d)(flat) for d in (f, jacrev(f), hessian(f)))
    g, h = g * spacing, h * spacing**2
    along = torch.einsum("pa,pab,pb->p", g, h, g)
    rows = [value, g.square().sum(1), h.diagonal(dim1=1, dim2=2).sum(1), along, h.square().sum((1, 2))]
    return torch.stack(rows).reshape(5, *points.shape[:-1])


@pytest.mark.parametrize("ndim, spacings", [(1, (0.2, 0.1)), (2, (0.4, 0.2)), (3, (1.0, 0.5))])
def test_second_order_under_rotations(ndim, spacings):
    """I(f o g) on the grid against I(f) o g, exactly: the error falls as h^2, for each of the five."""
    q = motion(ndim) if ndim > 1 else -torch.eye(1, dtype=torch.float64)
    shift = torch.full((ndim,), 0.3, dtype=torch.float64)
    errors = []
    for h in spacings:
        x = grid_of(ndim, h)
        f = vmap(lambda p: picture(q @ p + shift))(x.reshape(-1, ndim)).reshape(1, 1, *x.shape[:-1])
        found = lc.invariants(f, SE)[0]
        at = x @ q.T + shift  # I(f) o g: the invariants of the picture as it stood, at the moved points
        truth = exact(at, lambda p: p, h)
        inner = (slice(None), *[slice(1, -1)] * ndim)  # points whose neighbours are on the grid
        found, truth = found[inner], truth[inner]
        errors.append([relative(a, b) for a, b in zip(found[1:], truth[1:], strict=True)])
        assert relative(found[0], truth[0]) < 1e-12
    for coarse, fine in zip(*errors, strict=True):
        assert abs(math.log2(coarse / fine) - 2) < 0.35, errors


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "translation"])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_quarter_turns_to_rounding(group, mode):
    f = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for dims in ((2, 3),):
        a = lc.invariants(f.rot90(1, dims), group, padding_mode=mode)
        torch.testing.assert_close(a, lc.invariants(f, group, padding_mode=mode).rot90(1, dims), rtol=1e-12, atol=1e-12)
    f = torch.randn(1, 2, 5, 5, 5, dtype=torch.float64)
    for dims in ((2, 3), (2, 4), (3, 4)):
        a = lc.invariants(f.rot90(1, dims), group, padding_mode=mode)
        torch.testing.assert_close(a, lc.invariants(f, group, padding_mode=mode).rot90(1, dims), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", ["translation", "se", "similitude"])
def test_shifts_to_rounding(group):
    f = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    moved = lc.invariants(f.roll((2, -3), (2, 3)), group, padding_mode="circular")
    torch.testing.assert_close(moved, lc.invariants(f, group, padding_mode="circular").roll((2, -3), (2, 3)))


@pytest.mark.parametrize("group", ["similitude", "scaling"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_scalings(group, ndim):
    """A picture twice as large has the same invariants at twice the distance, up to O(h^2)."""
    errors = []
    spacings = (0.25, 0.125) if ndim == 2 else (1.0, 0.5)
    for h in spacings:
        x = grid_of(ndim, h)
        small, large = (
            vmap(picture)(x.reshape(-1, ndim) * s).reshape(1, 1, *x.shape[:-1]) for s in (1.0, 0.5)
        )  # large(x) = small(x / 2)
        a, b = lc.invariants(small, group)[0], lc.invariants(large, group)[0]
        size = x.shape[0]
        quarter = size // 4
        # Point 2 k of the large picture, counted from its centre, is point k of the small one.
        inner = slice(quarter, size - quarter)
        here = a[(slice(None), *[inner] * ndim)]
        there = b[(slice(None), *[slice(0, None, 2)] * ndim)]
        ring = x[(*[inner] * ndim,)].norm(dim=-1) < 2.5
        errors.append([relative(p[ring], q[ring]) for p, q in zip(here, there, strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        assert coarse < 1e-12 or coarse / fine > 2.5, errors


def test_what_is_not_invariant_is_told_apart():
    """The translation row does not commute with quarter turns, se does not with scalings: the checks above can fail."""
    f = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    a, b = lc.invariants(f.rot90(1, (2, 3)), "translation"), lc.invariants(f, "translation").rot90(1, (2, 3))
    assert relative(a, b) > 0.1


def test_pairs_of_channels():
    f = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain, both = lc.invariants(f), lc.invariants(f, pairs=True)
    assert torch.equal(both[:, : plain.shape[1]], plain) and both.shape[1] == plain.shape[1] + 3
    # Polarisation: |grad (f + g)|^2 = |grad f|^2 + 2 grad f . grad g + |grad g|^2.
    slope = lc.invariants(f[:, :1] + f[:, 1:2])[:, 1] - plain[:, 1] - plain[:, 6]
    torch.testing.assert_close(both[:, 15], slope / 2)


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "translation"])
def test_nonlinearity_commutes_and_has_gradients(group):
    module = lc.DifferentialInvariants(3, 5, group).double()
    f = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    y = module(f)
    assert y.shape == (2, 5, 6, 6)
    torch.testing.assert_close(module(f.rot90(1, (2, 3))), y.rot90(1, (2, 3)), rtol=1e-10, atol=1e-10)
    torch.autograd.gradcheck(module, f[:1, :, :4, :4].detach().requires_grad_())


def test_as_the_activation_of_a_network():
    model = lc.nets.LResNet(1, 4, lc.nets.isotropic(2), widths=(4, 4), activation=lc.DifferentialInvariants).double()
    f = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(model(f.rot90(1, (2, 3))), model(f), rtol=1e-9, atol=1e-9)


def test_constant_fields_and_single_points_are_finite():
    for group in GROUPS:
        f = torch.ones(1, 2, 1, 4, requires_grad=True)
        y = lc.invariants(f, group)
        y.sum().backward()
        assert y.isfinite().all() and f.grad.isfinite().all()


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: lc.invariants(torch.zeros(1, 1, 4), "so"), ValueError, "group: expected one of translation"),
        (lambda: lc.invariants(torch.zeros(1, 1, 4), "scaling", pairs=True), ValueError, "pairs: expected False"),
        (lambda: lc.invariants(torch.zeros(4, 4)), ValueError, r"f: expected shape \(N, C, \*spatial\)"),
        (lambda: lc.invariants(torch.zeros(1, 1, 4, dtype=torch.long)), TypeError, "f: expected a real floating"),
        (lambda: lc.invariants(torch.zeros(1, 1, 4), padding_mode="same"), ValueError, "padding_mode: expected one"),
        (lambda: lc.invariants(torch.zeros(1, 1, 1), padding_mode="reflect"), ValueError, "reflect padding by 1"),
        (lambda: lc.invariants(torch.zeros(1, 1, 0)), ValueError, "f: expected at least one point"),
        (lambda: lc.DifferentialInvariants(0), ValueError, "channels"),
        (lambda: lc.DifferentialInvariants(2, group="translation"), ValueError, "group: expected another"),
        (lambda: lc.DifferentialInvariants(2)(torch.zeros(1, 3, 4)), ValueError, "f: expected 2 channels"),
    ],
)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
