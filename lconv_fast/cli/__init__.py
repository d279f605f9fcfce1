"""The `lconv-fast` command: a table of commands, each in the module that it is named after."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lconv_fast
from lconv_fast.cli.missing import missing_package

try:
    import typer
    from typer.core import TyperGroup

    from lconv_fast.cli import bench, demo, discover, info, shared, stream, tune
    from lconv_fast.cli.info import information
    from lconv_fast.cli.shared import console
except ModuleNotFoundError as missing:
    # A missing module of our own is a bug, to be seen in full.
    if (missing.name or "").split(".")[0] == "lconv_fast":
        raise
    missing_package(missing.name)

__all__ = ["app", "console", "information", "main"]

OLD = {"demo": "discover-demo", "paper": "discover-paper"}  # `discover demo`, where no file has that name


class Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, renamed(args))


def renamed(arguments: Sequence[str]) -> list[str]:
    """`discover demo ...` as `discover-demo ...`, if the first argument that is no option says so and is no file."""
    command, *rest = arguments
    index = 0
    while index < len(rest) and rest[index].startswith("-"):
        alone = "=" in rest[index] or rest[index] in ("--help", "--")
        index += 1 if alone else 2
    if command != "discover" or index >= len(rest) or rest[index] not in OLD or Path(rest[index]).is_file():
        return list(arguments)
    return [OLD[rest[index]], *rest[:index], *rest[index + 1 :]]


app = typer.Typer(
    name="lconv-fast",
    cls=Commands,
    help="The L-conv layer as a fused PyTorch layer: what this installation can do, and a demo.",
    no_args_is_help=True,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lconv-fast {lconv_fast.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Shows the version and exits.")
    ] = False,
) -> None:
    pass


app.command("info")(shared.command(info.info))
app.command("demo")(shared.command(demo.demo))
app.command("bench", cls=bench.WithCases)(shared.command(bench.bench))
app.command("discover")(shared.command(discover.discover))
app.command("discover-demo")(shared.command(discover.digits))
app.command("discover-paper")(shared.command(discover.paper))
app.command("stream")(shared.command(stream.stream))
app.command("tune")(shared.command(tune.tune))


def main() -> None:
    """The console script."""
    try:
        app()
    except SystemExit as end:
        if end.code != shared.INTERRUPTED:
            raise
        # All is written: the libraries' own tear-down may take longer than the user is willing to wait.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(shared.INTERRUPTED)
