"""python -m lconv_fast_bench, or lconv-fast bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .cases import GROWTH, SELECTIONS
from .measure import OPERATORS, Row, as_json, machine, measure
from .page import losses, write_page


def run(
    selection: str = "small",
    operators: tuple[str, ...] = OPERATORS,
    threads: int | None = None,
    compiled: bool = True,
    seconds: float = 2.0,
    out: Path | None = None,
    only: str = "",
) -> list[Row]:
    """Measures a selection of cases (those whose text holds `only`), prints the table, writes out/{json,html}."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    place = machine(threads or torch.get_num_threads())
    cases = [case for case in SELECTIONS[selection] if only in str(case)]
    rows: list[Row] = []
    for case in track(cases, description="cases", console=console):
        torch._dynamo.reset()
        rows += measure(case, operators, place, compiled, seconds)
    growth = [row for case in GROWTH for row in measure(case, ["forward"], place, False, seconds / 4)] if out else []
    table = Table(title=f"lconv_fast {place['lconv_fast']}, {place['cpu_capability']}, {place['threads']} thread(s)")
    for column in ("case", "operator", "of FMA peak", "of copy", "fastest opponent", "ratio", "others"):
        table.add_column(column)
    for row in rows:
        others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row.ratios.items() if name != row.opponent)
        table.add_row(
            row.case,
            row.operator,
            f"{row.fraction_of_peak:.2f}",
            f"{row.fraction_of_copy:.2f}",
            row.opponent or "none",
            f"{row.ratios[row.opponent]:.2f}" if row.opponent else "",
            others,
        )
    console.print(table)
    slower = losses(rows)
    console.print("Where lconv_fast is slower:", "nowhere" if not slower else "")
    for case_name, operator, name, ratio, same in slower:
        kind = "computes the same" if same else "a yardstick"
        console.print(f"  {case_name}, {operator}: {ratio:.2f} of the speed of {name} ({kind})")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(as_json(place, rows), indent=1))
        write_page(out / "index.html", place, rows, growth)
        console.print(f"written: {out / 'index.html'}, {out / 'results.json'}")
    return rows


if __name__ == "__main__":
    run()
