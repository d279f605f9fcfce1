"""Nuclei under a fluorescence microscope, 2D: the image of 512 x 512 points with masks that stardist's wheel brings.

Three classes: outside, inside, and the rim (points of a nucleus beside another nucleus or the outside), which parts
nuclei that touch. The image is clean; noise is added, as a short exposure has it. Four strips of 128 lines: one is the
test in every seed, one of the others validates, two train, in crops that are reflected at random.
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

WIDTHS, BATCH = (16, 32, 64), 4
STEPS = 4 if is_quick() else 150
STRIP, TEST, OTHERS = 128, 2, (0, 1, 3)
CROP, CROPS = 64, 16 if is_quick() else 256
NOISE = 0.5  # of the standard deviation of the image


@cache
def picture() -> tuple[Tensor, Tensor]:
    """The image, mean 0 and variance 1, and its classes: (512, 512) each."""
    from skimage import io

    package = find_spec("stardist")  # found and not imported: the files are all that is needed
    if package is None or package.origin is None:
        raise ModuleNotFoundError("stardist, whose wheel has the image: pip install --no-deps stardist")
    folder = Path(package.origin).parent / "data" / "images"
    image, mask = (torch.from_numpy(io.imread(folder / f"{name}2d.tif").astype("float32")) for name in ("img", "mask"))
    around = F.pad(mask[None, None], (1, 1, 1, 1), mode="replicate")
    largest, least = F.max_pool2d(around, 3, 1)[0, 0], -F.max_pool2d(-around, 3, 1)[0, 0]
    inside = mask > 0
    return (image - image.mean()) / image.std(), inside.long() + (inside & (largest != least)).long()


def draw(part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, height, width) and classes."""
    image, classes = picture()
    held = OTHERS[seed % len(OTHERS)]
    kind = ("training", "validation", "test").index(part)
    random = torch.Generator().manual_seed(10 * seed + kind)
    if part != "training":
        strip = slice(STRIP * (held if part == "validation" else TEST), None)
        images, labels = image[strip][None, :STRIP], classes[strip][None, :STRIP]
    else:
        strips = [s for s in OTHERS if s != held]
        crops = []
        for index in range(CROPS):
            top = STRIP * strips[index % len(strips)] + int(torch.randint(STRIP - CROP + 1, (), generator=random))
            left = int(torch.randint(image.shape[1] - CROP + 1, (), generator=random))
            axes = [axis for axis in (0, 1) if torch.rand((), generator=random) < 0.5]
            box = slice(top, top + CROP), slice(left, left + CROP)
            crops.append((image[box].flip(axes), classes[box].flip(axes)))
        images, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
    return (images + NOISE * torch.randn(images.shape, generator=random))[:, None], labels


if __name__ == "__main__":
    experiment(
        "nuclei",
        __doc__ or "",
        list(CONTENDERS),
        trial(draw, ("inside", "rim"), WIDTHS, STEPS, BATCH),
        tuning_seeds=(100,),
    )
