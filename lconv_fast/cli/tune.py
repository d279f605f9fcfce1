"""`lconv-fast tune`: the fastest tiles of the GPU kernels on this card."""

from __future__ import annotations

from typing import Annotated

import typer

from lconv_fast.cli.shared import console, fail


def tune(
    size: Annotated[int, typer.Option(min=64, help="Points on a side of the images to tune on.")] = 1024,
    channels: Annotated[int, typer.Option(min=16, help="Channels to tune for.")] = 64,
) -> None:
    """Finds the fastest tiles of the GPU kernels on this card and keeps them in a file; deleting it undoes that."""
    import torch

    if not torch.cuda.is_available():
        fail("tune needs a GPU, and PyTorch finds none")
    from lconv_fast.ops.gpu.tables import tuned_file
    from lconv_fast.ops.gpu.tune import tune as find

    for row, tile, gain in find(size, channels):
        console.print(f"{row}: {tile}, {gain:.2f} times the speed of the table's")
    console.print(f"written: {tuned_file()}", markup=False)
