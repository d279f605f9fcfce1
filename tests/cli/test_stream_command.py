"""`lconv-fast stream`: a saved model over volumes in files."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from typer.testing import CliRunner

import lconv_fast as lc
from lconv_fast import cli

SHAPE = (14, 12, 10)
PACKAGES = {".npy": "numpy", ".tif": "tifffile", ".zarr": "zarr", ".nii": "nibabel", ".nii.gz": "nibabel"}


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        import tifffile

        tifffile.imwrite(path, array)
    elif path.suffix == ".zarr":
        import zarr

        zarr.create_array(path, data=array)
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 3, 4, 1])), path)


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".tif":
        import tifffile

        return tifffile.imread(path)
    if path.suffix == ".zarr":
        import zarr

        return zarr.open_array(path, mode="r")[:]
    import nibabel

    image = nibabel.load(path)
    assert image.affine[0, 0] == 2 or "other" in path.name
    return np.asarray(image.dataobj)


@pytest.fixture
def network(tmp_path):
    """And its files: of torch.save, and of torch.export for all sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(lc.LConv3d(1, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1)).eval()
    torch.save(model, tmp_path / "model.pt")
    sizes = {d: Dim.AUTO for d in (2, 3, 4)}
    torch.export.save(
        torch.export.export(model, (torch.randn(1, 1, 8, 9, 10),), dynamic_shapes=(sizes,)), tmp_path / "model.pt2"
    )
    return model


def run(*arguments):
    return CliRunner().invoke(cli.app, ["stream", *map(str, arguments)])


@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("saved", ["model.pt", "model.pt2"])
def test_files(kind, saved, network, tmp_path):
    pytest.importorskip(PACKAGES[kind], reason="reads and writes this format with an optional package")
    array = (100 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.int16)
    write(tmp_path / f"x{kind}", array)
    done = run(
        tmp_path / saved,
        tmp_path / f"x{kind}",
        "--out",
        tmp_path / f"y{kind}",
        "--tile",
        "8,8,8",
        "--transform",
        "argmax",
    )
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        expected = network(torch.from_numpy(array).float()[None, None]).argmax(1)[0]
    assert np.array_equal(read(tmp_path / f"y{kind}"), expected.numpy())
    assert "written" in done.output and not list(tmp_path.glob("*.unfinished"))


def test_channels_stand_last_in_nifti_files(network, tmp_path):
    pytest.importorskip("nibabel", reason="reads and writes .nii with the optional package nibabel")
    array = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    done = run(tmp_path / "model.pt", tmp_path / "x.npy", "--out", tmp_path / "other.nii", "--memory", "64 MiB")
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        expected = network(torch.from_numpy(array)[None, None])[0]
    assert np.abs(read(tmp_path / "other.nii") - expected.movedim(0, -1).numpy()).max() < 1e-5


def test_explain_writes_nothing(network, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(SHAPE, np.float32))
    done = run(tmp_path / "model.pt", tmp_path / "x.npy", "--out", tmp_path / "y.npy", "--tile", "8,8,8", "--explain")
    assert done.exit_code == 0 and not (tmp_path / "y.npy").exists()


def test_refusals_take_one_line(network, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(SHAPE, np.float32))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    model, x, y = tmp_path / "model.pt", tmp_path / "x.npy", tmp_path / "y.npy"
    for arguments, text in (
        ((tmp_path / "none.pt", x, "--out", y), "model: expected a file"),
        ((tmp_path / "state.pt", x, "--out", y), "expected a saved nn.Module"),
        ((model, tmp_path / "none.npy", "--out", y), "volume: expected a file"),
        ((model, tmp_path / "x.mat", "--out", y), "volume: expected a file of"),
        ((model, x, "--out", x), "is the volume"),
        ((model, x, "--out", y, "--tile", "8,b"), "tile: expected integers"),
        ((model, x, "--out", y, "--transform", "max"), "transform: expected"),
        ((model, x, "--out", y, "--resume"), "resume: expected"),
        ((model, x, "--out", tmp_path / "none" / "y.npy"), "out: expected a folder"),
    ):
        done = run(*arguments)
        assert done.exit_code and text in str(done.exception or done.output) + done.output, (arguments, done.output)
    assert not y.exists()
