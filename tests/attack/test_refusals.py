"""Arguments that are nothing an argument could be: the library's own sentence, never an error from below."""

import math
import traceback

import numpy as np
import pytest
import torch

import lconv_fast as lc

named, lconv = lc.generators.named, lc.functional.lconv
SE, X = named("se"), torch.randn(1, 2, 5, 6)
SPECTRAL = {"accuracy": "spectral", "padding_mode": "circular"}
EDGES, ONE = torch.zeros(2, 1).long(), torch.ones(1, 1)
GRAPH = lc.GraphGenerators(EDGES, torch.ones(1), 3)
DENSE = lc.DenseGenerators(torch.randn(1, 9, 9))
LOW_RANK = lc.LowRankGenerators(torch.randn(1, 9, 2), torch.randn(1, 2, 9))
FIRST = lc.DifferentialGenerators(ONE, [[1, 0]])
PRODUCTS = lc.ProductGenerators(named("translation"))
ON_GRIDS = {
    "affine": SE, "transposed": SE.transpose(), "reflect": named("se", padding_mode="reflect"),
    "spectral": named("se", **SPECTRAL), "differential": FIRST, "product": PRODUCTS,
}  # fmt: skip
ANY_SHAPE = {**ON_GRIDS, "dense": DENSE, "low rank": LOW_RANK, "graph": GRAPH}

CASES = {
    **{f"bias {value!r}": (lambda v=value: lc.LConv2d(2, 2, bias=v), "bias: expected True or False, got")
       for value in ("no", "", 2.5, [], torch.ones(2))},
    "bias of a graph's layer": (lambda: lc.LConvGraph(2, 2, GRAPH, bias="no"), "bias: expected True or False"),
    "factorized None": (lambda: lc.LConv2d(2, 2, factorized=None), "factorized: expected True or False, got None"),
    "factorized": (lambda: lc.LConv2d(2, 2, factorized="no"), "factorized: expected True or False, got 'no'"),
    **{f"learnable of {name}": (lambda n=name: lc.LConv2d(2, 2, n, learnable="no"), "learnable: expected True or False")
       for name in ("se", "laplacian", "unit_laplacian")},
    "a keyword of no generators": (lambda: lc.LConv2d(2, 2, "se", acuracy=4), "acuracy: no such keyword; .* accuracy,"),
    "a keyword of affine fields": (lambda: lc.LConv2d(2, 2, coordinate_scale=1.0), "coordinate_scale: no such keyword"),
    **{f"scale {value!r}": (lambda v=value: named("se", coordinate_scale=v), "coordinate_scale: expected a positive")
       for value in (1e-320, 1e200, "1", float("nan"))},
    "model of check": (lambda: lc.convert.check("model", None), "model: expected an nn.Module, got str"),
    "strength": (lambda: lc.convert.project(torch.nn.Identity(), "se", strength="half"), "strength: expected a number"),
    "where": (lambda: lc.convert.swap(torch.nn.Sequential(), where=2.5), "where: expected a function"),
    "margin": (lambda: lc.physics.audit(torch.nn.Identity(), X, "se", margin=-1), "margin: expected an integer from 0"),
    "grids": (lambda: lc.physics.audit(torch.nn.Identity(), X, "se", grids={"": 2}), "grids: expected {path"),
    "time": (lambda: lc.physics.equivariance_error(torch.nn.Identity(), X, SE, "1"), "t: expected a number from"),
    "phi": (lambda: lc.physics.gradient("phi"), "phi: expected a tensor"),
    "grid of a measure": (lambda: lc.physics.haar_measure(SE, "no"), "spatial: expected positive integers"),
    "exponential": (lambda: lc.physics.exponential("se", X, torch.ones(3)), "generators: expected a Generators object"),
    "recursions": (lambda: lc.discovery.recursive_lconv(X, torch.ones(1, 3), SE, 2.5), "recursions: expected a pos"),
    **{f"grid of {f.__name__}": (lambda f=f: f(SE, "no"), "spatial_shape: expected .*positive integers")
       for f in (lc.discovery.identify, lc.discovery.centralizer, lc.discovery.closed)},
    "signature": (lambda: lc.physics.stress_energy(torch.abs, X, signature=2.5), "signature: expected 2 numbers"),
    "scrambled images": (lambda: lc.discovery.unscramble("no", (2, 2)), "images: expected a tensor"),
    "scrambled shape": (lambda: lc.discovery.unscramble(torch.ones(9, 4), [2]), "shape: expected 2 positive integers"),
    **{f"accuracy {value!r}": (lambda v=value: lc.LConv2d(2, 2, accuracy=v), "accuracy: expected one of 2")
       for value in ([2], {2}, np.array([2, 4]), torch.tensor([2, 4]), None, 2.0, True, "4")},
    "accuracy of a field": (lambda: lc.FieldGenerators(torch.randn(1, 2, 4, 4), accuracy=[4]), "accuracy: expected"),
    "accuracy of derivatives": (lambda: lc.DifferentialGenerators(ONE, [[1, 0]], accuracy=(4,)), "accuracy: expected"),
    **{f"name {value!r}": (lambda v=value: named(v), "generators: expected one of") for value in (["se"], None, 2)},
    "affine name": (lambda: lc.AffineGenerators.named({"se"}), "generators: expected one of"),
    **{f"ndim {value!r}": (lambda v=value: named("se", v), "ndim: expected 1, 2 or 3 axes")
       for value in ([2], 2.0, True, torch.tensor([2, 2]), "2", 0)},
    **{f"scale {str(value)[:9]}": (lambda v=value: named("se", coordinate_scale=v), "coordinate_scale: expected")
       for value in (math.nan, math.inf, -1.0, 10**400, True, "1", [1.0])},
    "padding mode": (lambda: named("se", padding_mode=["zeros"]), "padding_mode: expected one of"),
    **{f"to_dense, {name}, {shape!r}": (lambda g=g, s=shape: g.to_dense(s), "spatial_shape: expected")
       for name, g in ANY_SHAPE.items() for shape in ((0, 3), (-3, -3), 9, "33", None, (3.0, 3.0), (True, 9), ())},
    **{f"no points, {name}": (lambda g=g: g(torch.randn(1, 2, 0, 3)), "f: expected at least one point on each axis")
       for name, g in ON_GRIDS.items()},
    "no points, dense": (lambda: DENSE(torch.randn(1, 2, 0)), "f: expected at least one point"),
    "no points, low rank": (lambda: LOW_RANK(torch.randn(1, 2, 0)), "f: expected at least one point"),
    "no nodes": (lambda: GRAPH(torch.randn(1, 0, 2)), "f: expected 3 nodes"),
    "no points, spectral layer": (lambda: lconv(torch.randn(1, 2, 0, 3), torch.randn(4, 2, 2), named("se", **SPECTRAL)),
                                  "lconv: expected at least one point"),
    **{f"spatial {value!r}": (lambda v=value: lc.ProductGenerators(named("rotation"), spatial=v), "spatial: expected 2")
       for value in ((0, 3), 5, (5.0, 4.0), "54", (3, 3, 3), (True, 3))},
    **{f"pairs {value!r}": (lambda v=value: lc.ProductGenerators(named("translation"), v), "pairs: expected")
       for value in (5, [0, 1], "01", [(0, 1.0)], [(0, 1, 0)], [(0, 7)], [()])},
    **{f"orders {value!r}": (lambda v=value: lc.DifferentialGenerators(ONE, v), "orders: expected")
       for value in (5, [1], "10", None, [[1.0, 0]], [[3, 0]], [[]], [], [["1", "0"]])},
    **{f"taps {value!r}": (lambda v=value: lc.StencilGenerators(ONE, v), "taps: expected")
       for value in (None, "01", [[0], [0, 1]], [], [[2**62, 0]], [[2**31, 0]], [[2**64, 0]], [[0.5, 1]])},
    "graph from nothing": (lambda: lc.GraphGenerators.from_adjacency(torch.zeros(2, 0).long()), "num_nodes: expected"),
    **{f"nodes {value!r}": (lambda v=value: lc.GraphGenerators.from_adjacency(EDGES, v), "num_nodes: expected")
       for value in ("3", 3.5, 0, -1, [3], True)},
    "edges elsewhere": (lambda: lc.GraphGenerators(EDGES.to("meta"), torch.ones(1), 3), "edge_weight: expected device"),
    "normalization": (lambda: lc.GraphGenerators.from_adjacency(EDGES, normalization=["gcn"]), "normalization: exp"),
    "grid without points": (lambda: lc.GraphGenerators.from_grid(SE, (0, 3)), "spatial: expected 2 positive integers"),
    "grid of a number": (lambda: lc.GraphGenerators.from_grid(SE, 3), "spatial: expected 2 positive integers"),
    "grid of a name": (lambda: lc.GraphGenerators.from_grid("se", (3, 3)), "generators: expected generators of taps"),
    "grid of matrices": (lambda: lc.GraphGenerators.from_grid(DENSE, (3, 3)), "generators: expected generators of"),
    "mesh of lists": (lambda: lc.GraphGenerators.from_mesh([[0.0, 0.0]], [[0, 0, 0]]), "vertices: expected a tensor"),
    "graph in a grid layer": (lambda: lc.LConv2d(2, 2, GRAPH), "generators: expected generators on a grid"),
    "grid in a graph layer": (lambda: lc.LConvGraph(2, 2, SE), "generators: expected GraphGenerators"),
    "complex graph layer": (lambda: lc.LConvGraph(2, 2, GRAPH, dtype=torch.cfloat), "dtype: expected a real"),
    "integer graph layer": (lambda: lc.LConvGraph(2, 2, GRAPH, dtype=torch.int8), "dtype: expected a real"),
    "type by name": (lambda: lc.LConv2d(2, 2, dtype="float32"), "dtype: expected a real"),
    **{f"numbers {value}": (lambda v=value: lc.LConv1d(2, 2, lc.DifferentialGenerators(ONE * v, [[1]])),
                            "generators: expected finite numbers") for value in (math.nan, math.inf, -math.inf)},
    **{f"stride {value!r}": (lambda v=value: lc.LConv2d(2, 2, stride=v), "stride: expected")
       for value in ([], "1", None, [[1], [2]], 2**63, 1.0, True, -1)},
    "window beyond all": (lambda: lconv(X, torch.randn(4, 2, 2), SE, window=((0, 0), (2**62, 6))), "window: "),
    **{f"explain {value!r}": (lambda v=value: lc.explain(lc.LConv2d(2, 2), v), "expected")
       for value in (None, 4, ("a", 2, 3, 3), (1, 2, 3.5, 3), (-1, 2, 3, 3), (1, 2, 0, 3), ())},
    "explain a type": (lambda: lc.explain(lc.LConv2d(2, 2), (1, 2, 3, 3), dtype="float"), "dtype: expected a real"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, message = CASES[case]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    where = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert "lconv_fast" in where.filename and "raise" in (where.line or "raise")


@pytest.mark.parametrize("bias", [0, 1, None, 2, np.bool_(True), np.int64(0), False, True], ids=repr)
def test_a_bias_is_given_as_to_nn_conv(bias):
    expected = torch.nn.Conv2d(2, 3, 1, bias=bias).bias is not None
    for layer in (
        lc.LConv2d(2, 3, bias=bias),
        lc.LConvGraph(2, 3, GRAPH, bias=bias),
        lc.DerivativeLConv(2, 3, SE, bias=bias),
        lc.nets.SeparableLConv(2, 3, SE, bias=bias),
    ):
        assert (layer.bias is not None) == expected


def test_integers_of_other_libraries_are_integers():
    assert lc.ProductGenerators(named("translation"), torch.tensor([[0, 1]])).words == [(0, 1)]
    assert lc.DifferentialGenerators(ONE, np.array([[1, 0]])).orders == ((1, 0),)
    assert SE.to_dense(torch.Size([3, 4])).shape == SE.to_dense(np.array([3, 4])).shape == (3, 12, 12)
