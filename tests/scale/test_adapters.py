"""Patch libraries with coordinates: no seam between windows."""

import pytest
import torch
from problems import relative_rms
from torch import nn

import lconv_fast as lc
from lconv_fast import adapters


def network():
    """Sees 3 points far."""
    layers = lc.LConv3d(1, 3, "affine"), nn.Tanh(), lc.LConv3d(3, 3, "laplacian"), lc.LConv3d(3, 2, "gl")
    return nn.Sequential(*layers).double().requires_grad_(False)


def inferer(**options):
    inferers = pytest.importorskip("monai.inferers", reason="adapts an inferer of MONAI, where that is installed")
    return inferers.SlidingWindowInferer(**{"roi_size": (16, 12, 16), "overlap": 0.5, "with_coord": True, **options})


@pytest.mark.parametrize("options", [{"sw_batch_size": 4}, {"mode": "gaussian"}], ids=str)
def test_monai(options):
    model, volume = network(), torch.randn(2, 1, 29, 26, 31).double()
    y = adapters.sliding_window(inferer(**options), volume, model, halo=(3, 3, 3))
    assert relative_rms(y, model(volume)) < 1e-14
    plain = inferer(**options, with_coord=False)(volume, model)  # centred on each window
    assert relative_rms(plain, model(volume)) > 1e-2


@pytest.mark.parametrize(
    ("options", "halo", "message"),
    [
        ({"with_coord": False}, (3, 3, 3), "with_coord=True"),
        ({}, (3, 3), "halo: expected 3 integers"),
        ({"overlap": 0.1}, (3, 3, 3), r"overlap by 2 \* halo = \(6, 6, 6\)"),
    ],
    ids=str,
)
def test_monai_refused(options, halo, message):
    with pytest.raises(ValueError, match=message):
        adapters.sliding_window(inferer(**options), torch.randn(1, 1, 29, 26, 31).double(), network(), halo=halo)


def test_torchio():
    tio = pytest.importorskip("torchio", reason="adapts a sampler of TorchIO, where that is installed")
    model, volume = network(), torch.randn(1, 29, 26, 31).double()
    subject = tio.Subject(image=tio.ScalarImage(tensor=volume))
    sampler = tio.inference.GridSampler(subject, patch_size=(16, 12, 16), patch_overlap=6)
    aggregator = tio.inference.GridAggregator(sampler)
    for batch in tio.SubjectsLoader(sampler, batch_size=4):
        with adapters.grid_window(model, batch, sampler):
            aggregator.add_batch(model(batch["image"][tio.DATA].double()), batch[tio.LOCATION])
    assert relative_rms(aggregator.get_output_tensor(), model(volume.float().double())) < 1e-6  # torchio: float32
    with pytest.raises(ValueError, match="batch: expected patches of a GridSampler"):
        adapters.grid_window(model, {"image": 0}, sampler)
