"""Rows of results, in a file that is whole after each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Record:
    def __init__(self, file: Path, budget: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.rows, self.end, self.wrong = file, [], time.monotonic() + budget, 0

    def add(self, section: str, name: str, value: dict[str, Any] | None, error: str | None = None) -> None:
        values = dict(value or {})
        if error:
            values["error"] = error
            if not error.startswith("skipped") and "OutOfMemoryError" not in error:
                values["right"] = False
        self.wrong += values.get("right") is False
        self.rows.append({"section": section, "name": name, **values})
        self.file.write_text(json.dumps(self.rows, indent=0))
        shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        print(f"{section}: {name}: {shown}", flush=True)
