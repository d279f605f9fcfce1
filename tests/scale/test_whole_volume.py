"""The example of a whole brain runs, and its windows meet without a seam where they are at their true places."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.full
def test_whole_volume(tmp_path):
    for package in ("nibabel", "nilearn", "matplotlib"):
        pytest.importorskip(package, reason="the brain and its reader come with optional packages")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples/whole_volume.py"), "--small", "--picture", str(tmp_path / "a.png")]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in run.stdout.splitlines() if line.startswith("|")]
    conv, centred, placed, streamed = cells[2:]
    for row in conv, placed, streamed:
        assert float(row[-1]) < 1e-5, row
    assert float(centred[-1]) > 1e-2
    for row in conv, centred, placed:
        assert min(map(float, row[1:3])) > 0.5, row
    assert float(streamed[1]) > 0.5  # so few steps on whole volumes need not find white matter
    assert (tmp_path / "a.png").exists()
