"""The benchmark suite: that it measures what it says, and takes no time of a wrong result."""

import json

import pytest
import torch
from lconv_fast_bench import cases, contenders, goals, measure, networks, page

PLACE = {"multiply_add_rate": 1e9, "copy_bandwidth": 1e9, "threads": 1}
TINY = [
    cases.Case("affine", (6, 7), 2, 3),
    cases.Case("field", (5, 4, 6), 1, 4, "translation", channels_last=False),
    cases.Case("stencil", (9,), 2, 5, "affine"),
    cases.Case("affine", (6, 7), 2, 3, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_all_operators_are_verified_and_timed(case, tmp_path):
    rows = measure.measure(case, measure.OPERATORS, PLACE, compiled=False, seconds=0)
    assert [row.operator for row in rows] == list(measure.OPERATORS)
    for row in rows:
        assert row.opponent in row.same and row.seconds.keys() == row.quantiles.keys()
        assert all(low <= row.seconds[name] <= high for name, (low, high) in row.quantiles.items())
        assert row.intervals.keys() == row.ratios.keys()
    assert rows[0].held_for_backward["lconv_fast"] <= 4 * 6 * 2 * 3 < rows[0].held_for_backward["composed"]
    assert rows[-1].flops == 3 * rows[0].flops == 3 * 2 * case.points * (case.count + 1) * case.channels**2
    page.write_page(tmp_path / "index.html", PLACE, rows, [])
    assert "Where lconv_fast is slower" in (tmp_path / "index.html").read_text()
    assert len(json.loads(json.dumps(measure.as_json(PLACE, rows)))["rows"]) == len(measure.OPERATORS)


@pytest.mark.parametrize("operator", ["forward", "input gradient", "weight gradient", "training step"])
def test_a_wrong_contender_is_found(operator, monkeypatch):
    right = contenders.composed

    def wrong(case):
        run = right(case)
        return lambda x, w, n: run(x, w, n) * (1.001 if x.dtype == torch.float32 else 1)

    monkeypatch.setattr(contenders, "composed", wrong)
    with pytest.raises(ArithmeticError, match=r"composed is wrong by 1\.0e-03"):
        measure.measure(TINY[0], [operator], PLACE, compiled=False, seconds=0)


def test_losses_are_listed_slowest_first():
    rows = measure.measure(TINY[0], ["forward"], PLACE, compiled=False, seconds=0)
    rows[0].seconds = {"lconv_fast": 4.0, "composed": 2.0, "torch.sparse": 5.0, "torch.mm, operand ready": 1.0}
    assert [(name, ratio, same) for _, _, name, ratio, same in page.losses(rows)] == [
        ("torch.mm, operand ready", 0.25, False),
        ("composed", 0.5, True),
    ]


def test_the_interval_of_a_median_covers_it_in_95_percent():
    # Medians of 21 draws from a distribution with median 1, heavy on one side.
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 21, generator=random).exp()
    intervals = [measure.median_interval(row.tolist()) for row in draws]
    assert 0.93 <= sum(low <= 1 <= high for low, high in intervals) / len(intervals) <= 0.99
    assert measure.median_interval([3.0]) == [3.0, 3.0]


@pytest.mark.parametrize("ndim", [2, 3])
def test_networks_of_both_kinds_have_the_same_shape_and_train(ndim):
    x = torch.randn(1, 1, *[8] * ndim)
    for layer in networks.layers(ndim, "translation").values():
        net = networks.UNet(ndim, layer)
        assert net(x).shape == x.shape
        networks.step_of(net, x, torch.zeros_like(x))()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_resnet_18_has_the_published_number_of_weights():
    """11 689 512 with 3 x 3 convolutions without a bias (here each of the 16 has one, 3840 numbers); and it trains."""
    for name, layer in networks.layers(2, "translation").items():
        net = networks.ResNet18(layer)
        if name == "nn.Conv":
            assert sum(p.numel() for p in net.parameters()) == 11_689_512 + 3840
        y = net(torch.randn(2, 3, 32, 32))
        assert y.shape == (2, 1000)
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_goals_are_measured_and_kept_by_configuration(tmp_path, monkeypatch, capsys):
    tiny = cases.Case("affine", (6, 7), 1, 3)
    rows = [
        goals.Goal("convolution 2D", "forward", 1.5, goals.against_convolution(tiny, "forward")),
        goals.Goal("of the roof", "weight gradient", 0.5, goals.against_copy(tiny, "weight gradient"), tiny.flops),
    ]
    monkeypatch.setattr(goals, "goals", lambda: rows)
    monkeypatch.setattr(goals, "machine", lambda threads: PLACE)
    for threads in (1, 2):
        goals.run(tmp_path, threads, "", 0, whole_networks=False)
    found = goals.load(tmp_path)
    first, second = found["rows"].values()
    assert first.keys() == second.keys() == {"convolution 2D: forward", "of the roof: weight gradient"}
    for row in first.values():
        low, high = row["interval"]
        assert 0 < low <= row["ratio"] <= high and "lconv_fast" in row["seconds"]
    # In a second of their own, the roof takes the arithmetic at the machine's rate where that is longer than a copy.
    slow = goals.measure(goals.replace(rows[1], roof=1.0), 1.0, 0)
    assert slow["ratio"] > 1e3 * first["of the roof: weight gradient"]["ratio"]
    assert goals.compare(found, found) == (4, 4)
    assert goals.table(found).count("| ") > 4
    capsys.readouterr()


def test_the_interval_holds_another_measurement_in_95_percent():
    random = torch.Generator().manual_seed(1)
    draws = (0.1 * torch.randn(2000, goals.REPEATS + 1, generator=random)).exp().tolist()
    intervals = [(goals.interval(row[:-1])["interval"], row[-1]) for row in draws]
    assert 0.93 <= sum(low <= again <= high for (low, high), again in intervals) / len(intervals) <= 0.97


@pytest.mark.parametrize("stride", [1, 2])
def test_no_time_is_taken_of_a_wrong_layer(stride, monkeypatch):
    right = goals.with_numbers

    def wrong(case, generators):
        run = right(case, generators)
        return lambda x, w, n: run(x, w, n) * (1.001 if x.dtype == torch.float32 else 1)

    monkeypatch.setattr(goals, "with_numbers", wrong)
    monkeypatch.setattr(goals, "VERIFIED", set())
    with pytest.raises(ArithmeticError, match=r"wrong by 1\.0e-03"):
        goals.of_layer(cases.Case("affine", (6, 7), 1, 3), "forward", stride)
