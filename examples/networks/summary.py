"""Tables and Pareto plots of the results: python summary.py [--plot FILE.png]

For each measure, the mean over seeds, and the mean and 95 % interval (Student's t) of the difference to the
convolution, seed by seed: a seed fixes data, split and order of the batches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

RESULTS = Path(__file__).parent / "results"
BASE = "conv"


@dataclass(frozen=True)
class Measure:
    key: str
    title: str
    percent: bool = False

    def show(self, value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f}" if self.percent else f"{value:{sign}.3f}"


EQUATIONS = (
    Measure("one_step", "error of one step"),
    Measure("rollout_20", "of 20 steps"),
    Measure("rollout_200", "of 200"),
    Measure("stable", "stable over 200, %", True),
)
TASKS = {
    "mni": (Measure("dice", "Dice, mean"), Measure("grey", "grey matter"), Measure("white", "white matter")),
    "nuclei": (Measure("dice", "Dice, mean"), Measure("inside", "inside"), Measure("rim", "rim")),
    "oriented": (Measure("upright", "Dice, upright"), Measure("turned", "Dice, turned")),
    "ellipsoids": (Measure("upright", "Dice, upright"), Measure("turned", "Dice, turned")),
    "digits": (Measure("upright", "upright, %", True), Measure("turned", "turned, %", True)),
    "digits_long": (Measure("upright", "upright, %", True), Measure("turned", "turned, %", True)),
    "advection2d": EQUATIONS,
    "advection3d": EQUATIONS,
    "wave2d": EQUATIONS,
    "wave3d": EQUATIONS,
    "mnist1d": (Measure("test", "accuracy, %", True),),
}


def final_runs(content: dict[str, Any], measure: Measure) -> dict[str, dict[int, dict[str, Any]]]:
    """contender -> seed -> run, of the runs that were tested."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for run in content["runs"]:
        if measure.key in run:
            runs.setdefault(run["contender"], {})[run["seed"]] = run
    return runs


def difference(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], key: str) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of run - base, over the seeds that both have."""
    values = [runs[seed][key] - base[seed][key] for seed in runs.keys() & base.keys()]
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def table(name: str, content: dict[str, Any]) -> str:
    measures = TASKS[name]
    head = ["layers", "parameters", "ms / step", "MiB kept", "rate"]
    for measure in measures:
        head += [measure.title, "minus conv"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    runs = final_runs(content, measures[0])
    for contender, mine in runs.items():
        if len(mine) < 2:
            continue
        one = next(iter(mine.values()))
        cells = [
            contender,
            f"{one['parameters']:,}",
            f"{min(r['step_ms'] for r in mine.values()):.0f}",
            f"{one['kept_mib']:.0f}",
            f"{one['rate']:g}",
        ]
        for measure in measures:
            cells.append(measure.show(statistics.mean(r[measure.key] for r in mine.values())))
            mean, half = difference(mine, runs[BASE], measure.key)
            cells.append("" if contender == BASE else f"{measure.show(mean, '+')} ± {measure.show(half)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(contents: dict[str, dict[str, Any]], path: Path) -> None:
    """For each task, its first measure against the time of a step, the number of parameters, and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.2 * len(contents)), layout="constrained")
    axes = figure.subplots(len(contents), 3, squeeze=False)
    for row, (name, content) in enumerate(contents.items()):
        measure = TASKS[name][0]
        for contender, mine in final_runs(content, measure).items():
            values = [r[measure.key] * (100 if measure.percent else 1) for r in mine.values()]
            one = next(iter(mine.values()))
            costs = min(r["step_ms"] for r in mine.values()), one["parameters"], one["kept_mib"]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            for column, cost in enumerate(costs):
                place = axes[row, column]
                place.errorbar(cost, statistics.mean(values), spread, fmt="o", capsize=2)
                name_of = place.annotate(
                    contender, (cost, statistics.mean(values)), fontsize=7, xytext=(4, 3), textcoords="offset points"
                )
                name_of.set_in_layout(False)
        for column, label in enumerate(("ms of processor time per step", "parameters", "MiB kept for backward")):
            axes[row, column].set(xlabel=label, ylabel=measure.title, title=name if column == 0 else "", xscale="log")
            axes[row, column].grid(alpha=0.3)
            axes[row, column].margins(x=0.25)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    contents = {}
    for name in TASKS:
        path = RESULTS / f"{name}.json"
        if path.exists():
            contents[name] = json.loads(path.read_text())
            about = contents[name]
            print(f"\n## {name}: {about['date']}, {about['processor']}, torch {about['torch']}, one thread\n")
            print(table(name, about))
    if arguments.plot:
        plot(contents, arguments.plot)


if __name__ == "__main__":
    main()
