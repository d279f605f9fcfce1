"""One command for a machine with a GPU: is everything right, and how fast is it?

    python tools/gpu_check --out DIR [--only build,correct,speed,scale] [--budget 460]

`build` makes the compiled module where it is missing and compiles the kernels of all checks, on many processes at
once; `correct` compares every kernel and gradient with float64, and asks what PyTorch asks of operators; `speed` times
with a cold second-level cache; `scale` goes past 2^31 elements and trains the largest examples. Each has the budget, in
seconds, to itself, and leaves out what it has no time for. Every check runs in a process that is killed when it takes
too long. DIR gets one file of JSON rows for each, whole after each row. The exit code is 1 for a wrong result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(HERE), str(ROOT), str(ROOT / "tests")]
sys.path[:0] = PATHS
# The processes that are started find the same modules.
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])

from processes import run_all  # noqa: E402
from record import Record  # noqa: E402

WORKERS = min(14, os.cpu_count() or 1)


def make_module() -> dict[str, Any]:
    """Makes `import lconv_fast` work: the compiled module in place, without a network."""
    command = [sys.executable, "-c", "import lconv_fast"]
    start = time.monotonic()
    if subprocess.run(command, capture_output=True).returncode:
        options = ["--no-build-isolation", "--no-deps", "--no-index", "-e", str(ROOT)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", *options], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"could not build the compiled module:\n{done.stdout}\n{done.stderr}")
    return {"seconds": time.monotonic() - start}


def build(record: Record) -> None:
    from correct import Check, checks

    for name, _, error in run_all([(str(c), Check.run, (c, True)) for c in checks()], WORKERS, 120, record.end):
        if error:
            record.add("compiled", name, None, error)
    record.add("compiled", "all kernels of the checks", {"seconds_left": record.end - time.monotonic()})


def correct(record: Record) -> None:
    import contracts
    from correct import Check, checks

    jobs: list[Any] = [(f"contract {name}", contracts.run, (name,)) for name in contracts.CONTRACTS]
    jobs += [(str(check), Check.run, (check,)) for check in checks()]
    for row in run_all(jobs, WORKERS, 90, record.end):
        record.add("correct", *row)


def speed(record: Record) -> None:
    """One at a time: a card serves nothing else while it is timed."""
    import speed as timings

    ((_, machine, error),) = run_all([("machine", timings.machine, ())], 1, 120, record.end)
    record.add("machine", "machine", machine, error)
    if machine is None:
        return
    jobs: list[Any] = []
    for case in timings.CASES:
        jobs.append((str(case), timings.ours, (case, machine)))
        jobs.append((f"convolution {case}", timings.convolution, (case,)))
    jobs += [(f"composed {c}", timings.composed_form, (c,)) for c in timings.CASES if c.channels == 64][:2]
    jobs += [(f"{kind} matrices", timings.prepared, (kind,)) for kind in ("sparse", "dense")]
    for row in run_all(jobs, 1, 120, record.end):
        record.add("speed", *row)


def scale(record: Record) -> None:
    import scale as large

    for row in run_all([(name, large.run, (name,)) for name in large.CASES], 1, 200, record.end):
        record.add("scale", *row)


SECTIONS = {"build": build, "correct": correct, "speed": speed, "scale": scale}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=460, help="seconds, for each section")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, joined by commas")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = set(chosen) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: expected some of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    built = make_module()
    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False")
    wrong = 0
    for name in chosen:
        record = Record(options.out / f"{name}.json", options.budget)
        record.add("module", "compiled module", built)
        SECTIONS[name](record)
        record.add("end", name, {"wrong": record.wrong})
        wrong += record.wrong
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
