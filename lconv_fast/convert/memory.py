"""The peak of the memory that a run takes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ side writes notes of its own to stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_memory(run: Callable[[], Any], devices: Sequence[int] = ()) -> int:
    """Peak of the bytes that torch's allocators give out during a run, beyond what was held before it. devices: the
    CUDA devices that take part; none: the CPU's."""
    if devices:
        held = {device: torch.cuda.memory_allocated(device) for device in devices}
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        run()
        return sum(torch.cuda.max_memory_allocated(device) - bytes_ for device, bytes_ in held.items())
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    # The trace file is the public road to the single allocations.
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held_now = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held_now += event["args"]["Bytes"]
        peak = max(peak, held_now)
    return peak
