"""The operators on graphs, of the processor and (in Triton's interpreter) of GPUs, against sums over edges; the layer's
derivatives, and special cases."""

import itertools

import pytest
import torch
from problems import TOLERANCE, relative_rms
from torch.autograd import gradcheck, gradgradcheck

import lconv_fast as lc
from lconv_fast.ops.graph import Graph

OPS = torch.ops.lconv_fast
PLACES = ["cpu", "gpu"]


def operators(place):
    if place == "cpu":
        return OPS.graph_apply, OPS.graph_gram, OPS.graph_correlate
    import gpu_interpreter  # noqa: F401  chooses the interpreter

    from lconv_fast.ops.gpu.graph import apply, correlate, gram

    return apply.apply, gram.gram, correlate.correlate


def matrices(index, s, nodes, incidence):
    """L_i (n_L, nodes, nodes), and its derivative in s: (E, nodes, nodes)."""
    unit = torch.zeros(index.shape[1], nodes, nodes, dtype=torch.float64)
    for e, (source, target) in enumerate(index.t().tolist()):
        unit[e, target, source] += 1
        if incidence:
            unit[e, target, target] -= 1
    return torch.einsum("ie,exy->ixy", s, unit), unit


def blocks(weight, groups):
    """W_r (n_L + 1, C_out, C_in) with zeros between groups."""
    return torch.stack([torch.block_diag(*w.chunk(groups)) for w in weight])


def drawn(count, groups, incidence, ins, outs, dtype, nodes=37, edges=190, batch=2):
    # Edges twice, loops, a node with many edges, nodes with none.
    index = torch.randint(nodes - 5, (2, edges))
    index[1, : edges // 4] = 3
    s = torch.randn(count, edges).to(dtype if dtype == torch.float64 else torch.float32)
    f, g = (torch.randn(batch, nodes, c * groups).to(dtype).transpose(1, 2) for c in (ins, outs))
    w = (torch.randn(count + 1, outs * groups, ins) / ins**0.5).to(dtype)
    graph = Graph.of(index, nodes, incidence)._replace(groups=groups)
    return index, s, f, w, g, graph


CASES = [
    (1, 1, False, 64, 64, torch.float32),
    (3, 1, True, 5, 7, torch.float64),
    (6, 2, True, 20, 17, torch.float32),
    (2, 3, False, 33, 4, torch.float64),
    (9, 1, False, 70, 50, torch.float32),
    (4, 1, True, 12, 24, torch.bfloat16),
    (7, 1, False, 90, 40, torch.float16),
]


@pytest.mark.parametrize(
    ("case", "place"), [(c, p) for p in PLACES for c in (CASES if p == "cpu" else CASES[1:4])], ids=str
)
def test_operators(case, place):
    count, groups, incidence, ins, outs, dtype = case
    edges = 190
    if place == "gpu":  # little work for the interpreter
        pytest.importorskip(
            "triton", reason="the GPU kernels need the package triton, which this platform may not have"
        )
        count, ins, outs, edges = min(count, 2), min(ins, 18), min(outs, 17), 50
        dtype = torch.float16 if count == 2 and groups == 2 else dtype
    index, s, f, w, g, graph = drawn(count, groups, incidence, ins, outs, dtype, edges=edges)
    apply, gram, correlate = operators(place)
    bias = torch.randn(outs * groups).to(dtype)
    L, unit = matrices(index, s.double(), 37, incidence)
    W, F, U = blocks(w.double(), groups), f.double(), g.double()
    every = torch.cat([torch.eye(37, dtype=torch.float64).unsqueeze(0), L])
    tolerance = TOLERANCE[dtype]
    y = torch.einsum("rxy,ncy,roc->nox", every, F, W) + bias.double()[:, None]
    assert relative_rms(apply(f, w, s, bias, *graph, True, False), y) < tolerance
    for identity in (True, False):
        first = every if identity else every * torch.tensor([0.0, *[1.0] * count]).reshape(-1, 1, 1)
        back = torch.einsum("rxy,nox,roc->ncy", first, U, W)
        dw = torch.einsum("rxy,ncy,nox->roc", first, F, U)
        dw = torch.stack([torch.cat([b for b in blocked]) for blocked in _diagonal(dw, groups)])
        assert relative_rms(apply(g, w, s, None, *graph, identity, True), back) < tolerance
        assert relative_rms(gram(f, g, s, *graph, identity), dw) < tolerance
        if place == "cpu":
            for found, expected in zip(OPS.graph_backward(g, f, w, s, *graph, identity), (back, dw), strict=True):
                assert relative_rms(found, expected) < tolerance
    ds = torch.einsum("exy,ncy,roc,nox->re", unit, F, W[1:], U)
    assert relative_rms(correlate(f, w, g, *graph), ds) < tolerance


def _diagonal(dw, groups):
    return [[part.chunk(groups, 1)[k] for k, part in enumerate(r.chunk(groups))] for r in dw]


@pytest.mark.parametrize(("incidence", "transposed"), [*itertools.product([False, True], repeat=2)])
def test_derivatives_of_the_layer(incidence, transposed):
    """Backward and forward mode, second order, mapped over examples; edge weights too."""
    index = torch.randint(5, (2, 11))
    generators = lc.GraphGenerators(
        index, torch.randn(2, 11, dtype=torch.float64), 6, incidence=incidence, learnable=True
    )
    generators = generators.transpose() if transposed else generators

    def layer(f, w, b, s):
        return generators.mix(s, f, w, b)

    f, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 6, 2), (3, 3, 2), (3,)))
    inputs = (f, w, b, generators.edge_weight)
    assert gradcheck(layer, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(layer, inputs)
    mapped = torch.vmap(layer, in_dims=(None, 0, None, None))(f, torch.stack([w, 2 * w]), b, inputs[3])
    assert torch.allclose(mapped[1], layer(f, 2 * w, b, inputs[3]))


def test_opcheck():
    _, s, f, w, g, graph = drawn(2, 1, True, 3, 4, torch.float64, batch=1)
    for t in (s, w):
        t.requires_grad_()
    torch.library.opcheck(OPS.graph_apply.default, (f, w, s, None, *graph, True, False))
    torch.library.opcheck(OPS.graph_gram.default, (f, g, s, *graph, True))
    torch.library.opcheck(OPS.graph_correlate.default, (f, w, g, *graph))
    torch.library.opcheck(OPS.graph_backward.default, (g, f, w, s, *graph, True))


def test_graph_that_names_what_is_not_there():
    _, s, f, w, g, graph = drawn(2, 1, False, 3, 4, torch.float64)
    for name, at in (("sources", 0), ("in_edges", 1), ("sources", -1)):
        wrong = getattr(graph, name).clone()
        wrong[at] = -1 if at else 37000
        with pytest.raises(RuntimeError, match="nodes or edges that do not exist"):
            OPS.graph_apply(f, w, s, None, *graph._replace(**{name: wrong}), True, False)
        with pytest.raises(RuntimeError, match="nodes or edges that do not exist"):
            OPS.graph_correlate(f, w, g, *graph._replace(**{name: wrong}))
    with pytest.raises(RuntimeError, match="starts that rise"):
        OPS.graph_apply(f, w, s, None, *graph._replace(starts=graph.starts.flip(0)), True, False)
    with pytest.raises(RuntimeError, match="does not fit the other arguments"):
        OPS.graph_apply(f[:, :2], w, s, None, *graph, True, False)


def test_constants_give_exactly_nothing_and_infinities_stay_where_they_are():
    _, s, f, w, _, graph = drawn(2, 1, True, 8, 8, torch.float32)
    constant = torch.randn(1, 8, 1).expand(2, 8, 37).transpose(1, 2).contiguous().transpose(1, 2)
    assert not OPS.graph_apply(constant, w, s, None, *graph, False, False).any()
    f[0, :, 36] = float("inf")  # without edges
    y = OPS.graph_apply(f, w, s, None, *graph, True, False)
    assert y[0, :, :36].isfinite().all() and y[1].isfinite().all() and not y[0, :, 36].isfinite().any()


def test_few_nodes_many_samples_and_any_layout():
    """Bits for any number of threads; data laid out channels first."""
    generators = lc.GraphGenerators(torch.randint(30, (2, 99)), torch.randn(2, 99), 30, learnable=True)
    layer = lc.LConvGraph(9, 7, generators)
    f = torch.randn(70, 9, 30).transpose(1, 2)
    assert torch.equal(layer(f), layer(f.contiguous()))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(torch.autograd.grad(layer(f).pow(2).sum(), list(layer.parameters())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_follow_the_edges():
    """Edges that are loaded, or changed in place, are those that the layer uses; bad ones are refused."""
    layer = lc.LConvGraph(2, 2, lc.GraphGenerators(torch.tensor([[0, 1], [1, 2]]), torch.ones(2), 3))
    other = lc.LConvGraph(2, 2, lc.GraphGenerators(torch.tensor([[2, 1], [0, 0]]), torch.ones(2), 3))
    layer.load_state_dict(other.state_dict())
    f = torch.randn(3, 2)
    assert torch.equal(layer(f), other(f))
    layer.generators.edge_index[0, 0] = 7
    with pytest.raises(ValueError, match="edge_index: expected nodes 0 to 2, got 0 to 7"):
        layer(f)


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    _, s, f, w, g, graph = drawn(2, 1, False, 5, 4, torch.float32)
    with FlopCounterMode(display=False) as counter:
        OPS.graph_apply(f, w, s, None, *graph, True, False)
        OPS.graph_backward(g, f, w, s, *graph, True)
        OPS.graph_correlate(f, w, g, *graph)
    assert counter.get_total_flops() == 2 * 2 * 37 * 5 * 4 * (3 + 3 + 3 + 2)
