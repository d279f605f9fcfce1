"""The timing model on loops whose time is known, and what it calls a regression."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from emulator_process import ROOT, python, triton_missing

from tools.gpu_model.__main__ import regressions
from tools.gpu_model.sass import Sass, main_loop, parse
from tools.gpu_model.simulate import LATENCY, simulate

NONE = 7  # scoreboard


def instruction(name: str, stall: int = 1, sets: int = NONE, waits: int = 0) -> Sass:
    return Sass(0, name, name, stall, sets, NONE, waits)


def test_issue_bounds_independent_arithmetic():
    """One instruction a cycle, half of them on each of the two pipes that take one every second cycle."""
    loop = [instruction("FFMA"), instruction("IADD3")] * 24
    found = simulate(loop, set(), programs=4, warps=2, bytes_per_cycle=8)
    assert found.cycles == pytest.approx(8 * 48, rel=0.05)
    assert found.issue > 0.95


def test_stall_counts_bound_one_warp():
    found = simulate([instruction("IADD3", stall=6)] * 64, set(), programs=1, warps=1, bytes_per_cycle=8)
    assert found.cycles == pytest.approx(64 * 6, rel=0.05)


def test_bandwidth_bounds_many_loads():
    """512 bytes a load of a warp."""
    loop = [*[instruction("LDG.E.128", sets=0)] * 8, *[instruction("IADD3")] * 31, instruction("IADD3", waits=1)]
    found = simulate(loop, set(range(8)), programs=4, warps=4, bytes_per_cycle=2)
    assert found.cycles == pytest.approx(16 * 8 * 512 / 2, rel=0.1)
    assert max(found.stalls, key=lambda why: found.stalls[why]) == "memory"


def test_latency_bounds_one_load_of_one_warp():
    loop = [instruction("LDG.E.128", sets=0), instruction("IADD3", waits=1), *[instruction("IADD3")] * 40]
    found = simulate(loop, {0}, programs=1, warps=1, bytes_per_cycle=1e9)
    assert LATENCY["memory"] < found.cycles < LATENCY["memory"] + 150


def test_products_bound_their_tensor_core():
    """A warpgroup's 64 x 128 x 16 takes 64 cycles of each tensor core."""
    loop = [instruction("HGMMA.64x128x16.F32.BF16", stall=2)] * 16 + [instruction("WARPGROUP.DEPBAR.LE")]
    found = simulate(loop, set(), programs=2, warps=1, bytes_per_cycle=8)
    assert found.cycles == pytest.approx(2 * 16 * 64, rel=0.05)


LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
                                                            /* 0x000fe20000000f00 */
{body}
        /*{end:04x}*/               @P0 BRA 0x10 ;          /* 0xffffffe000000947 */
                                                            /* 0x000fea000383ffff */
        /*9000*/                   EXIT ;                   /* 0x000000000000794d */
                                                            /* 0x000fea0003800000 */
"""


def test_loops_and_control_codes_are_read():
    line = "        /*{:04x}*/  @!P1 IADD3 R2, R2, 0x1, RZ ; /* 0x0000000102027810 */\n        /* 0x{:016x} */\n"
    stall, sets, frees, waits = 5, 2, 7, 0b100001
    control = stall << 41 | sets << 46 | frees << 49 | waits << 52
    body = "".join(line.format(16 * k, control) for k in range(1, 41))
    loop = main_loop(parse(LISTING.format(body=body, end=16 * 41)))
    assert len(loop) == 41
    assert (loop[0].name, loop[0].stall, loop[0].sets, loop[0].frees, loop[0].waits) == ("IADD3", 5, 2, 7, 33)


def test_a_tenth_is_a_regression():
    card = {"milliseconds": 1.0}
    before = {"layer": {"H200": card, "H100": card, "instructions of an element": 20.0, "stack": 0}}
    assert regressions(before, before) == []
    assert "no longer" in regressions(before, {})[0]
    for change in (
        {"H200": {"milliseconds": 1.11}},
        {"instructions of an element": 22.1},
        {"stack": 8},
    ):
        now = copy.deepcopy(before)
        now["layer"] |= change
        assert len(regressions(before, now)) == 1
    slightly = copy.deepcopy(before)
    slightly["layer"]["H100"] = {"milliseconds": 1.09}
    assert regressions(before, slightly) == []


@pytest.mark.skipif(bool(triton_missing()), reason=triton_missing() or "installed")
@pytest.mark.parametrize("only", ["2D C=64 n_L=3", pytest.param("", marks=pytest.mark.full)])
def test_no_layer_is_predicted_slower_than_before(only):
    """A tenth is a failure. Forward, transposed, gram and both gradients of one layer; or all layers."""
    figures = ROOT / "tools" / "gpu_model" / "figures.json"
    process = python("-m", "tools.gpu_model", "--compare", figures, "--only", only)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    if "skipped" in output:
        pytest.skip(output)
