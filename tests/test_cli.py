"""The command line: `info`, and a small `demo` whose page and numbers are complete."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import lconv_fast as lc
from lconv_fast import cli
from lconv_fast.demo import equivariance, speed


def test_info_reports_versions_and_kernels():
    result = CliRunner().invoke(cli.app, ["info"])
    assert result.exit_code == 0, result.output
    rows = cli.information()
    assert rows["torch"] == torch.__version__ and rows["lconv_fast"] == lc.__version__
    for name in ("CPU capability", "CPU kernels", "threads", "GPU"):
        assert name in result.output and rows[name]


def test_quick_demo_writes_page_and_numbers(tmp_path):
    out = tmp_path / "report"
    result = CliRunner().invoke(cli.app, ["demo", "--quick", "--out", str(out), "--seed", "3"])
    assert result.exit_code == 0, result.output

    numbers = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert numbers["seed"] == 3 and numbers["quick"]
    assert [row["model"] for row in numbers["digits"]] == ["L-conv", "CNN 3x3", "dense L"]
    for row in numbers["digits"]:
        assert row["parameters"] > 0 and row["seconds_per_epoch"] > 0 and row["step_peak_bytes"] > 0
        assert all(0 <= row["test"][train][on] <= 1 for train in row["test"] for on in row["test"][train])
    for row in numbers["speed"]:
        assert row["forward"]["LConv2d"] == row["forward_backward"]["LConv2d"] == 1
        assert all(e <= speed.TOLERANCE for errors in row["errors"].values() for e in errors.values())
    errors = [row["error"] for row in numbers["equivariance"]]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10

    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page  # nothing is loaded from elsewhere
    assert f"{numbers['digits'][0]['parameters']:,}" in page


def test_demo_refuses_a_file_as_folder(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    result = CliRunner().invoke(cli.app, ["demo", "--quick", "--out", str(taken)])
    assert result.exit_code == 2 and "--out" in result.output


def test_no_times_when_results_disagree(monkeypatch):
    right = speed.composed
    monkeypatch.setattr(speed, "composed", lambda f, weight, v: right(f, weight, v) * (1 + 1e-4))
    monkeypatch.setattr(speed, "_interleaved", lambda *_: pytest.fail("timed although the results disagree"))
    with pytest.raises(speed.DisagreementError, match="output of composed"):
        speed.measure(16, 0, 2**20, 1)


def test_turning_back_and_forth_is_the_identity():
    f = equivariance.smooth_photograph(64)
    back = equivariance.turn(equivariance.turn(f, 25), -25)
    assert speed.relative_rms(back, f) < 1e-5


@pytest.mark.parametrize("package", ["typer", "rich", "skimage"])
def test_missing_package_is_one_line(package, tmp_path):
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['lconv-fast', 'demo', '--quick', '--out', 'x'];"
        "from lconv_fast.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode != 0
    assert run.stderr.strip().count("\n") == 0 and "pip install lconv-fast[demo]" in run.stderr
    assert package in run.stderr
