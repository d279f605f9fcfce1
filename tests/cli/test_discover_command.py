"""`lconv-fast discover` and its relatives: inputs, outputs, spellings and Ctrl-C."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from lconv_fast.cli import app, renamed

safetensors = pytest.importorskip("safetensors.torch", reason="results are saved with the optional package safetensors")


def turned_pairs(count=6, size=16):
    x = torch.from_numpy(np.random.default_rng(1).uniform(-0.5, 0.5, (count, 1, size, size)))
    matrix = torch.tensor([[0.98, 0.199, 0], [-0.199, 0.98, 0]], dtype=x.dtype).expand(count, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return x.numpy(), F.grid_sample(x, grid, align_corners=False).numpy()


X, Y = turned_pairs()


def discover(*arguments):
    """The exit code, and the output or the error."""
    done = CliRunner().invoke(app, ["discover", *map(str, arguments)])
    failed = isinstance(done.exception, SystemExit) and isinstance(done.exception.code, str)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.exception.code if failed else done.output


def test_command_line(tmp_path):
    np.savez(tmp_path / "pairs.npz", x=X, y=Y)
    code, output = discover(tmp_path / "pairs.npz", "--out", tmp_path / "out")
    assert code == 0 and "so(2)" in output and "6 pairs, 1 channel, 2 axes of 16 x 16 points" in output
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"result.json", "result.safetensors", "fields.png", "spectrum.png", "matrices.png"}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["interrupted"] is False


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path.read_bytes()


def with_member(path, member):
    """An archive whose x is these bytes."""
    y = io.BytesIO()
    np.save(y, Y)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", y.getvalue())


def header(text, version=b"\x01\x00", length=None):
    text = text.encode() + b"\n"
    packed = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + packed + text + bytes(64)


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 100), }"
DAMAGE = {
    "truncated": lambda p: p.write_bytes(saved(p, x=X, y=Y)[:5000]),
    "no archive": lambda p: p.write_text("x, y\n1, 2\n"),
    "zeros": lambda p: p.write_bytes(bytes(1000)),
    "empty": lambda p: p.write_bytes(b""),
    "one array": lambda p: np.save(p.open("wb"), X),
    "wrong checksum": lambda p: p.write_bytes((data := saved(p, x=X, y=Y))[:700] + b"\0\1\2" + data[703:]),
    "objects": lambda p: saved(p, x=np.array([X, None], dtype=object), y=Y),
    "strings": lambda p: saved(p, x=np.array(["a"]), y=Y),
    "complex": lambda p: saved(p, x=X + 1j, y=Y),
    "no x": lambda p: saved(p, y=Y),
    "nothing": lambda p: saved(p),
    "promises": lambda p: with_member(p, header(HUGE)),
    "long header": lambda p: with_member(p, header(" " * 200_000, b"\x02\x00")),
    "endless header": lambda p: with_member(p, header("{", b"\x02\x00", 2**32 - 1)),
    "no header": lambda p: with_member(p, header("import os")),
    "no member": lambda p: with_member(p, b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "pairs.npz"
    DAMAGE[damage](path)
    code, error = discover(path, "--out", tmp_path / "out")
    assert code == 1 and error.startswith("lconv-fast: ") and "\n" not in error and "pairs.npz" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 8) + b"{}"])
def test_damaged_safetensors_are_one_line(tmp_path, data):
    path = tmp_path / "pairs.safetensors"
    path.write_bytes(data)
    code, error = discover(path, "--out", tmp_path / "out")
    assert code == 1 and "\n" not in error and "pairs.safetensors" in error


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X.astype(">f8"), "y": Y.astype(">f8")},
        {"x": X.astype(">f4"), "y": Y.astype("<f4")},
        {"x": np.asfortranarray(X), "y": Y},
        {"x": X, "y": Y, "names": np.array(["a", None], dtype=object), "when": np.zeros(2, "M8[s]")},
        {"x": X, "y": Y, "t": np.arange(1, 7, dtype=">i4") * 0 + 1},
    ],
    ids=["big-endian", "mixed", "columns first", "other arrays", "integer labels"],
)
def test_good_data_is_read(tmp_path, arrays):
    np.savez_compressed(tmp_path / "pairs.npz", **arrays)
    code, output = discover(tmp_path / "pairs.npz", "--out", tmp_path / "out")
    assert code == 0 and "so(2)" in output


def test_outputs_are_checked_first_and_never_replace_the_input(tmp_path, monkeypatch):
    path = tmp_path / "pairs.npz"
    np.savez(path, x=X, y=Y)
    before = path.read_bytes()
    monkeypatch.setattr("lconv_fast.discovery.discover", lambda *a, **k: pytest.fail("computed before the check"))
    for out in (path, path / "below"):
        code, error = discover(path, "--out", out)
        assert code == 1 and "pairs.npz is a file; expected a folder" in error
    own = tmp_path / "out"
    own.mkdir()
    safetensors.save_file({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}, own / "result.safetensors")
    code, error = discover(own / "result.safetensors", "--out", own)
    assert code == 1 and "is the input" in error
    assert path.read_bytes() == before and len(list(own.iterdir())) == 1


def test_ambiguous_shapes_are_refused_with_a_way_out(tmp_path):
    np.savez(tmp_path / "images.npz", x=X[:, 0], y=Y[:, 0])
    code, error = discover(tmp_path / "images.npz", "--out", tmp_path / "out")
    assert code == 1 and "x[:, None]" in error and "(6, 1, 16, 16)" in error
    assert discover(tmp_path / "images.npz", "--ndim", 1, "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["discover", "demo", "--epochs", "3"], ["discover-demo", "--epochs", "3"]),
        (["discover", "--experiment", "fixed", "paper"], ["discover-paper", "--experiment", "fixed"]),
        (["discover", "--size=7", "paper", "--help"], ["discover-paper", "--size=7", "--help"]),
        (["discover", "pairs.npz", "--out", "demo"], None),
        (["discover", "--out", "demo", "pairs.npz"], None),
        (["discover", "./demo"], None),
        (["discover", "--help"], None),
        (["discover"], None),
        (["bench", "demo"], None),
    ],
)
def test_old_spellings(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert renamed(arguments) == (expected or arguments)
    for name in ("demo", "paper"):
        (tmp_path / name).mkdir()  # a folder is no file of pairs
    assert renamed(arguments) == (expected or arguments)
    for name in ("demo", "paper"):
        (tmp_path / name).rmdir()
        (tmp_path / name).write_text("")
    assert renamed(arguments) == arguments


def test_each_help_shows_its_own_options():
    helps = {
        name: CliRunner().invoke(app, ["discover", *name, "--help"]).output for name in ((), ("demo",), ("paper",))
    }
    assert "--kind" in helps[()] and "--experiment" not in helps[()] and "--epochs" not in helps[()]
    assert "--epochs" in helps["demo",] and "--kind" not in helps["demo",] and "--experiment" not in helps["demo",]
    assert "--experiment" in helps["paper",] and "--kind" not in helps["paper",]


def test_an_experiment_of_the_paper(tmp_path):
    done = CliRunner().invoke(app, ["discover-paper", "--experiment", "shift", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "0.747" in done.output
    rows = json.loads((tmp_path / "out" / "paper.json").read_text())
    assert len(rows) == 2 and (tmp_path / "out" / "paper.png").exists()


def interrupted(arguments, ready, folder):
    """Runs the command in a process, sends SIGINT once its output holds `ready`: exit code, seconds, output."""
    command = [sys.executable, "-u", "-c", "from lconv_fast.cli import main; main()", *arguments]
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=os.environ)
        try:
            limit = time.monotonic() + 120
            while ready not in log.read_text() and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.05)
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            return process.wait(60), time.monotonic() - sent, log.read_text()
        finally:
            process.kill()


def test_ctrl_c_keeps_what_was_found(tmp_path):
    """A real SIGINT, after some of 5000 pairs."""
    x, y = turned_pairs(5000, 20)
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    code, seconds, output = interrupted(["discover", "pairs.npz", "--out", "out"], "pairs.npz:", tmp_path)
    assert code == 130 and "INTERRUPTED after" in output and "Traceback" not in output
    assert "of 5000 pairs" in output and "so(2)" in output
    # A second on an idle machine; a test may run beside others.
    assert seconds < 5
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["interrupted"] is True and result["pairs"] == 5000
    kept = safetensors.load_file(tmp_path / "out" / "result.safetensors")
    assert 2 <= len(kept["parameters"]) < 5000


def test_ctrl_c_in_a_step_that_does_not_return(tmp_path):
    """A linear regression is one call of LAPACK, which hears no signal."""
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((9000, 1, 45, 45)).astype(np.float32) for name in "xy"}
    np.savez(tmp_path / "pairs.npz", **arrays)
    code, seconds, output = interrupted(["discover", "pairs.npz", "--kind", "dense"], "pairs.npz:", tmp_path)
    assert code == 130 and "interrupted" in output and "Traceback" not in output
    assert seconds < 5 and not (tmp_path / "lconv_discovery").exists()
