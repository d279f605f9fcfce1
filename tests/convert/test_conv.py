"""Convolutions and graph convolutions as L-convs, and back: outputs, all gradients, sizes, errors."""

import itertools
import random

import pytest
import torch
from problems import relative_rms
from torch import nn

import lconv_fast as lc
from lconv_fast.convert.frame import CONVS, Kernel

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}


def draw(rng: random.Random):
    """A convolution and an input that it takes, or None."""
    ndim = rng.choice([1, 2, 3])
    sizes = tuple(rng.choice([1, 2, 3, 4, 5]) for _ in range(ndim))
    dilation = tuple(rng.choice([1, 1, 2, 3]) for _ in range(ndim))
    stride = tuple(rng.choice([1, 1, 2, 3]) for _ in range(ndim))
    numbers = tuple(rng.randint(0, 4) for _ in range(ndim))
    padding = rng.choice(["same", "valid", numbers, tuple(d * (k - 1) // 2 for d, k in zip(dilation, sizes))])  # noqa: B905
    dtype = rng.choice([torch.float32, torch.float64])
    conv = CONVS[ndim](
        4,
        6,
        sizes,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=rng.choice([1, 2]),
        bias=rng.random() < 0.5,
        padding_mode=rng.choice(["zeros", "circular", "replicate", "reflect"]),
        dtype=dtype,
    )
    x = torch.randn(2, 4, *(rng.randint(4, 9) for _ in range(ndim)), dtype=dtype)
    try:
        conv(x)
    except (RuntimeError, ValueError):  # kernels larger than the padded input
        return None
    return conv, x


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("seed", range(8))
def test_equals_convolution(seed):
    rng = random.Random(seed)
    cases = [case for case in (draw(rng) for _ in range(15)) if case]
    for conv, x in cases:
        layer, tolerance = lc.convert.from_conv(conv), TOLERANCE[x.dtype]
        x.requires_grad_()
        y, z = conv(x), layer(x)
        assert relative_rms(z, y) < tolerance, conv
        u = torch.randn_like(y)
        wanted = torch.autograd.grad(y, [x, *conv.parameters()], u)
        found = torch.autograd.grad(z, [x, *layer.parameters()], u)
        assert relative_rms(found[0], wanted[0]) < tolerance
        # Rows of the weight's gradient: the tap at the point, then the others in row-major order.
        kernel = Kernel.of(conv)
        offsets = kernel.offsets(layer.frame.center if hasattr(layer, "frame") else kernel.first())
        first = offsets.index((0,) * kernel.ndim)
        order = [first, *(k for k in range(len(offsets)) if k != first)]
        gradients = dict(zip([n for n, _ in layer.named_parameters()], found[1:], strict=True))
        assert relative_rms(gradients["weight"][: len(offsets)], wanted[1].flatten(2).movedim(2, 0)[order]) < tolerance
        if conv.bias is not None:
            assert relative_rms(gradients["bias"], wanted[2]) < tolerance
        assert relative_rms(layer(x[0]), y[0]) < tolerance  # unbatched
        back = lc.convert.to_conv(layer)
        assert relative_rms(back(x), y) < tolerance
        if max(kernel.size) > 1:
            assert back.weight.shape == conv.weight.shape


def test_natural_padding_needs_no_frame():
    for conv in (nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 5, padding=4, dilation=2, stride=2)):
        assert type(lc.convert.from_conv(conv)) is lc.LConv2d
    assert type(lc.convert.from_conv(nn.Conv1d(2, 3, 4, padding="same"))) is lc.LConv1d


def test_flags_are_kept():
    conv = nn.Conv2d(2, 3, 3).eval()
    conv.weight.requires_grad_(False)
    layer = lc.convert.from_conv(conv)
    assert not layer.training and not layer.weight.requires_grad and layer.bias.requires_grad
    state = torch.random.get_rng_state()
    lc.convert.from_conv(conv)
    assert torch.equal(torch.random.get_rng_state(), state)


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "conv, words",
    [
        (nn.Linear(2, 2), "none of the three"),
        (nn.ConvTranspose2d(2, 2, 3), "none of the three"),
        (nn.LazyConv2d(2, 3), "first input"),
        (Own(2, 2, 3), "forward of its own"),
        (nn.Conv2d(2, 2, 3, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_is_no_convolution(conv, words):
    with pytest.raises(TypeError, match=words):
        lc.convert.from_conv(conv)


def test_input_smaller_than_kernel():
    layer = lc.convert.from_conv(nn.Conv2d(2, 3, 5))
    with pytest.raises(ValueError, match=r"FramedLConv2d.*\(1, 2, 4, 9\)"):
        layer(torch.randn(1, 2, 4, 9))
    with pytest.raises(ValueError, match="2 channels"):
        layer(torch.randn(1, 3, 9, 9))


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_constant_generators_to_conv(mode):
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    taps = [[0, 0], [1, -2], [-1, 1], [0, 2]]
    bases = [
        lc.StencilGenerators(torch.randn(2, 4), taps, padding_mode=mode),
        lc.AffineGenerators.named("translation", 2, coordinate_scale=1.0, padding_mode=mode, accuracy=4),
    ]
    if mode != "replicate":
        bases += [generators.transpose() for generators in bases]
    for generators, stride in itertools.product(bases, (1, 2)):
        layer = lc.LConv2d(3, 4, generators, stride=stride, dtype=torch.float64)
        assert relative_rms(lc.convert.to_conv(layer)(x), layer(x)) < 1e-13


def test_generators_that_depend_on_x():
    with pytest.raises(ValueError, match="constant generators"):
        lc.convert.to_conv(lc.LConv2d(2, 2, "rotation"))
    transposed = lc.StencilGenerators(torch.ones(1, 1), [[0, 1]], padding_mode="reflect").transpose()
    with pytest.raises(ValueError, match="constant generators"):
        lc.convert.to_conv(lc.LConv2d(2, 2, transposed))


@pytest.mark.parametrize("size", [7, 12])
def test_exponential_of_the_band_limited_generator_is_the_shift(size):
    """f(n + z) = sum_m g(z)[n, m] f(m), g(z)[n, m] = 1/d (1 + 2 sum_p cos(2 pi p / d (n + z - m))), 0 < p < d / 2, and
    L = dg/dz at 0: MATH section 2. Even sizes have one mode more, which no real generator moves."""
    index = torch.arange(size, dtype=torch.float64)
    frequency = 2 * torch.pi / size * torch.arange(1, (size + 1) // 2, dtype=torch.float64).reshape(-1, 1, 1)
    angle = frequency * (index[:, None] - index)
    band = (1 + 2 * angle.cos().sum(0)) / size  # g(0): the identity on these modes
    generator = -2 / size * (frequency * angle.sin()).sum(0)
    shift = torch.eye(size, dtype=torch.float64).roll(1, 1)  # (S f)(n) = f(n + 1)
    assert (torch.matrix_exp(generator) @ band - shift @ band).abs().max() < 1e-12
    if size % 2:
        assert (torch.matrix_exp(generator) - shift).abs().max() < 1e-12
    layer = lc.RecursiveLConv(lc.DenseGenerators(generator.unsqueeze(0)), steps=64, t=1.0, order=8)
    f = band.unsqueeze(1)  # (N, 1, size): the band's rows are its columns
    assert (layer(f).squeeze(1) - (shift @ band).T).abs().max() < 1e-12


class Graph(nn.Module):
    """The attributes of torch_geometric's GCNConv."""

    def __init__(self, ins, outs, improved=False, add_self_loops=True, normalize=True):
        super().__init__()
        self.lin, self.bias = nn.Linear(ins, outs, bias=False), nn.Parameter(torch.randn(outs))
        self.improved, self.add_self_loops, self.normalize = improved, add_self_loops, normalize


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_gcn_against_dense(dtype, tolerance):
    nodes = 9
    edges = torch.tensor([[0, 1, 2, 3, 3, 5, 5, 0], [1, 2, 0, 3, 4, 6, 6, 2]])  # a loop, a double edge, node 8 alone
    weight = torch.rand(8, dtype=dtype) + 0.5
    conv, x = Graph(3, 4).to(dtype), torch.randn(nodes, 3, dtype=dtype)
    a = torch.zeros(nodes, nodes, dtype=dtype)
    for (source, target), w in zip(edges.T.tolist(), weight, strict=True):
        a[target, source] += w
    for node in range(nodes):
        a[node, node] = a[node, node] or 1.0
    root = a.sum(1).rsqrt()
    wanted = root[:, None] * a * root @ x @ conv.lin.weight.T + conv.bias
    assert relative_rms(lc.convert.from_gcn(conv, edges, nodes, weight)(x), wanted) < tolerance


def test_gcn_against_torch_geometric():
    GCNConv = pytest.importorskip(
        "torch_geometric.nn", reason="compared with GCNConv, where torch_geometric is installed"
    ).GCNConv
    edges = torch.randint(0, 28, (2, 90))
    edges[:, :3] = 4
    x, weight = torch.randn(30, 5, dtype=torch.float64), torch.rand(90, dtype=torch.float64)
    for keywords in ({}, {"improved": True}, {"add_self_loops": False}, {"normalize": False}, {"bias": False}):
        conv = GCNConv(5, 7, **keywords).double()
        for w in (None, weight):
            layer = lc.convert.from_gcn(conv, edges, 30, w)
            assert relative_rms(layer(x), conv(x, edges, w)) < 1e-13, keywords


def test_gcn_errors():
    with pytest.raises(TypeError, match="GCNConv"):
        lc.convert.from_gcn(nn.Linear(2, 2), torch.zeros(2, 1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="nodes 0 to 2"):
        lc.convert.from_gcn(Graph(2, 2), torch.tensor([[0], [3]]), 3)
