"""The command line: `info`, and a small `demo` whose page and numbers are complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import lconv_fast as lc
from lconv_fast import cli
from lconv_fast.demo import equivariance, speed

PLACE = {
    "lconv_fast": lc.__version__,
    "cpu_capability": "any",
    "threads": 1,
    "multiply_add_rate": 1e9,
    "copy_bandwidth": 1e9,
}


def test_info_reports_versions_and_kernels():
    result = CliRunner().invoke(cli.app, ["info"])
    assert result.exit_code == 0, result.output
    rows = cli.information()
    assert rows["torch"] == torch.__version__ and rows["lconv_fast"] == lc.__version__
    for name in ("CPU capability", "CPU kernels", "threads", "huge pages", "GPU"):
        assert name in result.output and rows[name]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("[always] madvise never", None, "always"),
        ("always [madvise] never", None, "madvise, but THP_MEM_ALLOC_ENABLE is not set"),
        ("always [madvise] never", "0", "madvise, but THP_MEM_ALLOC_ENABLE is not set"),
        ("always [madvise] never", "1", "madvise, and THP_MEM_ALLOC_ENABLE is set"),
        ("always madvise [never]", None, "never: an administrator .* and THP_MEM_ALLOC_ENABLE is not set"),
        ("always madvise [never]", "1", "never: an administrator can write madvise to .*enabled$"),
        (None, None, "unknown on this system"),
    ],
)
def test_info_names_the_missing_setting_of_the_allocator(setting, value, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", value)
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting + "\n")
    assert re.match(expected, cli.info.huge_pages(path))


def test_version_and_help():
    assert lc.__version__ in CliRunner().invoke(cli.app, ["--version"]).output
    done = CliRunner().invoke(cli.app, ["--help"])
    assert done.exit_code == 0 and all(name in done.output for name in ("info", "demo", "bench", "discover", "tune"))


@pytest.mark.parametrize("command", ["info", "--help", "--version", "bench --help", "discover --help"])
def test_a_plain_install_has_a_command_line(command):
    """Without the packages of the extras."""
    missing = ("scipy", "matplotlib", "sklearn", "skimage", "safetensors", "triton", "PIL")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); sys.argv = ['lconv-fast', *{command!r}.split()];"
    )
    code += "from lconv_fast.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout and not run.stderr


def test_bench_lists_its_cases_and_refuses_other_names(tmp_path):
    from lconv_fast_bench.cases import SMALL

    listed = CliRunner().invoke(cli.app, ["bench", "--help"]).output
    assert all(str(case) in listed for case in SMALL)
    done = CliRunner().invoke(cli.app, ["bench", "--only", "nothing"], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and all(str(case) in done.output for case in SMALL)
    done = CliRunner().invoke(cli.app, ["bench", "--only", "C=128"], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "with --full there are 18 that do" in done.output
    taken = tmp_path / "taken"
    taken.write_text("")
    done = CliRunner().invoke(cli.app, ["bench", "--only", "C=8", "--out", str(taken)])
    assert done.exit_code == 1 and "is a file; expected a folder" in str(done.exception)


def test_an_interrupted_benchmark_shows_what_is_done(monkeypatch, tmp_path):
    from lconv_fast_bench import __main__ as bench
    from lconv_fast_bench.cases import Case

    cases, right, calls = [Case("affine", (6, 7), 2, 3), Case("affine", (5, 5), 1, 2)], bench.measure, []

    def measure(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "machine", lambda threads: dict(PLACE))
    monkeypatch.setitem(bench.SELECTIONS, "small", cases)
    command = ["bench", "--seconds", "0", "--no-compiled", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 130 and "INTERRUPTED after 1 of 2 cases" in done.output
    machine = json.loads((tmp_path / "out" / "results.json").read_text())["machine"]
    assert machine["interrupted"] == "after 1 of 2 cases"


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
    assert page.count("data:image/png;base64,") == 4
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
