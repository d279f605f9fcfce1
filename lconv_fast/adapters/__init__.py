"""MONAI's sliding windows and TorchIO's grids of patches, at their true coordinates; neither package is imported."""

from lconv_fast.adapters.monai import sliding_window
from lconv_fast.adapters.torchio import grid_window

__all__ = ["grid_window", "sliding_window"]
