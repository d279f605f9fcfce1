"""`lconv-fast demo`: digits, speed and equivariance on bundled data, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lconv_fast.cli.info import information
from lconv_fast.cli.shared import console, fail, need
from lconv_fast.outputs import check_folder

if TYPE_CHECKING:
    from lconv_fast.demo.report import Results

LASTS = {True: "half a minute", False: "three minutes"}  # quick, on two cores


def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html, report.json and the pictures.")] = Path(
        "lconv_demo_report"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the data split, the angles and the weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and two epochs: a check that all works.")] = False,
) -> None:
    """Digits, speed and equivariance on bundled data, with a report: one HTML page and the numbers as JSON."""
    need("skimage", "sklearn", "matplotlib")
    from lconv_fast.demo import digits, equivariance, report, speed

    try:
        check_folder(out, report.FILES)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    jobs = {
        "digits": (digits.run, digits.steps(quick)),
        "speed": (speed.run, len(speed.sizes(quick))),
        "equivariance": (equivariance.run, len(equivariance.sizes(quick))),
    }
    console.print(f"This takes about {LASTS[quick]} on two cores.")
    found: dict[str, Any] = {}
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        for name, (run, total) in jobs.items():
            task = progress.add_task(name, total=total)
            try:
                found[name] = run(seed, quick, lambda task=task: progress.advance(task))  # type: ignore[misc]
            except speed.DisagreementError as error:
                progress.stop()
                console.print(f"[red]lconv-fast demo: {error}")
                raise typer.Exit(1) from None
    results = report.Results(seed=seed, quick=quick, information=information(), **found)
    print_tables(results)
    try:
        console.print(f"Report: {report.write(results, out)}", markup=False)
    except OSError as error:
        fail(error)


def print_tables(results: Results) -> None:
    """The tables of the report, on the terminal."""
    from lconv_fast.demo import report

    for content in report.tables(results):
        table = Table(title=content.title, caption=content.note or None)
        for index, name in enumerate(content.head):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in content.rows:
            table.add_row(*row)
        console.print(table)
