"""What users give: sentences in place of errors from below, and no dependence on the unit of the data."""

import math

import numpy as np
import pytest
import torch
from discovery_data import bilinear_rotation

from lconv_fast.discovery import discover

IMAGES = torch.rand(3, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": IMAGES[:2]}, r"y: expected the shape of x, \(3, 1, 8, 8\), got \(2, 1, 8, 8\)"),
        ({"x": torch.ones(3, 1, 8, 8)}, r"x: expected images that vary, but those of pairs \[0, 1, 2\] are constant"),
        ({"y": torch.ones(3, 1, 8, 8)}, r"y: expected images that vary, but those of pairs \[0, 1, 2\] are constant"),
        ({"y": IMAGES / 0}, "y: expected finite values"),
        ({"kind": "mesh"}, "kind: expected one of affine, field, stencil, graph, dense, got 'mesh'"),
        ({"kind": "graph"}, "x: kind 'graph' takes"),
        ({"parameters": torch.zeros(3)}, "parameters: all are zero"),
        ({"parameters": torch.ones(2)}, r"parameters: expected shape \(3,\) or \(3, n_L\)"),
        ({"parameters": torch.rand(3, 4)}, "x: 3 pairs cannot identify 4 generators"),
        ({"parameters": torch.ones(3, 2)}, "parameters: columns are dependent"),
        ({"num_generators": 4}, "num_generators: expected 1 to 3"),
        ({"kind": "stencil"}, "parameters: kind 'stencil' by the L-conv route needs labelled pairs"),
        ({"kind": "dense"}, "x: 3 images cannot identify a dense matrix on 64 points"),
        ({"x": torch.rand(3, 1, 4, 8), "y": torch.rand(3, 1, 4, 8)}, "at least 5 points|of at least 5 points"),
        ({"route": "magic"}, "route: expected one of auto, direct, lconv"),
        ({"kind": "stencil", "route": "direct"}, "takes kind 'affine' and 'field', got kind 'stencil'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        discover(**{"x": IMAGES, "y": IMAGES.flip(-1), "progress": False} | arguments)


def turned(count=6, size=16):
    x = torch.rand(count, 1, size, size, dtype=torch.float64) - 0.5
    return x, bilinear_rotation(x, 0.2)


LABELS = torch.full((3,), 0.2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resolution": -1}, ValueError, "resolution: expected a positive number of pixels, got -1"),
        ({"resolution": 0}, ValueError, "resolution: expected a positive number"),
        ({"resolution": math.nan}, ValueError, "resolution: expected a positive number"),
        ({"resolution": "1"}, TypeError, "resolution: expected a positive number"),
        ({"num_generators": 1.5}, TypeError, "num_generators: expected a positive integer, got 1.5"),
        ({"num_generators": True}, TypeError, "num_generators: expected a positive integer"),
        ({"num_generators": 0}, ValueError, "num_generators: expected a positive integer"),
        ({"parameters": 0.2}, ValueError, r"parameters: expected shape \(3,\) or \(3, n_L\), got \(\)"),
        ({"parameters": LABELS + 0.1j}, TypeError, "parameters: expected real numbers .* got torch.complex64"),
        ({"parameters": ["a", "b", "c"]}, TypeError, "parameters: expected real numbers"),
        ({"parameters": LABELS.double() * 1e300}, ValueError, r"parameters: expected sizes between 1e-30 and 1e\+30"),
        ({"parameters": LABELS.double() * 1e-300}, ValueError, "parameters: expected sizes between"),
        ({"parameters": LABELS, "route": "lconv", "recursions": -1}, ValueError, "recursions: expected a positive"),
        ({"parameters": LABELS, "route": "lconv", "recursions": 2.5}, TypeError, "recursions: expected a positive"),
        ({"kind": "field", "degree": 1.5}, TypeError, "degree: expected an integer, got 1.5"),
        ({"kind": "field", "degree": -1}, ValueError, "degree: expected 0 to 8, got -1"),
        ({"alpha": "0.1"}, TypeError, "alpha: expected a probability"),
        ({"alpha": math.nan}, ValueError, "alpha: expected a probability"),
        ({"seed": "a"}, TypeError, "seed: expected an integer"),
        ({"ndim": 4}, ValueError, "ndim: expected 1, 2 or 3"),
        (
            {"ndim": 3},
            ValueError,
            r"ndim: .* adds the channel axis, \(3, 1, 1, 8, 8\)",
        ),
        ({"device": "nowhere"}, ValueError, "device: expected one that PyTorch can use, got 'nowhere'"),
        ({"device": "meta"}, ValueError, "device: expected one that PyTorch can use, got 'meta'"),
        ({"kind": "dense", "route": "lconv"}, ValueError, "route: 'lconv' takes kind .* got kind 'dense'"),
    ],
)
def test_sentences_of_our_own(arguments, error, message):
    with pytest.raises(error, match=message):
        discover(**{"x": IMAGES, "y": IMAGES.flip(-1), "progress": False} | arguments)


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, r"edges: expected a tensor of integers \(2, E\), got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, r"edges: expected shape \(2, E\), got \(3, 2\)"),
        (torch.tensor([[0, 1], [1, 9]]), ValueError, "edges: expected nodes 0 to 5, got 0 to 9"),
    ],
)
def test_edges_are_checked(edges, error, message):
    x = torch.rand(40, 1, 6)
    with pytest.raises(error, match=message):
        discover(x, x.roll(1, -1), kind="graph", parameters=torch.ones(40), edges=edges, progress=False)


@pytest.mark.parametrize("shape", [(24, 48, 48), (3, 7, 100), (6, 12, 12, 12)])
def test_a_missing_channel_axis_is_refused(shape):
    """As (P, C, *spatial) such a shape has many channels; as images without the axis, it has one axis more."""
    x, count, added = torch.rand(shape), len(shape) - 2, (shape[0], 1, *shape[1:])
    message = rf"x: .* is ambiguous: .*pass ndim={count}; for the second add the axis, x\[:, None\]"
    with pytest.raises(ValueError, match=message) as refused:
        discover(x, x.roll(1, -1), progress=False)
    assert str(added) in str(refused.value)
    if len(shape) == 3:
        found = discover(x, x.roll(1, -1), ndim=count, progress=False)
        assert f"{shape[0]} pairs, {shape[1]} channels, 1 axis of {shape[2]} points" in found.summary()


def test_more_generators_than_there_are():
    x, y = turned(12)
    with pytest.raises(ValueError, match="num_generators: expected at most 6 generators, as many as independent"):
        discover(x, y, num_generators=10, progress=False)
    with pytest.raises(ValueError, match="parameters: expected at most 6 generators"):
        discover(x, y, parameters=torch.randn(12, 7), progress=False)
    with pytest.raises(ValueError, match="at most 2 generators, as many as independent polynomial fields"):
        discover(x, y, kind="field", degree=0, num_generators=3, progress=False)
    found = discover(x, y, num_generators=3, progress=False)
    assert found.dimension == 3 and any("finds 1 generators" in note for note in found.notes)


@pytest.mark.parametrize("unit", [1e-300, 1e-30, 3e30, 1e200, 1e307])
def test_the_unit_of_the_images_does_not_matter(unit):
    x, y = turned()
    found, scaled = (discover(u * x, u * y, progress=False) for u in (1.0, unit))
    assert scaled.dimension == 1 and scaled.algebra.name == "so(2)" and scaled.residual < 1e-20
    assert torch.allclose(scaled.generators.matrix, found.generators.matrix, atol=1e-6)
    np.testing.assert_allclose(scaled.parameters, found.parameters, rtol=1e-9)


@pytest.mark.parametrize(
    "arguments",
    [{"route": "lconv"}, {"kind": "stencil"}, {}, {"kind": "field", "degree": 2}],
    ids=["lconv", "stencil", "direct", "field"],
)
def test_a_power_of_two_changes_no_bit(arguments):
    x, y = turned(2, 8)
    y = y + 0.01 * torch.randn_like(y)
    one, other = (
        discover(u * x, u * y, parameters=torch.full((2,), 0.2), progress=False, **arguments) for u in (1.0, 2.0**-99)
    )
    assert one.residual == other.residual
    for name, value in one.generators.state_dict().items():
        assert torch.equal(value, other.generators.state_dict()[name])


def test_pairs_in_units_of_their_own():
    """One pair 1e-25 times as bright as the others counts like them."""
    x, y = turned()
    units = torch.tensor([1.0, 1e-25, 1.0, 1e-12, 1.0, 1e-20], dtype=torch.float64).reshape(6, 1, 1, 1)
    found = discover(units * x, units * y, progress=False)
    assert found.dimension == 1 and found.explained.min() > 0.999 and np.isfinite(found.parameters).all()


def test_no_algebra_at_a_third_of_the_variance():
    x, y = turned(4, 24)
    spread = y.flatten(1).std(1).reshape(-1, 1, 1, 1)
    for noise, named in ((0.2, True), (0.8, False)):
        found = discover(x, y + noise * spread * torch.randn_like(y), num_generators=1, progress=False)
        assert (found.residual > 0.2) is not named
        assert (found.algebra is not None) is named
        assert named or any("no algebra is named" in note for note in found.notes)


def test_arguments_without_effect_are_noted():
    x, y = turned(3)
    found = discover(x, y, degree=3, recursions=4, progress=False)
    assert {"degree has no effect on this route", "recursions has no effect on this route"} <= set(found.notes)


def test_the_global_generator_is_left_alone():
    x, y = turned(2)
    state = torch.get_rng_state()
    discover(x, y, parameters=torch.full((2,), 0.2), route="lconv", progress=False, seed=5)
    assert torch.equal(state, torch.get_rng_state())
