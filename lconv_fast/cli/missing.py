"""A package that is not installed: one line."""

from __future__ import annotations

import sys
from typing import NoReturn


def missing_package(name: str | None) -> NoReturn:
    sys.exit(
        f'lconv-fast: {name} is missing: pip install ".[demo]" in the source folder, or pip install lconv-fast[demo] '
        "once an index has it"
    )
