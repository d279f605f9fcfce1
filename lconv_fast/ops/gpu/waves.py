"""How a grid is cut for a card: the pieces that finish first, given how many programs run at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

from lconv_fast.ops.gpu.views import cdiv

# Lines' worth of time that a strip takes beside its own lines: two more are read, and a program loads W first.
OVERHEAD = 4
MOST_CUTS = 4096  # kept at a time: every call asks, and one of 1,024 lines has 64 to choose from


class Strips(NamedTuple):
    number: int  # of one plane's lines
    lines: int  # of a strip; the last may have fewer
    programs: int  # that work on them, each on one or several


@functools.lru_cache(MOST_CUTS)
def strips_of(lines: int, others: int, capacity: int, least_lines: int, most: int | None = None) -> Strips:
    """Strips of `others` columns, one for each program, `capacity` of which run at once: rounds times lines is least.

    Strips have least_lines or more, and there are no more than `most` of a column where that is given.
    """

    def time(strips: Strips) -> int:
        return cdiv(strips.programs, capacity) * (strips.lines + OVERHEAD)

    return min((s._replace(programs=others * s.number) for s in _cuts(lines, least_lines, most)), key=time)


@functools.lru_cache(MOST_CUTS)
def shares_of(lines: int, others: int, capacity: int, least_lines: int) -> Strips:
    """Strips of `others` columns, shared out to as many programs as run at once: the largest share is least."""

    def share(strips: Strips) -> int:
        return cdiv(others * strips.number, strips.programs) * (strips.lines + OVERHEAD)

    cuts = _cuts(lines, least_lines, None)
    return min((s._replace(programs=min(capacity, others * s.number)) for s in cuts), key=share)


def _cuts(lines: int, least_lines: int, most: int | None) -> list[Strips]:
    counts = range(1, max(1, min(lines // least_lines, most or lines)) + 1)
    cuts = {cdiv(lines, count) for count in counts}
    return [Strips(cdiv(lines, each), each, 0) for each in sorted(cuts, reverse=True)]
