"""MONAI: SlidingWindowInferer with the true coordinates of its windows, and without seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_float, check_module, unsigned_int
from lconv_fast.windows.window import window


def sliding_window(
    inferer: Callable[..., Any], volume: Tensor, model: nn.Module, halo: Sequence[int], **keywords: Any
) -> Tensor:
    """What `model` gives on the whole volume, computed window by window by MONAI.

        inferer = SlidingWindowInferer(roi_size=(64, 64, 64), overlap=0.5, with_coord=True)
        y = lc.adapters.sliding_window(inferer, volume, model, halo=(8, 8, 8))

    Each window is computed at its place (`lconv_fast.window`), and the points that its inner borders reach, `halo`
    deep, have weight 0: with m = 0 there and 1 elsewhere, and MONAI's own weights w of the windows k,

        y = sum_k w_k m_k y_k / sum_k w_k m_k.

    Args:
        inferer: a SlidingWindowInferer with with_coord=True, whose windows overlap by at least 2 * halo points; without
            padding: roi_size fits into the volume.
        volume: (N, C, *spatial).
        model: keeps the size of its input; with another padding_mode than 'circular'. Layers that are not local (norms
            over points) see the window alone.
        halo: how far the model sees along each axis.
        **keywords: handed on to the model.

    Raises:
        ValueError: an inferer without coordinates; a halo of another length; points that are covered by borders alone;
            origins that the model's strides do not divide.
    """
    if not getattr(inferer, "with_coord", False):
        raise ValueError("inferer: expected a SlidingWindowInferer with with_coord=True, which tells where windows lie")
    check_module("model", model)
    check_float("volume", volume, (3, 4, 5), "(N, C, *spatial) with 1 to 3 axes")
    full = tuple(volume.shape[2:])
    if not isinstance(halo, (tuple, list)) or len(halo) != len(full):
        raise ValueError(f"halo: expected {len(full)} integers from 0 on, got {halo!r}")
    for reach in halo:
        unsigned_int("halo", reach)

    def predict(patch: Tensor, slices: list[list[slice]], **rest: Any) -> tuple[Tensor, Tensor]:
        origins = [tuple(s.start for s in row[2:]) for row in slices]
        with window(model, origins[0] if len(origins) == 1 else origins, full):
            y = model(patch, **rest)
        if y.shape[2:] != patch.shape[2:]:
            raise ValueError(f"model: expected an output of the window's size, got {tuple(y.shape)}")
        mask = torch.stack([_exact(origin, patch.shape[2:], full, halo, y) for origin in origins]).unsqueeze(1)
        return torch.where(mask > 0, y, 0), mask

    sums, weights = inferer(volume, predict, **keywords)
    if not bool((weights > 0).all()):
        raise ValueError(
            f"inferer: expected windows that overlap by 2 * halo = {tuple(2 * h for h in halo)} points, but "
            f"{int((weights <= 0).sum())} points lie within the halo of every window that holds them"
        )
    return sums / weights


def _exact(
    origin: Sequence[int], size: Sequence[int], full: Sequence[int], halo: Sequence[int], like: Tensor
) -> Tensor:
    """1 where a patch gives what the full grid gives, 0 elsewhere: (*size,)."""
    mask = like.new_ones(tuple(size))
    for a, (first, n, whole, reach) in enumerate(zip(origin, size, full, halo, strict=True)):
        if first > 0:
            mask.narrow(a, 0, min(reach, n)).zero_()
        if first + n < whole:
            mask.narrow(a, max(n - reach, 0), min(reach, n)).zero_()
    return mask
