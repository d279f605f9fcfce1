"""Which tile a kernel works in, and what fits its registers: closed tables, and what `lconv-fast tune` finds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    points: int
    outs: int  # most channels that a program makes, and sums over at a time; no more than there are
    ins: int
    warps: int
    places: int = 2  # programs of a multiprocessor, where nothing is compiled


HALF, SINGLE, DOUBLE = "half", "float32", "float64"

# No stack spills with these on sm_80 and sm_90 in what tests/test_gpu_compile.py compiles.
TILES: dict[tuple[str, str], Tile] = {
    ("apply", HALF): Tile(64, 64, 32, 8),
    ("apply", SINGLE): Tile(64, 64, 32, 8),
    ("apply", DOUBLE): Tile(32, 32, 16, 4),
    ("gram", HALF): Tile(32, 64, 64, 8),
    ("gram", SINGLE): Tile(16, 32, 32, 4),
    ("gram", DOUBLE): Tile(32, 32, 16, 4),
    ("correlate", HALF): Tile(64, 64, 32, 8),
    ("correlate", SINGLE): Tile(32, 32, 16, 4),
    ("correlate", DOUBLE): Tile(32, 32, 16, 4),
}


Limits = tuple[int, int, int]  # on cards before Hopper, on Hopper, after it


class March(NamedTuple):
    points: int  # columns of a program
    outs: int
    warps: int
    least_lines: int  # of a strip
    # More generators than these would spill registers, as Triton 3.6 or 3.9 compiles them.
    most_affine: Limits
    most_fields: Limits
    basis: Limits  # whether all fields x_b D_a and D_a fit, at a factor a number each
    held: int = 2  # lines that stay in registers; of three the others come from the first-level cache again
    ahead: int = 2  # blocks of channels that are loaded before they are needed, at most all
    apart: bool = False  # whether the loads of a block of channels wait for the products of the one before
    most_taps: Limits = (0, 0, 0)  # of constant stencils, that of f itself among them

    @property
    def places(self) -> int:
        """Programs of a multiprocessor, where nothing is compiled: so many have all their registers."""
        return 8 // self.warps


# By (axes, width of the channels, transposed): the first entry that fits is taken. See `width_of`.
MARCHES: dict[tuple[int, int, bool], tuple[March, ...]] = {
    (2, 1, False): (March(64, 64, 4, 16, (3, 3, 3), (6, 6, 6), (1, 1, 1)),),
    (2, 1, True): (March(64, 64, 4, 16, (3, 3, 3), (6, 6, 6), (1, 1, 1), 2, 0),),
    (2, 2, False): (
        March(64, 64, 4, 16, (3, 3, 3), (4, 4, 6), (0, 1, 0)),
        March(64, 64, 4, 16, (0, 0, 0), (0, 0, 0), (0, 0, 1), 0, 2),
        March(64, 64, 4, 16, (0, 0, 0), (0, 6, 0), (0, 0, 0), 0, 0, True),
    ),
    (2, 2, True): (March(64, 64, 4, 16, (3, 3, 3), (3, 3, 6), (0, 1, 1), 2, 0),),
    (2, 3, False): (
        March(128, 128, 8, 16, (0, 2, 2), (0, 2, 2), (0, 0, 0), 1, 3, True),
        March(128, 128, 8, 16, (0, 3, 3), (0, 3, 3), (0, 0, 0), 0, 2, True),
        March(128, 64, 8, 16, (0, 0, 0), (0, 3, 6), (0, 1, 1), 0, 1, True),
    ),
    (2, 3, True): (
        March(64, 128, 4, 16, (0, 2, 0), (0, 2, 0), (0, 0, 0), 0, 0, True),
        March(128, 128, 8, 16, (0, 0, 3), (0, 0, 3), (0, 0, 0), 0, 0, True),
        March(128, 64, 8, 16, (0, 3, 2), (0, 3, 3), (0, 1, 1), 0, 0, True),
    ),
    (2, 4, False): (
        March(128, 64, 8, 16, (0, 2, 2), (0, 2, 2), (0, 0, 0), 0, 2, True),
        March(128, 64, 8, 16, (0, 3, 3), (0, 2, 2), (0, 0, 0), 0, 0, True),
    ),
    (2, 4, True): (March(128, 64, 8, 16, (0, 3, 2), (0, 2, 3), (0, 1, 1), 0, 0, True),),
    (3, 1, False): (March(64, 64, 4, 16, (4, 4, 4), (6, 6, 6), (1, 1, 1)),),
    (3, 1, True): (March(64, 64, 4, 16, (3, 4, 4), (6, 3, 6), (1, 1, 1), 2, 0),),
    (3, 2, False): (
        March(128, 64, 8, 16, (0, 3, 0), (0, 3, 0), (0, 0, 0), 0, 0, True),
        March(64, 32, 4, 16, (0, 0, 0), (0, 0, 0), (0, 1, 0)),
        March(128, 64, 8, 16, (3, 0, 4), (4, 0, 3), (0, 0, 0), 2, 0),
    ),
    (3, 2, True): (
        March(128, 64, 8, 16, (0, 3, 0), (0, 3, 0), (0, 1, 0), 0, 0, True),
        March(128, 64, 8, 16, (4, 0, 3), (4, 0, 3), (0, 0, 1), 2, 0),
    ),
    (3, 3, False): (
        March(128, 128, 8, 16, (0, 0, 3), (0, 0, 3), (0, 0, 0), 0, 0, True),
        March(128, 64, 8, 16, (0, 3, 3), (0, 2, 3), (0, 0, 0), 0, 0, True),
    ),
    (3, 3, True): (
        March(128, 128, 8, 16, (0, 0, 3), (0, 0, 3), (0, 0, 0), 0, 0, True),
        March(128, 64, 8, 16, (0, 2, 3), (0, 2, 3), (0, 0, 0), 0, 0, True),
    ),
}


def width_of(blocks: int) -> int:
    """Key of the tables for so many blocks of 32 channels: 1, 2, 3 for up to 128 channels, 4 for more."""
    return min(blocks, 3) if blocks <= 4 else 4


# Of constant stencils, by (axes, width of the channels).
_NONE: Limits = (0, 0, 0)
TAPS: dict[tuple[int, int], tuple[March, ...]] = {
    (2, 1): (March(64, 64, 4, 16, _NONE, _NONE, _NONE, 2, 2, False, (9, 9, 9)),),
    (2, 2): (March(64, 64, 4, 16, _NONE, _NONE, _NONE, 2, 2, True, (5, 9, 5)),),
    (2, 3): (
        March(128, 64, 8, 16, _NONE, _NONE, _NONE, 2, 2, True, (0, 5, 0)),
        March(128, 128, 8, 16, _NONE, _NONE, _NONE, 0, 0, True, (0, 0, 5)),
    ),
    (2, 4): (March(128, 64, 8, 16, _NONE, _NONE, _NONE, 0, 0, True, (0, 5, 5)),),
    (3, 1): (March(64, 64, 4, 16, _NONE, _NONE, _NONE, 2, 2, False, (7, 7, 7)),),
    (3, 2): (March(64, 64, 4, 16, _NONE, _NONE, _NONE, 2, 2, True, (0, 7, 7)),),
    (3, 3): (
        March(128, 64, 8, 16, _NONE, _NONE, _NONE, 0, 2, False, (0, 7, 0)),
        March(128, 64, 8, 16, _NONE, _NONE, _NONE, 0, 0, True, (0, 0, 7)),
    ),
}

# Of contiguous data, by (axes, width of the channels, transposed); in the bases alone.
PLANES: dict[tuple[int, int, bool], March] = {
    (n, width, transposed): March(64, 64, 4, 16, _NONE, _NONE, basis, held, ahead, False, most_taps)
    for n, width, held, ahead, most_taps, forward, backward in (
        (2, 1, 2, 1, (5, 9, 9), (0, 1, 1), (0, 1, 1)),
        (2, 2, 2, 0, (5, 5, 9), (0, 1, 1), (0, 1, 1)),
        (2, 3, 0, 0, (5, 5, 5), _NONE, _NONE),
        (3, 1, 2, 1, (7, 7, 7), (0, 1, 1), (0, 1, 1)),
        (3, 2, 2, 0, (7, 7, 7), (0, 1, 0), _NONE),
        (3, 3, 0, 0, (7, 7, 7), _NONE, _NONE),
    )
    for transposed, basis in ((False, forward), (True, backward))
}

# By (axes, blocks of 32 channels of the cotangent), for up to `outs` channels of the features.
BACKWARD_MARCHES: dict[tuple[int, int], March] = {
    (2, 1): March(64, 64, 4, 32, (3, 3, 3), (3, 3, 6), (0, 1, 1), 2, 1, False, (0, 5, 5)),
    (2, 2): March(128, 64, 8, 32, (0, 2, 3), (0, 2, 3), (0, 0, 1), 2, 0),
    (3, 1): March(64, 64, 4, 32, (4, 3, 4), (4, 3, 4), (0, 0, 1), 2, 0),
    (3, 2): March(128, 64, 8, 32, (0, 1, 3), (0, 1, 3), (0, 0, 1), 2, 0),
}


class GramMarch(NamedTuple):
    points: int
    outs: int
    warps: int
    least_lines: int
    # Generators, and f itself, of one launch; 0: the entry for fewer channels serves.
    most_affine: Limits
    most_fields: Limits
    most_basis: Limits
    moments: Limits = (0, 0, 0)  # whether the kernel for the affine basis of two axes serves
    most_ahead: Limits = (
        0,
        0,
        0,
    )  # rows of affine generators up to which lines are loaded a step ahead
    # Of constant stencils, that of f itself among them: taps of one launch, and up to which lines are loaded ahead.
    most_taps: Limits = (0, 0, 0)
    most_taps_ahead: Limits = (0, 0, 0)

    @property
    def places(self) -> int:
        """Programs of a multiprocessor, where nothing is compiled: so many have all their registers."""
        return 8 // self.warps


# By (axes, more than 64 channels of the cotangent).
GRAM_MARCHES: dict[tuple[int, bool], GramMarch] = {
    (2, False): GramMarch(64, 64, 4, 32, (4, 7, 7), (4, 4, 7), (4, 7, 7), (0, 1, 0), (0, 4, 0), (4, 5, 5)),
    (2, True): GramMarch(128, 128, 8, 32, (0, 4, 4), (0, 4, 7), (0, 7, 7), most_taps=(0, 5, 5)),
    (3, False): GramMarch(64, 64, 4, 32, (3, 4, 5), (2, 4, 7), (4, 7, 7), most_taps=(4, 4, 4)),
    (3, True): GramMarch(128, 128, 8, 32, (0, 0, 5), (0, 0, 7), (0, 7, 7), most_taps=(0, 4, 4)),
}


# Of contiguous data, by axes.
PLANES_GRAM: dict[int, GramMarch] = {
    n: GramMarch(64, 64, 4, 32, _NONE, _NONE, basis, most_taps=most_taps, most_taps_ahead=(0, 5, 5))
    for n, basis, most_taps in ((2, (0, 7, 7), (4, 5, 5)), (3, _NONE, (4, 7, 5)))
}


class Table(NamedTuple):
    """All that plans choose by, for one card."""

    tiles: Mapping[tuple[str, str], Tile] = TILES
    marches: Mapping[tuple[int, int, bool], tuple[March, ...]] = MARCHES
    taps: Mapping[tuple[int, int], tuple[March, ...]] = TAPS
    planes: Mapping[tuple[int, int, bool], March] = PLANES
    backward_marches: Mapping[tuple[int, int], March] = BACKWARD_MARCHES
    planes_gram: Mapping[int, GramMarch] = PLANES_GRAM
    gram_marches: Mapping[tuple[int, bool], GramMarch] = GRAM_MARCHES
    most_channels: Mapping[int, int] = {2: 256, 3: 128}  # by axes, to sum over: the loop over their blocks is unrolled
    most_taps: int = 9  # of constant stencils, that of f itself among them: each is a product
    least_filled: float = 0.5  # of a marching program's columns
    most_sum_bytes: int = 1 << 26  # of partial sums, or a sixteenth of the data
    least_long_index: int = 2**31 - 2**12  # offsets from here on take 64 bits; room is left for the last tile

    def tile(self, kernel: str, dtype: torch.dtype) -> Tile:
        return self.tiles[kernel, type_of(dtype)]


def type_of(dtype: torch.dtype) -> str:
    return {torch.float32: SINGLE, torch.float64: DOUBLE}.get(dtype, HALF)


def tuned_file() -> Path:
    """LCONV_FAST_TUNED, or a file in the user's cache folder; deleting it restores the table."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LCONV_FAST_TUNED") or Path(folder) / "lconv_fast" / "tuned.json")


def tuned(card: str) -> Table:
    """The table, with the tiles that the user's file has for the card of this name; a broken file is no file."""
    try:
        entries = json.loads(tuned_file().read_text())[card].items()
        found = {tuple(key.split()): Tile(*numbers) for key, numbers in entries}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return Table()
    return Table(tiles=TILES | {key: tile for key, tile in found.items() if key in TILES})
