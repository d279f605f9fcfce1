"""The bundled photograph."""

from __future__ import annotations

import numpy as np
import torch
from skimage.data import astronaut
from skimage.transform import resize
from torch import Tensor


def photograph(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The astronaut photograph, (1, 3, size, size), values in [0, 1], resized with anti-aliasing."""
    image = astronaut().astype(np.float64) / 255
    if size != image.shape[0]:
        image = resize(image, (size, size), anti_aliasing=True)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).unsqueeze(0).to(dtype)
