"""The processes of tools/gpu_check: what hangs or dies takes nothing with it. No GPU is needed."""

import math
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "gpu_check"))
from processes import run_all
from record import Record


def test_hung_and_dead_jobs_take_nothing_with_them():
    jobs = [
        ("hangs", time.sleep, (1000,)),
        ("dies", os._exit, (3,)),
        ("raises", math.sqrt, (-1,)),
        *[(f"root {k}", math.sqrt, (k,)) for k in range(6)],
    ]
    start = time.monotonic()
    found = {name: (value, error) for name, value, error in run_all(jobs, 2, 5, start + 60)}
    assert time.monotonic() - start < 40
    assert "killed" in found["hangs"][1] and "code 3" in found["dies"][1] and "ValueError" in found["raises"][1]
    assert [found[f"root {k}"] for k in range(6)] == [(math.sqrt(k), None) for k in range(6)]


def test_what_there_is_no_time_for_is_not_wrong(tmp_path):
    record = Record(tmp_path / "rows.json", 0)
    for row in run_all([("late", math.sqrt, (2,))], 1, 5, record.end):
        record.add("correct", *row)
    assert record.wrong == 0 and record.rows[-1]["error"].startswith("skipped")
    record.add("correct", "bad", {"right": False})
    record.add("correct", "broken", None, "RuntimeError: illegal memory access")
    assert record.wrong == 2
