"""Errors of equivariance: finite elements, and layer by layer."""

import copy

import pytest
import torch
from fields import packets, relative
from torch import nn

import lconv_fast as lc
from lconv_fast.physics.derivatives import coordinates, vector_fields
from lconv_fast.physics.grids import Follower
from lconv_fast.physics.group import Placement, placed
from lconv_fast.physics.tangents import METHODS

P = lc.physics


def smooth(channels, size=48):
    return torch.cat([packets((size, size), width=4.0, spread=10.0, seed=c) for c in range(channels)], 1)


def rotation(**keywords):
    return lc.AffineGenerators.named("rotation", coordinate_scale=1.0, **keywords).double()


class Square(torch.autograd.Function):
    """A function without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Custom(nn.Module):
    def forward(self, x):
        return Square.apply(x)


class Opaque(nn.Module):
    """Once differentiable: neither forward mode nor double backward."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    def forward(self, x):
        return self.Function.apply(x)


class Beside(Opaque):
    """The same beside a way that can be differentiated."""

    def forward(self, x):
        return x + super().forward(x)


class Shifted(nn.Module):
    """A planted break inside a container, without a module of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.position = nn.Parameter(torch.randn(1, 1, 48, 48, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) + self.position


def net():
    """Layers of I and rotations: equivariant under rotations but for what the grid does."""
    return nn.Sequential(
        lc.LConv2d(2, 4, rotation(accuracy=8), dtype=torch.float64),
        nn.Tanh(),
        lc.LConv2d(4, 3, rotation(accuracy=8), dtype=torch.float64),
    )


def test_equivariant_net_and_planted_breaks():
    x = smooth(2)
    clean = P.audit(net(), x, rotation(accuracy=8))
    assert clean[""].interior.max() < 0.02  # tanh obeys the chain rule to the order of the differences
    for path in ("0", "2"):
        assert clean[path].interior.max() < 1e-11
    # A convolution in the middle.
    broken = net()
    broken.insert(2, nn.Conv2d(4, 4, 3, padding=1).double())
    found = P.audit(broken, x, rotation(accuracy=8))
    assert found.worst().path == "2" and found["2"].interior.max() > max(1e-2, 5 * found["1"].interior.max())
    # One without a module of its own: its container shows it, and nothing inside.
    found = P.audit(nn.Sequential(Shifted(net()), nn.Identity()), x, rotation(accuracy=8))
    assert found["0"].interior.max() > 0.1 and found["0.inner"].interior.max() < 0.02
    assert found["1"].interior.max() < 1e-14


def test_boundary_is_apart():
    """Zero padding breaks translations at the border alone."""
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).double()
    x = torch.randn(2, 2, 32, 32, dtype=torch.float64)
    found = P.audit(conv, x, "translation", margin=4)
    assert found["0"].interior.max() < 1e-12 < 1e-2 < found["0"].boundary.min()
    heat = found["0"].map
    assert heat.shape == (2, 32, 32) and heat[:, 4:-4, 4:-4].max() < 1e-12 and heat[:, 0].max() > 0.1
    around = lc.AffineGenerators.named("translation", padding_mode="circular").double()
    ring = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
    assert max(P.audit(ring, x, around)[""].boundary) < 1e-12


def test_tangents_against_finite_elements():
    """J L f - L Q[f] is the derivative of Q[exp(tL) f] - exp(tL) Q[f], by differences of order 4."""
    group = rotation(accuracy=4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 5, padding=2)).double()
    x = smooth(2, 40)
    h = 3e-4

    def at(t):
        element = torch.tensor([t], dtype=torch.float64)
        return model(P.exponential(group, x, element)) - P.exponential(group, model(x), element)

    with torch.no_grad():
        derivative = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        defect = torch.func.jvp(model, (x,), (group(x)[:, 0],))[1] - group(model(x))[:, 0]
    assert relative(derivative - defect, defect) < 1e-8
    found = P.audit(model, x, group)[""]
    assert (
        relative(found.map[0].double() - derivative.square().sum((0, 1)).sqrt(), derivative) < 1e-6
    )  # kept in float32
    assert abs(found.rate[0] / (defect.norm() / model(x).norm()) - 1) < 1e-10
    small = P.equivariance_error(model, x, group, 1e-4)
    assert abs(small[0] / (1e-4 * found.rate[0]) - 1) < 1e-2


@pytest.mark.parametrize("name", METHODS)
def test_methods_agree(name):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(3), nn.MaxPool2d(2)).double().eval()
    x, u = torch.randn(2, 1, 2, 12, 12, dtype=torch.float64)
    truth = torch.func.jvp(lambda a: model(a.clone()), (x,), (u,))[1]
    values, tangents = METHODS[name](lambda a: [model(a.clone())], [x], [u])
    assert relative(values[0] - model(x), truth) < 1e-14
    assert relative(tangents[0] - truth, truth) < (1e-8 if name == "difference" else 1e-13)


def test_fallbacks():
    x = smooth(1)
    for module, method in (
        (nn.Tanh(), "forward"),
        (Custom(), "double backward"),
        (Opaque(), "difference"),
        (Beside(), "difference"),
    ):
        row = P.audit(nn.Sequential(nn.Identity(), module), x, rotation(accuracy=8))["1"]
        assert row.method == method and row.interior.max() < 1e-3


def test_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(), nn.Sequential()
    ).double()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    x = smooth(1)
    kept = x.clone()
    P.audit(model, x, "rotation")
    P.equivariance_error(model, x, "rotation", 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()] and torch.equal(x, kept)
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError):
        P.audit(nn.Sequential(model, nn.Unfold(3)), x, "rotation")
    assert not any(m._forward_pre_hooks for m in model.modules())


LAYERS = [
    nn.Conv2d(1, 1, 3, stride=2, padding=1),
    nn.Conv2d(1, 1, 4, stride=2, padding=1),
    nn.Conv2d(1, 1, 3, stride=3),
    nn.Conv2d(1, 1, 3, padding="same", dilation=2),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AdaptiveAvgPool2d(16),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(size=(95, 95), mode="bilinear", align_corners=True),
    nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1),
    nn.ConvTranspose2d(1, 1, 3, stride=1),
    nn.ZeroPad2d((1, 3, 5, 0)),
    lc.LConv2d(1, 1, "translation", stride=2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_grids_are_followed(layer):
    """The coordinates themselves go through a layer that averages: they arrive where the placement says."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        if isinstance(layer, lc.LConv2d):
            layer.weight[1:] = 0
            layer.bias.zero_()
        elif getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
    size = 48
    index = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(index, index, indexing="ij")
    with torch.no_grad(), Follower((size, size)) as follower:
        ones, rows, columns = (layer(f[None, None]) for f in (torch.ones_like(y), y, x))
        follower.saw_module(layer, (size, size), tuple(rows.shape[2:]))
    placement = follower.known[tuple(rows.shape[2:])]
    middle = (0, 0, slice(8, -8), slice(8, -8)) if min(rows.shape[2:]) > 17 else (0, 0, slice(4, -4), slice(4, -4))
    for axis, found in enumerate((rows, columns)):
        where = (found / ones)[middle]
        j = torch.arange(found.shape[2 + axis], dtype=torch.float64)[middle[2 + axis]]
        expected = placement.scale[axis] * j + placement.offset[axis]
        expected = expected[:, None] if axis == 0 else expected[None]
        if isinstance(layer, nn.ConvTranspose2d) and layer.stride[0] > 1:  # even and odd points see other taps
            assert abs((where - expected).mean()) < 1e-10 and (where - expected).abs().max() < 0.51
        else:
            assert (where - expected).abs().max() < 1e-10


def test_generators_on_strided_grids():
    """Averages over aligned windows commute with rotations about the same centre, to the order of the window."""
    errors = []
    for size, width in ((48, 4.0), (96, 8.0)):
        x = packets((size, size), width=width, spread=width)
        model = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3, stride=2, padding=1))
        found = P.audit(model.double(), x, rotation(accuracy=8))
        errors.append([found[path].interior.max().item() for path in ("0", "1")])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < coarse / 3 and fine < 1e-2


def test_strided_layers_inside_containers():
    """Strided L-convs call no function of PyTorch; their grids are known wherever they stand."""
    model = nn.Sequential(
        nn.Sequential(lc.LConv2d(1, 2, "translation", stride=2), nn.Tanh()), lc.LConv2d(2, 1, stride=2)
    )
    found = P.audit(model.double(), smooth(1), rotation(accuracy=8))
    assert found["0"].grid == (24, 24) and found[""].grid == (12, 12)
    assert P.equivariance_error(model, smooth(1), rotation(accuracy=8), 0.1).shape == (1,)


def test_field_on_a_placed_grid():
    """v(s j + o) / s, by hand, with another stride on each axis."""
    root, spatial = (24, 30), (8, 15)
    group = lc.AffineGenerators(torch.randn(2, 2, 2).double(), torch.randn(2, 2).double(), accuracy=4)
    where = Placement((3.0, 2.0), (1.0, 0.5))
    here = placed(group, root, spatial, where)
    on_root, found = (vector_fields(g, coordinates(s, group.matrix)) for g, s in ((group, root), (here, spatial)))
    for j in ((0, 0), (5, 11), (7, 14)):
        i = [s * k + o for s, k, o in zip(where.scale, j, where.offset, strict=True)]
        whole = [int(k) for k in i]
        value = on_root[:, :, whole[0], whole[1]].clone()  # affine: one step along axis 1 gives the half
        value += (i[1] - whole[1]) * (on_root[:, :, 0, 1] - on_root[:, :, 0, 0])
        expected = value / torch.tensor(where.scale, dtype=torch.float64)
        assert torch.allclose(found[:, :, j[0], j[1]], expected, atol=1e-12)
    assert here.accuracy == 4


def test_vectors_are_invariant_and_several_tensors():
    class Skip(nn.Module):
        def forward(self, a, b=None):
            return {"sum": a + b, "both": torch.cat([a, b], 1)}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.skip, self.pool, self.head = Skip(), nn.AdaptiveAvgPool2d(1), nn.Linear(2, 3)

        def forward(self, x):
            both = self.skip(x, b=x.square())["both"]
            return self.head(self.pool(both).flatten(1))

    found = P.audit(Model().double(), smooth(1), rotation(accuracy=8))
    assert found["skip"].interior.max() < 1e-3 and found[""].interior.max() < 1e-4 and found[""].grid == ()
    assert found["head"].interior.max() == 0 and "skip" in found.table()


def test_one_and_three_dimensions_and_other_generators(tmp_path):
    line = P.audit(nn.Conv1d(1, 2, 3, padding=1).double(), torch.randn(1, 1, 32).double(), "translation")
    assert line[""].interior.max() < 1e-12
    volume = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool3d(2))
    found = P.audit(volume, torch.randn(1, 1, 16, 16, 16), "rotation", margin=2)
    assert found["2"].grid == (8, 8, 8) and len(found.generators) == 3
    given = lc.FieldGenerators(torch.randn(1, 2, 24, 24, dtype=torch.float64))
    assert P.audit(nn.Tanh(), torch.randn(1, 1, 24, 24).double(), given)[""].grid == (24, 24)
    stencil = lc.StencilGenerators(torch.randn(1, 2, dtype=torch.float64), [[0, 1], [1, 0]])
    ring = nn.Conv2d(1, 1, 1, bias=False).double()
    assert P.audit(ring, torch.randn(1, 1, 24, 24).double(), stencil)[""].interior.max() < 1e-10
    picture = P.audit(net(), smooth(2), rotation()).picture(tmp_path / "audit.png")
    assert picture.stat().st_size > 1000


def test_finite_elements():
    """exp(tL) turns a picture; a group element is one number, every generator's is n_L."""
    x = smooth(1)
    model = net()[0:1]
    turn = P.equivariance_error(nn.Tanh(), x, rotation(accuracy=8), 0.3)
    assert turn.shape == (1,) and turn[0] < 1e-3
    both = P.equivariance_error(model, smooth(2), "se", torch.tensor([0.5, -0.2, 0.1]))
    assert both.dim() == 0
    matrix = rotation().to_dense((9, 9))[0]
    f = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    exact = (f.flatten(2) @ torch.linalg.matrix_exp(0.7 * matrix).T).unflatten(2, (9, 9))
    assert relative(P.exponential(rotation(), f, torch.tensor([0.7], dtype=torch.float64)) - exact, exact) < 1e-13
    dense = lc.DenseGenerators(matrix[None])
    assert relative(P.exponential(dense, f, torch.tensor([0.7], dtype=torch.float64)) - exact, exact) < 1e-13


def test_bad_input():
    x = torch.randn(1, 1, 24, 24)
    with pytest.raises(ValueError, match="expected 2 axes as x has"):
        P.audit(nn.Tanh(), x, lc.AffineGenerators.named("rotation", 3))
    with pytest.raises(ValueError, match="expected 2 axes as x has"):
        P.equivariance_error(nn.Tanh(), x, lc.AffineGenerators.named("rotation", 3), 0.1)
    with pytest.raises(TypeError, match="model: expected"):
        P.audit(torch.tanh, x, "rotation")
    with pytest.raises(TypeError, match="x: expected"):
        P.audit(nn.Tanh(), torch.ones(1, 1, 8, 8, dtype=torch.int64), "rotation")
    with pytest.raises(TypeError, match="expected a tensor as result, got dict"):
        P.equivariance_error(lambda f: {"out": f}, x, "se", 0.1)
    with pytest.raises(ValueError, match="t: expected"):
        P.equivariance_error(nn.Tanh(), x, "se", torch.ones(2))
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 22 * 22, 3))
    with pytest.raises(ValueError, match=r"2 \(Linear\) takes vectors that flatten made of a grid \(22, 22\)"):
        P.audit(flat, x, "rotation")

    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    with pytest.raises(ValueError, match=r"0.0 \(Tokens\) gives a tensor"):
        P.audit(nn.Sequential(nn.Sequential(Tokens(), nn.Linear(1, 2)), nn.Flatten()), x, "rotation")

    class Folded(nn.Module):
        def forward(self, x):
            return x.unflatten(3, (2, 12)).sum(3)

    with pytest.raises(ValueError, match=r"down \(Folded\) gives a grid \(24, 12\).*grids="):
        model = nn.Sequential()
        model.add_module("down", Folded())
        model.add_module("end", nn.AdaptiveAvgPool2d(1))
        model.add_module("flat", nn.Flatten())
        P.audit(model, x, "rotation")
    found = P.audit(model, x, "rotation", grids={"down": ((1, 2), (0, 0.5))})
    assert found["down"].grid == (24, 12)
    with pytest.raises(ValueError, match="only affine generators can be followed"):
        P.audit(nn.MaxPool2d(2), x, lc.FieldGenerators(torch.randn(1, 2, 24, 24)))
