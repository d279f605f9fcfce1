"""Plans of the GPU operators: which way a call takes, and how it is cut for a card. No kernel runs."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need the package triton, which this platform may not have", allow_module_level=True)

from gpu_interpreter import TABLE, interpreted

import lconv_fast as lc
from lconv_fast.ops.geometry import Geometry, Window
from lconv_fast.ops.gpu import tune
from lconv_fast.ops.gpu.card import CARDS
from lconv_fast.ops.gpu.dispatch import WAYS, ways
from lconv_fast.ops.gpu.views import Coordinates
from lconv_fast.ops.gpu.waves import OVERHEAD, shares_of, strips_of

HALF = torch.bfloat16


def answers(operator="forward", dtype=HALF, shape=(8, 64, 1024, 1024), basis="se", card="H100", outs=None, **keywords):
    accuracy, mode = keywords.pop("accuracy", 2), keywords.pop("padding_mode", "zeros")
    stride = keywords.pop("stride", 1)
    g = lc.AffineGenerators.named(basis, len(shape) - 2, accuracy=accuracy, padding_mode=mode)
    geometry = Geometry.of(g.stencil(), shape[2:], [stride] * (len(shape) - 2), 1)
    return ways(geometry, operator, dtype, shape, outs or shape[1], g.num_generators, CARDS[card], **keywords)


@pytest.mark.parametrize("operator", WAYS)
def test_the_last_answer_is_a_plan_and_the_others_are_reasons(operator):
    for keywords in ({}, {"dtype": torch.float32}, {"shape": (2, 5, 9, 7)}, {"shape": (0, 64, 64, 64)}):
        *refused, (name, plan) = answers(operator, **keywords)
        assert all(isinstance(reason, str) for _, reason in refused)
        assert name in [way.name for way in WAYS[operator]] and hasattr(plan, "run")


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"dtype": torch.float32}, "not a half type"),
        ({"shape": (8, 48, 64, 64)}, "48 channels"),
        ({"stride": 2}, "a stride"),
        ({"accuracy": 4}, "order 2"),
        ({"padding_mode": "reflect"}, "does not invert"),
        ({"shape": (8, 64, 1024, 16)}, "16 points"),
        ({"shape": (8, 512, 64, 64)}, "512 channels"),
        ({"shape": (2, 64, 100)}, "one axis"),
    ],
)
def test_why_not_marching(keywords, reason):
    basis = "affine" if len(keywords.get("shape", "four")) == 3 else "se"
    found = dict(answers(basis=basis, **keywords))
    assert reason in found["march"] and list(found)[-1] == "tile"


def test_why_not_marching_on_contiguous_data():
    assert dict(answers(channels_last=False))["march"] == "not channels-last"
    assert not isinstance(dict(answers(channels_last=False))["march, planes"], str)
    for keywords, reason in (
        ({"operator": "transposed", "padding_mode": "circular"}, "without zeros around the grid"),
        ({"operator": "gram", "shape": (2, 64, 64, 64, 64)}, "all affine fields"),
        ({"shape": (8, 128, 1024, 1024)}, "spill registers"),
        ({"shape": (8, 64, 1024, 16)}, "16 points"),
        ({"dtype": torch.float32}, "not a half type"),
    ):
        found = dict(answers(channels_last=False, **keywords))
        assert reason in found["march, planes"] and list(found)[-1] == "tile"


def test_why_constant_stencils_do_not_march():
    """A product for each tap is too many of them, in every operator."""
    for operator in ("forward", "transposed", "gram", "correlate"):
        for last in (True, False):
            for side, reason in ((3, ""), (4, "16 taps")):
                taps = [[a, b] for a in range(side) for b in range(side)]
                g = lc.StencilGenerators(torch.zeros(2, len(taps)), taps)
                geometry = Geometry.of(g.stencil(), (64, 64), [1, 1], 1)
                found = dict(ways(geometry, operator, HALF, (2, 32, 64, 64), 32, 2, CARDS["H100"], channels_last=last))
                answer = found["march" if last else "march, planes"]
                assert answer == reason + " are more than 9" if reason else not isinstance(answer, str)


def test_unknown_operator():
    with pytest.raises(ValueError, match="expected one of forward"):
        answers("sideways")


# As NVIDIA's tables of occupancy give them: registers are given out in eights to a thread.
@pytest.mark.parametrize(
    ("card", "warps", "registers", "shared", "places"),
    [
        ("H100", 4, 104, 41 << 10, 4),
        ("H100", 4, 137, 32 << 10, 3),
        ("H100", 4, 168, 32 << 10, 3),
        ("H100", 4, 169, 32 << 10, 2),
        ("H200", 4, 255, 41 << 10, 2),
        ("H200", 8, 255, 160 << 10, 1),
        ("H200", 4, 128, 76 << 10, 2),
        ("A100", 4, 128, 41 << 10, 3),
        ("A100", 8, 64, 10 << 10, 4),
        ("A100", 4, 16, 0, 16),
    ],
)
def test_programs_that_a_multiprocessor_holds(card, warps, registers, shared, places):
    assert CARDS[card].places(warps, registers, shared) == places


@pytest.mark.parametrize("card", ["H100", "H200", "A100"])
@pytest.mark.parametrize("places", [1, 2, 3, 4])
@pytest.mark.parametrize(("lines", "others"), [(1024, 128), (128, 512), (512, 24), (4096, 64)])
def test_whole_waves(card, places, lines, others):
    """No more than a tenth of the places of all rounds stands empty, where strips can be that short."""
    capacity = places * CARDS[card].multiprocessors
    strips = strips_of(lines, others, capacity, 16)
    assert strips.programs == others * strips.number and (strips.number - 1) * strips.lines < lines
    assert strips.number * strips.lines >= lines and (strips.lines >= 16 or strips.number == 1)
    rounds = -(-strips.programs // capacity)
    ideal = lines * others / capacity
    assert rounds * (strips.lines + OVERHEAD) <= 1.1 * ideal + 2 * (16 + OVERHEAD)
    fixed = strips_of(lines, others, 528, 16)  # whatever the card holds
    assert rounds * (strips.lines + OVERHEAD) <= -(-fixed.programs // capacity) * (fixed.lines + OVERHEAD)


def test_the_tail_that_was():
    """640 programs on 264 places took three rounds for 2.4."""
    capacity = 2 * CARDS["H200"].multiprocessors
    strips = strips_of(1024, 128, capacity, 16)
    assert (strips.number, strips.programs) == (2, 256)
    assert strips.lines + OVERHEAD < 0.9 * 3 * (205 + OVERHEAD)


@pytest.mark.parametrize("capacity", [66, 132, 264])
def test_shares_are_even(capacity):
    for lines, others in ((1024, 128), (128, 512), (60, 3)):
        strips = shares_of(lines, others, capacity, 32)
        assert strips.programs <= capacity
        work = -(-others * strips.number // strips.programs) * strips.lines
        assert work <= 1.15 * max(32, lines * others / capacity) + strips.lines


def test_the_batch_takes_no_long_offsets():
    """An example of 64 x 4096^2 has 2^30 elements; the batch's offsets are 64 bits wide in any case."""
    import triton.language as tl

    for shape, dtype in (((8, 64, 4096, 4096), tl.int32), ((1, 64, 8192, 4096), tl.int64)):
        _, plan = answers(shape=shape)[-1]
        assert plan.call.index is dtype


def test_coordinates_ask_no_device():
    """torch.set_default_device("cuda") would make a synchronisation of every tensor that is made here: the meta device
    refuses to give one's number."""
    g = lc.AffineGenerators.named("se", 2)
    geometry = Geometry.of(g.stencil(), (5, 7), [1, 1], 1, Window((2, 3), (11, 23)))
    with torch.device("meta"):
        coordinates = Coordinates.of(geometry)
    assert coordinates.center == (0.0, 3.0, 8.0)
    assert sum(coordinates.inverse_scale) == pytest.approx(1 / 11, rel=1e-15)


def test_calls_that_are_alike_are_planned_once():
    """The grid's place in a full one is no part of a plan; strides, types and alignment are."""
    planned = []
    operators = interpreted(TABLE)
    original = operators._plans

    class Counting(dict):
        def __setitem__(self, key, value):
            planned.append(value)
            super().__setitem__(key, value)

    operators._plans = Counting(original)
    g = lc.AffineGenerators.named("rotation", 2)
    v, w = g.coefficients(), torch.randn(2, 3, 3)
    f = torch.randn(1, 3, 4, 5)
    for window in (None, Window((1, 0), (9, 9)), Window((3, 2), (12, 8))):
        geometry = Geometry.of(g.stencil(), (4, 5), [1, 1], 1, window)
        found = operators.apply(f, w, v, None, *geometry, True, False)
        torch.testing.assert_close(found, torch.ops.lconv_fast.apply(f, w, v, None, *geometry, True, False))
    assert len(planned) == 1
    geometry = Geometry.of(g.stencil(), (4, 5), [1, 1], 1)
    for other in (f.transpose(2, 3).contiguous().transpose(2, 3), torch.randn(61)[1:].view(1, 3, 4, 5)):
        operators.apply(other, w, v, None, *geometry, True, False)
    assert len(planned) == 3


def test_tuning_takes_what_the_operators_take():
    """Its calls, on small images, by the tile kernels."""
    operators = interpreted(TABLE)
    for name, call in tune.calls(torch.float32, 4, 4, device="cpu").items():
        assert call(operators).isfinite().all(), name
    assert all("tile" in type(plan).__module__ for plan in operators._plans.values())


def test_explain_answers_for_a_card_that_is_not_there():
    layer = lc.LConv2d(64, 64, "se")
    found = dict(lc.explain(layer, (8, 64, 256, 256), torch.bfloat16, card="H100").gpu)
    assert (
        list(found) == [operator for operator in WAYS if operator != "finished"]
        and dict(found["forward"])["march"] == ""
    )
    found = lc.explain(layer, (8, 64, 256, 256), card="H100")
    assert dict(dict(found.gpu)["forward"])["tile"] == "" and "not march: " in str(found)
    mirrored = lc.LConv2d(4, 8, "se", padding_mode="reflect")
    assert set(dict(lc.explain(mirrored, (4, 9, 9), card="A100").gpu)) == {"forward", "gram", "correlate"}
    with pytest.raises(ValueError, match="card: expected one of A100, H100"):
        lc.explain(layer, (8, 64, 256, 256), card="H1")
