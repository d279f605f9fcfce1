"""The library's GPU kernels, as compiled, on emulated chips: outputs and all gradients against float64."""

import json
import re
from pathlib import Path

import pytest
from emulator_process import python, triton_missing

CHIPS = ("sm_80", "sm_90")


def wrong(found: dict) -> str:
    return "\n".join(f"{row['case']}: {row.get('fault') or row['errors']}" for row in found["rows"] if not row["right"])


@pytest.mark.parametrize("chip", CHIPS)
def test_layers_agree_with_float64(emulated, chip):
    found = emulated("representative", "earlier")[chip]
    assert found["rows"]
    assert not wrong(found), wrong(found)


def test_every_kernel_takes_part(emulated):
    assert emulated("representative", "earlier")["sm_90"]["not_run"] == []


@pytest.mark.full
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("cases", ["marching", "full"])
def test_layers_of_every_kind_agree_with_float64(emulated, cases, chip):
    found = emulated(cases)[chip]
    assert not wrong(found), wrong(found)


@pytest.fixture(scope="module")
def planted() -> dict:
    if triton_missing():
        pytest.skip(triton_missing())
    output = python(Path(__file__).with_name("planted.py"), "sm_90").communicate()[0]
    return json.loads(output.splitlines()[-1])


def test_unchanged_kernels_pass(planted):
    assert planted.pop("nothing") == {"changed": 0, "noticed": ""}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *[(f"barrier {k} left out", "race") for k in range(6)],
        ("a load without its guard", "after a tensor|in no tensor"),
        ("a store without its guard", "writes what another program writes"),
        ("a store left out", "nan"),
        ("a load 4 bytes off", "misaligned"),
        ("fences left out", "without a proxy fence"),
        ("waits left out", "still reads"),
        ("another swizzle", "never written"),
        ("a store 16 bytes off in shared memory", "write different values"),
    ],
)
def test_a_planted_error_is_noticed(planted, error, kind):
    assert planted[error]["changed"], "nothing was changed: the kernels are written in another way now"
    assert re.search(kind, planted[error]["noticed"])
