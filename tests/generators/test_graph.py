"""Generators and layers on graphs, against matrices, against a GCN, and against each other."""

import pytest
import torch
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
