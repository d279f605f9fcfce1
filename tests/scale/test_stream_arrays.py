"""What streams are read from and written to; what is refused before the work; interruptions."""

import numpy as np
import pytest
import torch
from torch import nn

import lconv_fast as lc
from lconv_fast.streaming import arrays, store


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1))


def memmap(path, array, mode="r"):
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


@pytest.fixture
def spill(tmp_path):
    folder = tmp_path / "spill"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", ["tensor", "memmap", "zarr"])
def test_arrays(kind, tmp_path, spill):
    """Volumes and targets without leading dimensions, predictions by argmax; the same whatever holds them."""
    model, x = network(), torch.randn(12, 11, 10)
    labels = torch.randint(0, 2, (12, 11, 10)).to(torch.uint8)
    with torch.no_grad():
        expected = model(x[None, None]).argmax(1)[0]
    if kind == "tensor":
        volume, target, out = x, labels, torch.empty(12, 11, 10, dtype=torch.int64)
    elif kind == "memmap":
        volume, target = memmap(tmp_path / "x.npy", x.numpy()), memmap(tmp_path / "t.npy", labels.numpy())
        out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.int64, (12, 11, 10))
    else:
        zarr = pytest.importorskip("zarr", reason="streams arrays of zarr, where that is installed")
        volume = zarr.create_array(tmp_path / "x.zarr", data=x.numpy(), chunks=(5, 5, 5))
        target = zarr.create_array(tmp_path / "t.zarr", data=labels.numpy(), chunks=(5, 5, 5))
        out = zarr.create_array(tmp_path / "out.zarr", shape=(12, 11, 10), dtype="int64", chunks=(5, 5, 5))
    streamed = lc.stream(model, (6, 6, 6), spill, progress=False)
    assert streamed.predict(volume, out, transform=torch.argmax) is out
    assert torch.equal(torch.as_tensor(np.asarray(out[:])), expected)
    found = streamed.forward_backward(volume, target, nn.CrossEntropyLoss())
    whole = nn.CrossEntropyLoss()(model(x[None, None]), labels[None].long())
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)
    assert list(spill.iterdir()) == [] and not list(tmp_path.glob("*.unfinished"))


class Stops(Exception):
    pass


def stopping(after):
    """A transform that is interrupted at its so-manieth tile; the first calls are on a few points."""
    count = [0]

    def transform(prediction):
        if max(prediction.shape[-3:]) > 4:
            count[0] += 1
            if count[0] > after:
                raise Stops
        return prediction

    transform.count = count
    return transform


@pytest.mark.parametrize("kind", ["tensor", "memmap"])
def test_an_interrupted_prediction_goes_on(kind, tmp_path, spill):
    model, x = network(), torch.randn(1, 1, 12, 12, 12)
    with torch.no_grad():
        expected = model(x)
    out = torch.zeros(1, 2, 12, 12, 12)
    if kind == "memmap":
        out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (1, 2, 12, 12, 12))
    streamed = lc.stream(model, (6, 6, 6), spill, progress=False)
    with pytest.raises(Stops):
        streamed.predict(x, out, stopping(3))
    assert list(spill.iterdir()) == []
    if kind == "memmap":  # as another process would
        streamed = lc.stream(model, (6, 6, 6), spill, progress=False)
    rest = stopping(100)
    streamed.predict(x, out, rest, resume=True)
    assert rest.count[0] == 5
    assert (torch.as_tensor(np.asarray(out)) - expected).abs().max() < 1e-5
    assert not list(tmp_path.glob("*.unfinished"))
    with pytest.raises(Stops):
        streamed.predict(x, out, stopping(3))
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(ValueError, match=r"resume: the interrupted prediction was of other weights"):
        streamed.predict(x, out, resume=True)


def test_an_interrupted_step_changes_nothing_and_leaves_no_files(spill):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = [0]

    def loss(prediction, target):
        count[0] += 1
        if count[0] > 5:
            raise KeyboardInterrupt
        return (prediction - target) ** 2

    x, t = torch.randn(1, 1, 20, 20), torch.randn(1, 1, 16, 16)
    with pytest.raises(KeyboardInterrupt):
        lc.stream(model, (8, 8), spill, progress=False).forward_backward(x, t, loss)
    assert all(p.grad is None for p in model.parameters()) and list(spill.iterdir()) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def refusals(spill):
    model, x, t = network(), torch.randn(1, 1, 8, 8, 8), torch.randn(1, 2, 8, 8, 8)
    streamed = lc.stream(model, (4, 4, 4), spill, progress=False)
    mean = nn.functional.mse_loss
    yield lambda: lc.stream(model), ValueError, "expected tile or memory, got neither"
    yield lambda: lc.stream(3, (4, 4, 4)), TypeError, "model: expected an nn.Module, got int"
    yield lambda: lc.stream(model, (4, 0, 4)), ValueError, "tile: expected"
    yield lambda: lc.stream(model, memory="much"), ValueError, "memory: expected bytes"
    yield lambda: lc.stream(model, (4, 4, 4), spill / "none"), FileNotFoundError, "spill: expected a folder"
    yield lambda: streamed.predict(x.double()), TypeError, "volume: expected torch.float32 as the model, got"
    yield lambda: streamed.predict(x[0, 0, 0]), ValueError, "volume: expected"
    yield lambda: streamed.predict("x.npy"), TypeError, "volume: expected a tensor"
    yield lambda: streamed.predict(x, torch.empty(8, 8, 8)), ValueError, r"out: expected shape \(1, 2, 8, 8, 8\)"
    yield lambda: streamed.predict(x, torch.empty(1, 2, 8, 8, 8, dtype=torch.int32)), TypeError, "out: expected"
    frozen = np.empty((1, 2, 8, 8, 8), np.float32)
    frozen.flags.writeable = False
    yield lambda: streamed.predict(x, frozen), ValueError, "out: .*read-only"
    yield lambda: streamed.predict(x, transform=lambda p: p.mean()), ValueError, "transform: expected a result for each"
    yield lambda: streamed.predict(x, transform=lambda p: p - p.amax()), ValueError, "transform: expected a local one"
    yield lambda: streamed.forward_backward(x, t, mean), ValueError, "loss: .*reduction='none'"
    yield lambda: streamed.forward_backward(x, t, lambda p, y: p * p.mean()), ValueError, "loss: expected a local one"
    yield lambda: streamed.forward_backward(x, t[..., 1:], nn.MSELoss()), ValueError, "target: expected the space"
    yield lambda: streamed.forward_backward(x, t, 3), TypeError, "loss: expected a function"
    yield lambda: streamed.forward_backward(x, t, nn.MSELoss(), reduction="max"), ValueError, "reduction: expected"
    flat = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Flatten(2), nn.Softmax(-1))
    wrong = lc.stream(flat, (4, 4, 4), spill, progress=False)
    yield lambda: wrong.predict(x), ValueError, "stream: the model is not local: 1: aten.flatten"


def test_refusals(spill):
    for call, kind, text in refusals(spill):
        with pytest.raises(kind, match=text):
            call()
    assert list(spill.iterdir()) == []


def test_a_full_disk_is_an_error_before_the_work(spill, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    model = nn.Sequential(nn.Conv3d(1, 16, 3), nn.Conv3d(16, 16, 3), nn.InstanceNorm3d(16))
    with pytest.raises(OSError, match=r"spill: expected .* of free space .* nothing was computed"):
        lc.stream(model, (8, 8, 8), spill, progress=False).predict(torch.randn(1, 1, 24, 24, 24))


def test_other_byte_order(spill):
    """As NIfTI files may have it."""
    model, x = network(), np.random.default_rng(0).standard_normal((1, 1, 8, 8, 8)).astype(">f4")
    y = lc.stream(model, (4, 4, 4), spill, progress=False).predict(x)
    with torch.no_grad():
        assert (y - model(torch.from_numpy(x.astype("f4")))).abs().max() < 1e-5
    assert arrays.dtype_of("x", x) == torch.float32
