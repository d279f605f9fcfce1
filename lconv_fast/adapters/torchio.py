"""TorchIO: batches of a GridSampler at their true coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lconv_fast.windows.window import window

LOCATION = "location"  # torchio.LOCATION: (N, 6), the first point of each patch and the one behind its last


def grid_window(model: nn.Module, batch: Mapping[str, Any], sampler: Any) -> window:
    """`lconv_fast.window` for the patches of a batch.

        sampler = tio.inference.GridSampler(subject, patch_size=64, patch_overlap=16)
        aggregator = tio.inference.GridAggregator(sampler)
        for batch in tio.SubjectsLoader(sampler, batch_size=4):
            with lc.adapters.grid_window(model, batch, sampler):
                y = model(batch["t1"][tio.DATA])
            aggregator.add_batch(y, batch[tio.LOCATION])

    GridAggregator's overlap_mode 'crop' keeps the inner part of each patch, half of the overlap away from its borders:
    with patch_overlap >= 2 * halo the seam is zero. The first point of each patch has to be divisible by the model's
    strides.

    Args:
        model: as for `lconv_fast.window`, on 3 axes.
        batch: of a loader over `sampler`, with its locations.
        sampler: the GridSampler, whose subject is the full grid (after padding_mode, if it has one).

    Raises:
        ValueError: a batch without locations; and as `lconv_fast.window`.
    """
    if not isinstance(batch, Mapping) or LOCATION not in batch:
        came = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch: expected patches of a GridSampler, with {LOCATION!r}, got {came}")
    full = getattr(getattr(sampler, "subject", None), "spatial_shape", None)
    if full is None:
        raise TypeError(f"sampler: expected a GridSampler, with its subject, got {type(sampler).__name__}")
    return window(model, batch[LOCATION][:, :3], tuple(int(n) for n in full))
