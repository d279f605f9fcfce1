"""A network of affine fields on a volume, window by window: MONAI and TorchIO, each beside the whole volume.

    python examples/windows.py            # needs monai; torchio where it is installed

Prints the largest difference from the whole volume, with the windows at their true places and without.
"""

import torch
from torch import nn

import lconv_fast as lc

HALO = 3  # three layers that see one point far


def by_monai(model: nn.Module, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from monai.inferers import SlidingWindowInferer

    placed = SlidingWindowInferer(roi_size=(24, 24, 24), overlap=0.5, sw_batch_size=4, with_coord=True)
    centred = SlidingWindowInferer(roi_size=(24, 24, 24), overlap=0.5, sw_batch_size=4)
    return lc.adapters.sliding_window(placed, volume, model, halo=(HALO,) * 3), centred(volume, model)


def by_torchio(model: nn.Module, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torchio as tio

    subject = tio.Subject(image=tio.ScalarImage(tensor=volume[0]))
    sampler = tio.inference.GridSampler(subject, patch_size=24, patch_overlap=2 * HALO)
    placed, centred = tio.inference.GridAggregator(sampler), tio.inference.GridAggregator(sampler)
    for batch in tio.SubjectsLoader(sampler, batch_size=4):
        patch, location = batch["image"][tio.DATA], batch[tio.LOCATION]
        with lc.adapters.grid_window(model, batch, sampler):
            placed.add_batch(model(patch), location)
        centred.add_batch(model(patch), location)
    return placed.get_output_tensor()[None], centred.get_output_tensor()[None]


def main() -> None:
    torch.manual_seed(0)
    layers = lc.LConv3d(1, 4, "affine"), nn.Tanh(), lc.LConv3d(4, 4, "laplacian"), nn.Tanh(), lc.LConv3d(4, 2, "gl")
    model = nn.Sequential(*layers).requires_grad_(False)
    volume = torch.randn(1, 1, 60, 52, 56)
    whole = model(volume)
    for name, run in (("MONAI", by_monai), ("TorchIO", by_torchio)):
        try:
            errors = [(y - whole).abs().max().item() for y in run(model, volume)]
        except ModuleNotFoundError as missing:
            print(f"{name}: {missing}")
            continue
        print(f"{name}: at its place {errors[0]:.1e}, centred on each window {errors[1]:.1e}")


if __name__ == "__main__":
    main()
