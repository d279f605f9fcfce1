"""python -m lconv_fast_bench, or lconv-fast bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lconv_fast.outputs import check_folder, filled

from .cases import FULL, GROWTH, SELECTIONS, Case
from .measure import OPERATORS, Row, as_json, machine, measure

FILES = ("index.html", "results.json")


def chosen(selection: str, only: str) -> list[Case]:
    """The cases of a selection whose text holds `only`; raises LookupError, with the names that there are, where there
    are none."""
    cases = [case for case in SELECTIONS[selection] if only in str(case)]
    if not cases:
        more = [case for case in FULL if only in str(case)]
        hint = f"; with --full there are {len(more)} that do" if more and selection != "full" else ""
        names = "\n  ".join(map(str, SELECTIONS[selection]))
        raise LookupError(f"no case of the {selection} selection holds {only!r}{hint}; the cases are\n  {names}")
    return cases


def run(
    selection: str = "small",
    operators: tuple[str, ...] = OPERATORS,
    threads: int | None = None,
    compiled: bool = True,
    seconds: float = 2.0,
    out: Path | None = None,
    only: str = "",
) -> list[Row]:
    """Measures a selection of cases (those whose text holds `only`), prints the table, writes out/{json,html}.

    Ctrl-C ends it: the cases that are done are shown and written, marked as not all, and KeyboardInterrupt is raised.

    Raises LookupError where no case holds `only`, OSError where `out` cannot be written, ArithmeticError where a result
    is wrong.
    """
    cases = chosen(selection, only)
    if out:
        check_folder(out, FILES)
    from .page import losses, write_page

    console = Console(width=None if sys.stdout.isatty() else 200)
    place = machine(threads or torch.get_num_threads())
    rows: list[Row] = []
    growth: list[Row] = []
    interrupted = False
    try:
        for case in track(cases, description="cases", console=console):
            torch._dynamo.reset()
            rows += measure(case, operators, place, compiled, seconds)
        if out:
            growth = [row for case in GROWTH for row in measure(case, ["forward"], place, False, seconds / 4)]
    except KeyboardInterrupt:
        if not rows:
            raise
        interrupted = True
        place["interrupted"] = f"after {len({row.case for row in rows})} of {len(cases)} cases"
    title = f"lconv_fast {place['lconv_fast']}, {place['cpu_capability']}, {place['threads']} thread(s)"
    table = Table(title=f"{title}, INTERRUPTED {place['interrupted']}" if interrupted else title)
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
        with filled(out, FILES) as folder:
            (folder / "results.json").write_text(json.dumps(as_json(place, rows), indent=1))
            write_page(folder / "index.html", place, rows, growth)
        console.print(f"written: {out / 'index.html'}, {out / 'results.json'}", markup=False)
    if interrupted:
        raise KeyboardInterrupt
    return rows


if __name__ == "__main__":
    run()
