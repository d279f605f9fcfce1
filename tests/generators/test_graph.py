"""Generators and layers on graphs, against matrices, against a GCN, and against each other."""

import pytest
import torch
from problems import problems
from torch.autograd import gradcheck, gradgradcheck

import lconv_fast as lc


def random_graph(nodes=7, edges=23, count=2, seed=0, **keywords):
    random = torch.Generator().manual_seed(seed)
    index = torch.randint(nodes, (2, edges), generator=random)
    weight = torch.randn(count, edges, generator=random, dtype=torch.float64)
    return lc.GraphGenerators(index, weight, nodes, **keywords)


def test_matrices_and_transposes():
    """Repeated edges add up; the transpose is the matrix's."""
    generators = random_graph()
    matrix = torch.zeros(2, 7, 7, dtype=torch.float64)
    for e, (source, target) in enumerate(generators.edge_index.t().tolist()):
        matrix[:, target, source] += generators.edge_weight[:, e]
    assert torch.allclose(generators.to_dense((7,)), matrix)
    assert torch.allclose(generators.transpose().to_dense((7,)), matrix.transpose(1, 2))
    f = torch.randn(3, 7, 5, dtype=torch.float64)
    assert torch.allclose(generators(f), torch.einsum("ixy,nyc->nixc", matrix, f))


@pytest.mark.parametrize(("ins", "outs"), [(3, 5), (5, 3)])
def test_layer_is_its_formula(ins, outs):
    generators = random_graph()
    layer = lc.LConvGraph(ins, outs, generators, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    f = torch.randn(2, 7, ins, dtype=torch.float64)
    expected = f @ layer.weight[0].T + layer.bias
    expected = expected + torch.einsum("nixc,ioc->nxo", generators(f), layer.weight[1:])
    assert torch.allclose(layer(f), expected)
    assert torch.allclose(layer(f[0]), expected[0])


def test_gcn():
    """With L = D^-1/2 A D^-1/2 and W0 = 0, the layer of Kipf and Welling; renaming the nodes renames the result."""
    nodes = 6
    adjacency = torch.tensor(
        [
            [1.0 if (i - j) % nodes in (0, 1, nodes - 1) or {i, j} == {0, 3} else 0.0 for j in range(nodes)]
            for i in range(nodes)
        ]
    )
    scale = adjacency.sum(1).rsqrt()
    matrix = scale[:, None] * adjacency * scale
    index = matrix.nonzero().t()
    layer = lc.LConvGraph(4, 3, lc.GraphGenerators(index.flip(0), matrix[index[0], index[1]], nodes), bias=False)
    with torch.no_grad():
        layer.weight[0].zero_()
    f = torch.randn(nodes, 4)
    assert torch.allclose(layer(f), matrix @ f @ layer.weight[1].T, atol=1e-6)
    order = torch.randperm(nodes)
    renamed = torch.argsort(order)
    layer.generators = lc.GraphGenerators(renamed[index.flip(0)], matrix[index[0], index[1]], nodes)
    assert torch.allclose(layer(f[order]), (matrix @ f @ layer.weight[1].T)[order], atol=1e-6)


def test_derivatives():
    generators = random_graph(learnable=True)
    layer = lc.LConvGraph(2, 3, generators, dtype=torch.float64)
    f = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    inputs = (f, layer.weight, layer.bias, generators.edge_weight)
    assert gradcheck(lambda *_: layer(f), inputs) and gradgradcheck(lambda *_: layer(f), inputs)


def test_variance_is_kept():
    generators = random_graph(nodes=200, edges=3000, count=3)
    layer = lc.LConvGraph(64, 64, generators, dtype=torch.float64)
    assert 0.8 < layer(torch.randn(8, 200, 64, dtype=torch.float64)).var().item() < 1.25


def test_many_half_precision_edges_are_summed_in_float32():
    nodes, edges = 4, 6000
    index = torch.randint(nodes, (2, edges))
    weight = torch.rand(edges, dtype=torch.bfloat16)
    generators = lc.GraphGenerators(index, weight, nodes)
    f = torch.rand(1, nodes, 3, dtype=torch.bfloat16)
    expected = lc.GraphGenerators(index, weight.double(), nodes)(f.double())
    assert ((generators(f).double() - expected).norm() / expected.norm()) < 3e-3


@pytest.mark.parametrize("incidence", [False, True])
@pytest.mark.parametrize(("ins", "outs"), [(24, 40), (40, 24)])
def test_bit_identical_for_any_number_of_threads(ins, outs, incidence):
    generators = random_graph(3000, 20000, incidence=incidence, learnable=True).float()
    layer = lc.LConvGraph(ins, outs, generators)
    f = torch.randn(2, 3000, ins, requires_grad=True)

    def results():
        y = layer(f)
        first = torch.autograd.grad(y.square().sum(), [f, *layer.parameters()], create_graph=True)
        return [y, *first, *torch.autograd.grad(first[0].square().sum(), [f, layer.weight])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        reference = results()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert [torch.equal(a, b) for a, b in zip(results(), reference, strict=True)] == [True] * len(reference)
    finally:
        torch.set_num_threads(threads)


def test_autocast():
    """As nn.Linear: results in bfloat16, from bfloat16 and float32 alike, parameters and gradients in float32."""
    layer = lc.LConvGraph(5, 4, random_graph(learnable=True).float())
    f = torch.randn(2, 7, 5)
    for x in (f, f.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16 and ((y - layer(f)).norm() / layer(f).norm()) < 1e-2
        y.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def adjacency(index, nodes, weight=None):
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    for e, (source, target) in enumerate(index.t().tolist()):
        matrix[target, source] += 1.0 if weight is None else weight[e]
    return matrix


def normalized(matrix, left, right):
    degree = matrix.sum(1)
    power = [torch.where(degree > 0, degree.clamp_min(1e-300).pow(p), 0.0 if p else 1.0) for p in (left, right)]
    return power[0][:, None] * matrix * power[1]


# A loop, an edge twice, node 4 without an edge that enters, node 5 alone.
INDEX = torch.tensor([[0, 1, 1, 2, 3, 3, 0, 0, 4], [1, 0, 2, 1, 3, 0, 3, 3, 1]])


@pytest.mark.parametrize("weighted", [False, True])
def test_from_adjacency(weighted):
    weight = torch.rand(9, dtype=torch.float64) if weighted else None
    one = {"edge_weight": torch.ones(9, dtype=torch.float64) if weight is None else weight}
    matrix = adjacency(INDEX, 6, weight)
    make = lc.GraphGenerators.from_adjacency
    assert torch.allclose(make(INDEX, 6, **one).to_dense((6,))[0], matrix)
    assert torch.allclose(make(INDEX, 6, "rw", **one).to_dense((6,))[0], normalized(matrix, -1, 0))
    plain = make(INDEX, 6, "gcn", self_loops=False, **one)
    assert torch.allclose(plain.to_dense((6,))[0], normalized(matrix, -0.5, -0.5))
    loops = matrix + torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]).double())  # node 3 has a loop
    assert torch.allclose(make(INDEX, 6, "gcn", **one).to_dense((6,))[0], normalized(loops, -0.5, -0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ins", "outs"), [(3, 5), (5, 3)])
def test_gcn_formula(ins, outs, dtype):
    """y = D^-1/2 (A + I) D^-1/2 f W^T + b, written out."""
    nodes = 40
    upper = torch.randint(nodes, (2, 100))
    index = torch.cat([upper, upper.flip(0)], 1)
    index = index[:, index[0] != index[1]]
    matrix = normalized(adjacency(index, nodes) + torch.eye(nodes).double(), -0.5, -0.5)
    weight = {"edge_weight": torch.ones(index.shape[1], dtype=dtype)}
    layer = lc.LConvGraph(ins, outs, lc.GraphGenerators.from_adjacency(index, nodes, "gcn", **weight), dtype=dtype)
    with torch.no_grad():
        layer.weight[0].zero_()
        layer.bias.normal_()
    f = torch.randn(nodes, ins, dtype=dtype)
    expected = matrix @ f.double() @ layer.weight[1].double().T + layer.bias.double()
    assert (layer(f) - expected).abs().max() < (1e-12 if dtype == torch.float64 else 1e-6) * expected.abs().max()


@pytest.mark.parametrize("weighted", [False, True])
def test_gcn_against_pytorch_geometric(weighted):
    geometric = pytest.importorskip(
        "torch_geometric.nn", reason="compared with GCNConv, where torch_geometric is installed"
    )
    weight = torch.rand(9, dtype=torch.float64) if weighted else torch.ones(9, dtype=torch.float64)
    conv = geometric.GCNConv(3, 4).double()
    generators = lc.GraphGenerators.from_adjacency(INDEX[:, 1:], 6, "gcn", edge_weight=weight[1:])
    layer = lc.LConvGraph(3, 4, generators, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0].zero_()
        layer.weight[1].copy_(conv.lin.weight)
        layer.bias.copy_(conv.bias)
    f = torch.randn(6, 3, dtype=torch.float64)
    assert (layer(f) - conv(f, INDEX[:, 1:], weight[1:])).abs().max() < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_gcn_with_gradients_and_second_derivatives(dtype, tolerance):
    """from_gcn on a random graph: outputs, gradients, and gradients of these."""
    geometric = pytest.importorskip(
        "torch_geometric.nn", reason="compared with GCNConv, where torch_geometric is installed"
    )
    index, weight = torch.randint(300, (2, 2400)), torch.rand(2400, dtype=dtype)
    conv = geometric.GCNConv(64, 32).to(dtype)
    torch.nn.init.normal_(conv.bias)
    layer = lc.convert.from_gcn(conv, index, 300, weight)
    f = torch.randn(300, 64, dtype=dtype, requires_grad=True)
    results = []
    for run, w in ((lambda x: conv(x, index, weight), conv.lin.weight), (layer, layer.weight)):
        y = run(f)
        first = torch.autograd.grad(y.sin().sum(), [f, w], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [f, w])
        results.append([y, *(t if t.dim() == 2 else t[1] for t in (*first, *second))])
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("problem", [p for p in problems() if p.accuracy == 2], ids=str)
def test_from_grid(problem):
    generators = problem.make(problem.numbers())
    for g in (generators, generators.transpose()):
        graph = lc.GraphGenerators.from_grid(g, problem.grid)
        assert torch.allclose(graph.to_dense((problem.points,)), g.to_dense(problem.grid), rtol=1e-13, atol=1e-13)


def test_graphs_without_edges_and_nodes_without_edges():
    none = torch.zeros(2, 0, dtype=torch.long)
    for generators in (
        lc.GraphGenerators(none, torch.zeros(2, 0), 3),
        lc.GraphGenerators.from_adjacency(none, 3),
        lc.GraphGenerators.from_adjacency(none, 3, "rw"),
        lc.GraphGenerators(none, torch.zeros(1, 0), 3, incidence=True),
    ):
        layer = lc.LConvGraph(2, 4, generators)
        f = torch.randn(1, 3, 2)
        assert torch.allclose(layer(f), f @ layer.weight[0].T + layer.bias, atol=1e-6)
        assert generators(f).count_nonzero() == 0 and generators.to_dense((3,)).count_nonzero() == 0
    alone = lc.GraphGenerators.from_adjacency(none, 3, "gcn")  # loops alone
    assert torch.equal(alone.to_dense((3,))[0], torch.eye(3))


EDGE = torch.tensor([[0], [1]])


def layer():
    return lc.LConvGraph(2, 3, random_graph(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lc.GraphGenerators(torch.zeros(2, 3), torch.ones(3), 4), TypeError, "edge_index: expected a tensor"),
        (lambda: lc.GraphGenerators(EDGE.t(), torch.ones(2), 4), ValueError, "edge_index: expected shape"),
        (lambda: lc.GraphGenerators(4 * EDGE, torch.ones(1), 4), ValueError, "nodes 0 to 3, got 0 to 4"),
        (lambda: lc.GraphGenerators(EDGE, torch.ones(2), 4), ValueError, "expected 1 edges, got 2"),
        (lambda: lc.GraphGenerators(-EDGE, torch.ones(1), 4), ValueError, "nodes 0 to 3, got -1 to 0"),
        (lambda: lc.GraphGenerators.from_adjacency(EDGE, 4, "sym"), ValueError, "one of 'gcn', 'rw', None, got 'sym'"),
        (lambda: lc.GraphGenerators.from_adjacency(EDGE[:, :0]), ValueError, "num_nodes: expected a number"),
        (lambda: lc.GraphGenerators.from_adjacency(EDGE, 1), ValueError, "expected nodes 0 to 0, got 0 to 1"),
        (
            lambda: lc.GraphGenerators.from_adjacency(EDGE, 2, "rw", edge_weight=torch.tensor([-1.0])),
            ValueError,
            "expected degrees of 0 or more, got -1.0",
        ),
        (
            lambda: lc.GraphGenerators.from_adjacency(EDGE, edge_weight=torch.ones(2)),
            ValueError,
            "edge_weight: expected 1 edges, got 2",
        ),
        (
            lambda: lc.GraphGenerators.from_grid(
                lc.AffineGenerators.named("se", accuracy="spectral", padding_mode="circular"), (4, 4)
            ),
            TypeError,
            "generators: expected generators of taps on a grid",
        ),
        (lambda: layer()(torch.ones(7, 3).double()), ValueError, "expected 2 channels"),
        (lambda: layer()(torch.ones(6, 2).double()), ValueError, "expected 7 nodes"),
        (lambda: layer()(torch.ones(7, 2)), TypeError, "weight: expected dtype"),
        (lambda: lc.LConv2d(2, 3, random_graph())(torch.ones(1, 2, 7, 1)), TypeError, "graphs go to LConvGraph"),
        (lambda: lc.LConvGraph(2, 3, "affine"), TypeError, "generators: expected GraphGenerators, got str"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
