"""The `lconv-fast` command: `info`, `demo`, `bench`, `discover` and `tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import lconv_fast

MISSING = "lconv-fast: {name} is missing; the command line and the demo need: pip install lconv-fast[demo]"


def _fail_missing(error: ModuleNotFoundError) -> NoReturn:
    # A missing module of our own is a bug, to be seen in full.
    if (error.name or "").split(".")[0] == "lconv_fast":
        raise error
    sys.exit(MISSING.format(name=error.name))


if TYPE_CHECKING:
    from lconv_fast.demo.report import Results

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ModuleNotFoundError as missing:
    _fail_missing(missing)

app = typer.Typer(
    name="lconv-fast",
    help="The L-conv layer as a fused PyTorch layer: what this installation can do, and a demo.",
    no_args_is_help=True,
    add_completion=False,
)
# A file or a pipe has no width of its own; the tables need this much.
console = Console(width=None if sys.stdout.isatty() else 130)


def main() -> None:
    """The console script."""
    app()


@app.command()
def info() -> None:
    """Versions, CPU capability, kernels built, threads, and the GPU if there is one."""
    table = Table(show_header=False, title="lconv_fast")
    for name, value in information().items():
        table.add_row(name, value)
    console.print(table)


@app.command()
def bench(
    full: Annotated[bool, typer.Option("--full", help="All cases, not the small selection.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default PyTorch's number.")] = None,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile of the composed form too.")] = True,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each case and operator.")] = 2.0,
    only: Annotated[str, typer.Option(help="Only cases whose text holds this.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the page and the raw numbers.")] = None,
) -> None:
    """Verifies and times the layer against everything else that computes it, and lists where it is slower."""
    try:
        from lconv_fast_bench.__main__ import run
    except ModuleNotFoundError as missing:
        _fail_missing(missing)
    try:
        run("full" if full else "small", threads=threads, compiled=compiled, seconds=seconds, only=only, out=out)
    except ArithmeticError as wrong:
        sys.exit(f"lconv-fast: {wrong}")


@app.command()
def tune(
    size: Annotated[int, typer.Option(min=64, help="Points on a side of the images to tune on.")] = 1024,
    channels: Annotated[int, typer.Option(min=16, help="Channels to tune for.")] = 64,
) -> None:
    """Finds the fastest tiles of the GPU kernels on this card and keeps them in a file; deleting it undoes that."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("lconv-fast: tune needs a GPU, and PyTorch finds none")
    from lconv_fast.ops.gpu import tiles
    from lconv_fast.ops.gpu.tune import tune as find

    for row, tile, gain in find(size, channels):
        console.print(f"{row}: {tile}, {gain:.2f} times the speed of the table's")
    console.print(f"written: {tiles.tuned_file()}")


@app.command()
def discover(
    pairs: Annotated[
        Path,
        typer.Argument(help="A .npz or .safetensors file with x, y (P, C, *spatial), perhaps t; or paper, or demo."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result and the pictures.")] = Path("lconv_discovery"),
    kind: Annotated[str, typer.Option(help="affine, field, stencil, graph or dense.")] = "affine",
    degree: Annotated[int | None, typer.Option(help="Of a polynomial field.")] = None,
    route: Annotated[str, typer.Option(help="auto, direct or lconv.")] = "auto",
    num_generators: Annotated[int | None, typer.Option(help="By default, found by a test.")] = None,
    alpha: Annotated[float, typer.Option(help="Level of the tests.")] = 0.01,
    recursions: Annotated[int | None, typer.Option(help="Steps of the recursive L-conv.")] = None,
    seed: Annotated[int, typer.Option(help="Of the L-conv route, and of the paper's data.")] = 0,
    experiment: Annotated[str, typer.Option(help="With 'paper': shift, fixed, recursive or regression.")] = "shift",
    size: Annotated[int, typer.Option(help="With 'paper': 7 or 20 points a side.")] = 7,
    epochs: Annotated[int | None, typer.Option(min=1, help="With 'paper' and 'demo': fewer are faster.")] = None,
) -> None:
    """Learns the symmetry of pairs (x, y) and names its algebra; writes numbers and pictures.

    `lconv-fast discover paper` runs an experiment of the paper with its dense L, beside a structured generator.
    `lconv-fast discover demo` finds the symmetry of turned digits and builds a classifier that respects it.
    """
    if str(pairs) == "paper":
        _paper(experiment, size, epochs, seed, out)
        return
    if str(pairs) == "demo":
        _classify(epochs or 30, out)
        return
    try:
        import numpy
        import torch

        from lconv_fast.discovery import discover as find
        from lconv_fast.discovery.pictures import draw

        if pairs.suffix == ".safetensors":
            from safetensors.torch import load_file

            data = load_file(pairs)
        elif pairs.suffix == ".npz":
            with numpy.load(pairs) as arrays:
                data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            sys.exit(f"lconv-fast: expected a .npz or .safetensors file, got {pairs}")
    except ModuleNotFoundError as missing:
        _fail_missing(missing)
    except OSError as error:
        sys.exit(f"lconv-fast: {error}")
    if not {"x", "y"} <= data.keys():
        sys.exit(f"lconv-fast: expected arrays x and y in {pairs}, got {', '.join(sorted(data)) or 'none'}")
    try:
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
            seed=seed,
        )
    except (TypeError, ValueError) as error:
        sys.exit(f"lconv-fast: {error}")
    console.print(result.summary(), markup=False)
    result.save(out)
    if data["x"].dim() == 4:
        draw(result, data["x"][0], out)
    console.print(f"written: {out}", markup=False)


def _paper(experiment: str, size: int, epochs: int | None, seed: int, out: Path) -> None:
    try:
        from lconv_fast.discovery.paper import draw, run
    except ModuleNotFoundError as missing:
        _fail_missing(missing)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(experiment, total=1.0)
        try:
            rows = run(
                experiment,
                size,
                epochs=epochs,
                seed=seed,
                report=lambda what, done: bar.update(task, description=what, completed=done),
            )
        except ValueError as wrong:
            sys.exit(f"lconv-fast: {wrong}")
        bar.update(task, completed=1.0)
    written = draw(rows, out)
    table = Table(title=f"{experiment}, {size} x {size}" if experiment != "shift" else "shift by 2 on 40 points")
    for column in ("method", "correlation with the true L", "pairs", "parameters", "seconds", "angle error, degrees"):
        table.add_column(column)
    for row in rows:
        error = "" if row.angle_error is None else f"{row.angle_error:.3f}"
        table.add_row(
            row.method, f"{row.correlation:.3f}", str(row.pairs), str(row.parameters), f"{row.seconds:.1f}", error
        )
    console.print(table)
    console.print(f"written: {written}", markup=False)


def _classify(epochs: int, out: Path) -> None:
    try:
        from lconv_fast.demo.symmetry import MODELS, draw, run
    except ModuleNotFoundError as missing:
        _fail_missing(missing)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("pairs", total=1.0)
        try:
            found, accuracies = run(
                epochs=epochs, report=lambda what, done: bar.update(task, description=what, completed=done)
            )
        except ValueError as wrong:
            sys.exit(f"lconv-fast: {wrong}")
        bar.update(task, completed=1.0)
    for one in found:
        name = one.result.algebra.name if one.result.algebra else "no symmetry"
        console.print(f"{one.source}: {name}, {one.angle:.3f} degrees from the rotation", markup=False)
    table = Table(title="Accuracy on test digits after training on upright ones, without augmentation")
    for column in ("model", "parameters", "upright", "turned by any angle"):
        table.add_column(column)
    for model in MODELS:
        mine = [a for a in accuracies if a.model == model]
        spread = [" ".join(f"{getattr(a, kind):.1%}" for a in mine) for kind in ("upright", "rotated")]
        table.add_row(model, str(mine[0].parameters), *spread)
    console.print(table)
    draw(found, accuracies, out)
    console.print(f"written: {out}", markup=False)


def information() -> dict[str, str]:
    """What `info` prints, in its order."""
    import platform

    import numpy
    import torch

    from lconv_fast import _C

    rows = {
        "lconv_fast": lconv_fast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "CPU capability": _C.cpu_capability(),
        "CPU kernels": ", ".join(_C.kernels()),
        "second-level cache": f"{_C.second_level_cache_bytes() / 2**20:.2f} MiB",
        **{f"built with {key}": str(value) for key, value in _C.build_info().items()},
        "threads": str(torch.get_num_threads()),
        "GPU": "none",
    }
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        rows["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return rows


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html, report.json and the pictures.")] = Path(
        "lconv_demo_report"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the data split, the angles and the weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and two epochs: a check that all works.")] = False,
) -> None:
    """Digits, speed and equivariance on bundled data, with a report: one HTML page and the numbers as JSON."""
    try:
        from lconv_fast.demo import digits, equivariance, report, speed, turned, volume
    except ModuleNotFoundError as missing:
        _fail_missing(missing)

    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; expected a folder, or a name that is free", param_hint="--out")
    jobs = {
        "turned digits": (turned.run, turned.steps(quick)),
        "volume": (volume.run, volume.steps(quick)),
        "digits": (digits.run, digits.steps(quick)),
        "speed": (speed.run, len(speed.sizes(quick))),
        "equivariance": (equivariance.run, len(equivariance.sizes(quick))),
    }
    found: dict[str, Any] = {}
    columns = (TextColumn("{task.description:<14}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for name, (run, total) in jobs.items():
            task = progress.add_task(name, total=total)
            try:
                found[name.split()[0]] = run(seed, quick, lambda task=task: progress.advance(task))  # type: ignore[misc]
            except speed.DisagreementError as error:
                progress.stop()
                console.print(f"[red]lconv-fast demo: {error}")
                raise typer.Exit(1) from None
    results = report.Results(seed=seed, quick=quick, information=information(), **found)
    print_tables(results)
    console.print(f"Report: {report.write(results, out)}")


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


if __name__ == "__main__":
    main()
