"""`lconv-fast discover`, `discover-demo` and `discover-paper`: symmetries of pairs in a file, of turned digits, and of
the paper's own experiments."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lconv_fast.cli.shared import INTERRUPTED, console, fail, need
from lconv_fast.outputs import check_folder, filled

Out = Annotated[Path, typer.Option(help="Folder for the result and the pictures.")]
OUT = Path("lconv_discovery")


def discover(
    pairs: Annotated[Path, typer.Argument(help="A .npz or .safetensors file with x, y (P, C, *spatial), perhaps t.")],
    out: Out = OUT,
    kind: Annotated[str, typer.Option(help="affine, field, stencil, graph or dense.")] = "affine",
    degree: Annotated[int | None, typer.Option(help="Of a polynomial field.")] = None,
    route: Annotated[str, typer.Option(help="auto, direct, lconv or regression.")] = "auto",
    num_generators: Annotated[int | None, typer.Option(help="By default, found by a test.")] = None,
    alpha: Annotated[float, typer.Option(help="Level of the tests.")] = 0.01,
    resolution: Annotated[float | None, typer.Option(help="Pixels; smaller motions do not count.")] = None,
    recursions: Annotated[int | None, typer.Option(help="Steps of the recursive L-conv.")] = None,
    ndim: Annotated[int | None, typer.Option(help="Spatial axes, where x has 5 channels or more.")] = None,
    seed: Annotated[int, typer.Option(hidden=True, help="Has no effect: no route draws random numbers.")] = 0,
) -> None:
    """Learns the symmetry of pairs (x, y) and names its algebra; writes numbers and pictures.

    Ctrl-C keeps what the pairs have shown until then; the exit code is 130.
    """
    need("scipy", "safetensors", "matplotlib")
    from lconv_fast.discovery import discover as find
    from lconv_fast.discovery import pictures
    from lconv_fast.discovery.pairs import read_pairs
    from lconv_fast.discovery.result import FILES

    names = (*FILES, *pictures.FILES)
    try:
        check_folder(out, names, [pairs])
        data = read_pairs(pairs)
        read = ", ".join(f"{name} {tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for name, v in data.items())
        console.print(f"{pairs}: {read}", markup=False, highlight=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "discover: interrupted")  # the summary says so
            result = find(
                data["x"],
                data["y"],
                kind=kind,
                parameters=data.get("t"),
                num_generators=num_generators,
                recursions=recursions,
                degree=degree,
                route=route,
                alpha=alpha,
                resolution=resolution,
                seed=seed,
                ndim=ndim,
            )
        console.print(result.summary(), markup=False)
        with filled(out, names) as place:
            result.write(place)
            if data["x"].dim() == 4 and not result.interrupted:
                pictures.write(result, data["x"][0], place)
    except (OSError, TypeError, ValueError, MemoryError) as error:
        fail(error)
    console.print(f"written: {out}", markup=False)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def paper(
    experiment: Annotated[str, typer.Option(help="shift, fixed, recursive or regression.")] = "shift",
    size: Annotated[int, typer.Option(help="7 or 20 points a side.")] = 7,
    epochs: Annotated[int | None, typer.Option(min=1, help="Fewer are faster.")] = None,
    seed: Annotated[int, typer.Option(help="Of the data and of the start of the dense L.")] = 0,
    out: Out = OUT,
) -> None:
    """Runs an experiment of the paper with its dense L, beside a structured generator on 10 of the same pairs."""
    need("scipy", "matplotlib")
    from lconv_fast.discovery.paper import FILES, draw, run

    try:
        check_folder(out, FILES)
        with _bar(experiment) as (bar, task):
            rows = run(
                experiment,
                size,
                epochs=epochs,
                seed=seed,
                report=lambda what, done: bar.update(task, description=what, completed=done),
            )
            bar.update(task, completed=1.0)
        interrupted = any(row.interrupted for row in rows)
        table = Table(title=f"{experiment}, {size} x {size}" if experiment != "shift" else "shift by 2 on 40 points")
        for column in (
            "method",
            "correlation with the true L",
            "pairs",
            "parameters",
            "seconds",
            "angle error, degrees",
        ):
            table.add_column(column)
        for row in rows:
            error = "" if row.angle_error is None else f"{row.angle_error:.3f}"
            method = f"{row.method} (interrupted)" if row.interrupted else row.method
            table.add_row(
                method, f"{row.correlation:.3f}", str(row.pairs), str(row.parameters), f"{row.seconds:.1f}", error
            )
        console.print(table)
        console.print(f"written: {draw(rows, out)}", markup=False)
    except (OSError, ValueError) as wrong:
        fail(wrong)
    if interrupted:
        console.print("INTERRUPTED: not the whole result", markup=False)
        raise typer.Exit(INTERRUPTED)


def digits(
    epochs: Annotated[int, typer.Option(min=1, help="Of each classifier; fewer are faster.")] = 30,
    out: Out = OUT,
) -> None:
    """Finds the symmetry of turned digits and builds a classifier that respects it."""
    need("scipy", "skimage", "sklearn", "safetensors", "matplotlib")
    from lconv_fast.demo.symmetry import FILES, MODELS, draw, run

    try:
        check_folder(out, FILES)
        console.print("This takes about five minutes on one core with 30 epochs.")
        with _bar("pairs") as (bar, task):
            done = run(epochs=epochs, report=lambda what, part: bar.update(task, description=what, completed=part))
            bar.update(task, completed=1.0)
        if done.interrupted:
            console.print("INTERRUPTED: not the whole result", markup=False)
        for one in done.found:
            name = one.result.algebra.name if one.result.algebra else "no symmetry"
            console.print(f"{one.source}: {name}, {one.angle:.3f} degrees from the rotation", markup=False)
        table = Table(title="Accuracy on test digits after training on upright ones, without augmentation")
        for column in ("model", "parameters", "upright", "turned by any angle"):
            table.add_column(column)
        for model in MODELS:
            mine = [a for a in done.accuracies if a.model == model]
            if mine:
                spread = [" ".join(f"{getattr(a, part):.1%}" for a in mine) for part in ("upright", "rotated")]
                table.add_row(model, str(mine[0].parameters), *spread)
        console.print(table)
        draw(done, out)
        console.print(f"written: {out}", markup=False)
    except (OSError, ValueError) as wrong:
        fail(wrong)
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _bar(first: str) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield bar, bar.add_task(first, total=1.0)
