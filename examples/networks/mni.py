"""Grey and white matter of the MNI152 template (ICBM 2009a, in nilearn's wheel), 3D: segmentation by a small U-Net.

The template at 2 mm; grey matter is where its probability is above a half, white matter likewise. The template is a
mean of 152 heads and has no noise, so that images get what a scanner adds: a smooth factor (up to 30 %) and noise,
drawn anew for each crop. Six disjoint slabs from back to front: two are the test in every seed, one of the two in the
middle validates, the three others train.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from common import CONTENDERS, experiment, is_quick
from segmentation import trial
from torch import Tensor
from torch.nn import functional as F

WIDTHS, BATCH = (8, 16, 32), 2
STEPS = 4 if is_quick() else 150
SLABS, THICK, FIRST = 6, 16, 10  # along axis 1, of 116 points
TEST, MIDDLE, ENDS = (1, 4), (2, 3), (0, 5)
CROP, CROPS = (32, 16, 32), 8 if is_quick() else 128
NOISE, BIAS = 0.15, 0.3


@cache
def template(cell: int = 2) -> tuple[Tensor, Tensor]:
    """T1, its mean in the brain 1, and classes, in cells of cell^3 mm: (98, 116, 94) of 2, (197, 233, 189) of 1."""
    import nibabel

    package = find_spec("nilearn")  # found and not imported: the files are all that is needed
    if package is None or package.origin is None:
        raise ModuleNotFoundError("nilearn, whose wheel has the template: pip install --no-deps nilearn nibabel")
    folder = Path(package.origin).parent / "datasets" / "data"

    def load(kind: str) -> Tensor:
        image = nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        full = torch.from_numpy(image.get_fdata(dtype="float32"))
        return F.avg_pool3d(full[None, None], cell)[0, 0] / 255

    t1, grey, white = load("t1"), load("gm"), load("wm")
    return t1 / t1[t1 > 0].mean(), (grey > 0.5).long() + 2 * (white > 0.5).long()


def scanned(clean: Tensor, random: torch.Generator) -> Tensor:
    """Times a smooth factor, plus noise."""
    factor = F.interpolate(
        torch.rand(1, 1, 3, 3, 3, generator=random), clean.shape, mode="trilinear", align_corners=True
    )
    return clean * (1 + BIAS * (2 * factor[0, 0] - 1)) + NOISE * torch.randn(clean.shape, generator=random)


def slab(index: int) -> tuple[Tensor, Tensor]:
    return tuple(t.narrow(1, FIRST + THICK * index, THICK) for t in template())  # type: ignore[return-value]


def crops(slabs: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops (count, 1, 32, 16, 32) of the slabs in turn, a quarter of them brain at least, and their classes."""
    random = torch.Generator().manual_seed(seed)
    images, labels = [], []
    while len(images) < count:
        clean, classes = slab(slabs[len(images) % len(slabs)])
        start = [
            int(torch.randint(size - crop + 1, (), generator=random))
            for size, crop in zip(clean.shape, CROP, strict=True)
        ]
        box = tuple(slice(s, s + crop) for s, crop in zip(start, CROP, strict=True))
        if (clean[box] > 0).float().mean() > 0.25:
            images.append(scanned(clean[box], random))
            labels.append(classes[box])
    return torch.stack(images)[:, None], torch.stack(labels)


def whole(slabs: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    parts = [slab(index) for index in slabs]
    return torch.stack([scanned(t, random) for t, _ in parts])[:, None], torch.stack([c for _, c in parts])


def draw(part: str, seed: int) -> tuple[Tensor, Tensor]:
    held = MIDDLE[seed % len(MIDDLE)]
    if part == "training":
        return crops(tuple(s for s in (*MIDDLE, *ENDS) if s != held), CROPS, 10 * seed)
    return whole((held,), 10 * seed + 1) if part == "validation" else whole(TEST, 10 * seed + 2)


if __name__ == "__main__":
    experiment(
        "mni",
        __doc__ or "",
        list(CONTENDERS),
        trial(draw, ("grey", "white"), WIDTHS, STEPS, BATCH),
        tuning_seeds=(100, 101),
    )
