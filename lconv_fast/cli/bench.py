"""`lconv-fast bench`: the layer beside everything else that computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lconv_fast.cli.shared import fail


class WithCases(TyperCommand):
    """Lists the cases below its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        try:
            from lconv_fast_bench.cases import FULL, SMALL
        except ModuleNotFoundError:
            return
        formatter.write("Cases:\n" + "".join(f"  {case}\n" for case in SMALL))
        formatter.write("With --full also:\n" + "".join(f"  {case}\n" for case in FULL if case not in SMALL))


def bench(
    full: Annotated[bool, typer.Option("--full", help="All cases, not the small selection.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default PyTorch's number.")] = None,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile of the composed form too.")] = True,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each case and operator.")] = 2.0,
    only: Annotated[str, typer.Option(help="Only cases whose text holds this; they are listed below.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the page and the raw numbers.")] = None,
) -> None:
    """Verifies and times the layer against everything else that computes it, and lists where it is slower."""
    from lconv_fast_bench.__main__ import run

    try:
        run("full" if full else "small", threads=threads, compiled=compiled, seconds=seconds, only=only, out=out)
    except LookupError as unknown:
        raise typer.BadParameter(str(unknown.args[0]), param_hint="--only") from None
    except (ArithmeticError, OSError) as wrong:
        fail(wrong)
