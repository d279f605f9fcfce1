"""Results: reproducible, saved, and what an interruption leaves."""

import json

import numpy as np
import pytest
import torch
from discovery_data import bilinear_rotation
from scipy import ndimage

import lconv_fast as lc
from lconv_fast.discovery import alignment, discover
from lconv_fast.discovery.routes import labelled, lconv, search
from lconv_fast.outputs import check_folder, filled


def test_results_are_reproducible_and_saved(tmp_path):
    pytest.importorskip("safetensors", reason="saving needs the optional package safetensors")
    x = torch.rand(4, 1, 16, 16, dtype=torch.float64) - 0.5
    y = bilinear_rotation(x, 0.2)
    first, again = (discover(x, y, progress=False) for _ in range(2))
    assert torch.equal(first.generators.matrix, again.generators.matrix)
    first.save(tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "result.safetensors")
    assert torch.equal(saved["generators.matrix"], first.generators.matrix)
    # A layer with what was found.
    layer = lc.LConv2d(1, 3, generators=first.generators)
    assert layer(x.float()).shape == (4, 3, 16, 16)
    assert "so(2)" in first.summary()


def interrupting(monkeypatch, module, name, at):
    """Ctrl-C in the call number `at`, counted from 0, of a function of a module."""
    right, calls = getattr(module, name), []

    def call(*arguments, **keywords):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return right(*arguments, **keywords)

    monkeypatch.setattr(module, name, call)


def turned(count=8):
    x = torch.rand(count, 1, 16, 16, dtype=torch.float64) - 0.5
    return x, bilinear_rotation(x, 0.2)


@pytest.mark.parametrize("rank", [None, 1, 5])
def test_interrupted_keeps_what_was_found(monkeypatch, tmp_path, rank):
    interrupting(monkeypatch, search, "register", 3)
    with pytest.warns(RuntimeWarning, match="interrupted; the result holds what 3 of 8 pairs showed"):
        found = discover(*turned(), num_generators=rank, progress=False)
    assert found.interrupted and len(found.parameters) == 3 and found.dimension == min(rank or 1, 3)
    assert found.summary().startswith("INTERRUPTED after 3 of 8 pairs")
    found.save(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"] is True


def test_interrupted_before_anything_is_known(monkeypatch):
    interrupting(monkeypatch, search, "register", 1)
    with pytest.raises(KeyboardInterrupt):
        discover(*turned(), progress=False)


@pytest.mark.parametrize(("arguments", "at"), [({"kind": "field"}, 1), ({}, 1)])
def test_interrupted_joint_registration_keeps_the_best_fit(monkeypatch, arguments, at):
    x, y = turned(2)
    y = y + 0.5 * y.std() * torch.randn_like(y)  # noisy enough for a second search
    module = search if arguments else labelled
    interrupting(monkeypatch, module, "register" if arguments else "search_again", at if arguments else 0)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        found = discover(x, y, parameters=torch.full((2,), 0.2), progress=False, **arguments)
    assert found.interrupted and found.dimension == 1


def test_interrupted_lconv_route_keeps_the_last_grid(monkeypatch):
    """Two grids; interrupted on the second, it has the first one's generators in the second one's pixels."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((2, 1, 32, 32)), (0, 0, 3, 3)))
    y = torch.from_numpy(ndimage.rotate(x.numpy(), 9, (3, 2), False, order=3))
    fits = []
    right = lconv._fit
    monkeypatch.setattr(lconv, "_fit", lambda *a: fits.append(1) or right(*a))
    whole = discover(x, y, parameters=torch.full((2,), 0.157), route="lconv", progress=False)
    monkeypatch.undo()
    interrupting(monkeypatch, lconv, "_fit", len(fits) - 1)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        found = discover(x, y, parameters=torch.full((2,), 0.157), route="lconv", progress=False)
    assert found.interrupted and not whole.interrupted
    assert alignment(found.generators, whole.generators, (32, 32)).angles[0] < 5
    ratio = found.generators.matrix.norm() / whole.generators.matrix.norm()
    assert 0.9 < ratio < 1.1


def test_a_folder_holds_one_run(tmp_path):
    """Files of an earlier run are replaced or removed together; others stay; a failure changes nothing."""
    (tmp_path / "fields.png").write_text("of an earlier run")
    (tmp_path / "notes.txt").write_text("mine")
    with filled(tmp_path, ("result.json", "fields.png")) as place:
        (place / "result.json").write_text("{}")
    assert {f.name for f in tmp_path.iterdir()} == {"result.json", "notes.txt"}
    with pytest.raises(RuntimeError, match="disk full"), filled(tmp_path, ("result.json",)) as place:
        (place / "result.json").write_text("half")
        raise RuntimeError("disk full")
    assert (tmp_path / "result.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 2


def test_folders_are_checked_before_the_work(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    for folder in (taken, taken / "below"):
        with pytest.raises(OSError, match="taken is a file; expected a folder"):
            check_folder(folder, ("result.json",))
    given = tmp_path / "result.safetensors"
    given.write_text("")
    with pytest.raises(OSError, match="is the input"):
        check_folder(tmp_path, ("result.safetensors",), [given])
    alias = tmp_path / "pairs.npz"
    alias.hardlink_to(given)
    with pytest.raises(OSError, match="is the input"):
        check_folder(tmp_path, ("result.safetensors",), [alias])
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(OSError, match="link to nothing"):
        check_folder(tmp_path / "link", ())
    check_folder(tmp_path / "new" / "folder", ())
    assert not (tmp_path / "new").exists()
