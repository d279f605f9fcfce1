"""Runs layers on an emulated chip and compares them with float64.

    python -m tools.emulate --chip sm_90 [--cases full] [--only TEXT] [--shard 0/8] [--json FILE]

Exits with 1 if a result is wrong or a kernel misbehaved.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import traceback
from pathlib import Path

from tools.emulate.chips import CHIPS
from tools.emulate.driver import StandIn
from tools.emulate.launch import Emulator


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.emulate", description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=CHIPS, default="sm_90")
    parser.add_argument("--cases", default="representative", help="representative, earlier (of it), marching, full")
    parser.add_argument("--only", default="", help="cases whose text holds this")
    parser.add_argument("--shard", default="0/1", help="k/n: every n-th case from the k-th on")
    parser.add_argument("--json", type=Path, help="rows of results, in a file that is whole after each")
    options = parser.parse_args()
    emulator = Emulator()
    StandIn(CHIPS[options.chip], emulator)  # before the library imports its kernels

    import triton

    from tools.emulate.cases import SETS
    from tools.emulate.operators import kernel_names

    first, step = map(int, options.shard.split("/"))
    rows, wrong = [], 0
    for case in [c for c in SETS[options.cases] if options.only in str(c)][first::step]:
        emulator.kernels.clear()
        start = time.process_time()
        row = {"case": str(case), "chip": options.chip, "triton": triton.__version__, "dtype": str(case.dtype)}
        try:
            errors = case.errors()
            row["errors"] = [error for error, _ in errors]
            row["right"] = all(error < limit for error, limit in errors)
            row["worst"] = max(error for error, _ in errors)
        except Exception as error:
            row |= {"right": False, "fault": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        row |= {"kernels": list(emulator.kernels), "seconds": time.process_time() - start}
        wrong += not row["right"]
        rows.append(row)
        result = f"error {row['worst']:.1e}" if "worst" in row else row["fault"]
        print(f"{'right' if row['right'] else 'WRONG':5s} {case!s:70s} {result} {row['seconds']:.1f} s", flush=True)
        if options.json:
            ran = sorted({name for r in rows for name in r["kernels"]})
            found = {"rows": rows, "ran": ran, "not_run": sorted(kernel_names() - set(ran))}
            options.json.write_text(json.dumps(found, indent=1))
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(u.ru_utime + u.ru_stime for u in used)
    print(
        f"{len(rows) - wrong} of {len(rows)} cases agree on {options.chip} under Triton {triton.__version__}, "
        f"{emulator.steps} instructions, {seconds:.0f} seconds of processor"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
