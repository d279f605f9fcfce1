"""The report folder: one self-contained page, its pictures, and its numbers as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from lconv_fast.demo import equivariance, pictures, speed
from lconv_fast.demo.digits import DATA, DigitsResult
from lconv_fast.demo.equivariance import EquivarianceResult
from lconv_fast.demo.speed import SpeedResult
from lconv_fast.outputs import filled

FILES = ("index.html", "report.json", *(f"{name}.png" for name in pictures.PICTURES))


@dataclass
class Results:
    """All that the demo found."""

    seed: int
    quick: bool
    information: dict[str, str]
    digits: list[DigitsResult]
    speed: list[SpeedResult]
    equivariance: list[EquivarianceResult]


@dataclass
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class _Section:
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def _count(value: int) -> str:
    return f"{value:,}"


def _digits_table(results: Results) -> Table:
    runs = [(train, on) for train in DATA for on in DATA]
    head = ["model", *(f"{train} → {on}" for train, on in runs)]
    head += ["parameters", "s / epoch", "ratio to CNN", "peak MiB / step"]
    rows = [
        [
            r.model,
            *(f"{r.test[train][on]:.1%}" for train, on in runs),
            _count(r.parameters),
            f"{r.seconds_per_epoch:.2f}",
            f"{r.epoch_ratio_to_cnn:.2f}",
            f"{r.step_peak_bytes / 2**20:.1f}",
        ]
        for r in results.digits
    ]
    note = (
        "Accuracy on the test images (trained on → tested on), measured once, after training. Peak: bytes given out by "
        "torch's allocator in one training step of 64 images (torch.profiler). One thread."
    )
    return Table("Digits", head, rows, note)


def _speed_table(results: Results) -> Table:
    head = ["photograph"]
    head += [f"{name} {job}" for job in ("fwd", "fwd+bwd") for name in speed.CANDIDATES if name != speed.LCONV]
    rows = []
    for r in results.speed:
        row = [f"{r.size} × {r.size}"]
        for ratios in (r.forward, r.forward_backward):
            others = [name for name in speed.CANDIDATES if name != speed.LCONV]
            row += [f"{ratios[name]:.2f}" if name in ratios else "–" for name in others]
        rows.append(row)
    worst = max(e for r in results.speed for errors in r.errors.values() for e in errors.values())
    note = (
        f"Times over LConv2d's (above 1: slower than LConv2d; affine basis, n_L = 6, {speed.CHANNELS} channels, "
        f"float32). Composed and dense compute the same function as LConv2d: outputs and gradients agree, at worst to "
        f"{worst:.0e} relative RMS; Conv2d is another function with as many channels."
    )
    skipped = [f"{name} at {r.size}: {reason}" for r in results.speed for name, reason in r.skipped.items()]
    return Table("Speed", head, rows, " ".join([note, *(f"Not run: {text}." for text in skipped)]))


def _equivariance_table(results: Results) -> Table:
    head = ["photograph", *(f"accuracy {a}" for a in equivariance.ACCURACIES)]
    found = {(r.size, r.accuracy): r.error for r in results.equivariance}
    rows = [
        [f"{size} × {size}", *(f"{found[size, a]:.1e}" for a in equivariance.ACCURACIES)]
        for size in sorted({r.size for r in results.equivariance})
    ]
    note = (
        f"Relative RMS of layer(turn f) − turn(layer f) for a turn by {equivariance.ANGLE:g}°, in the inner disc, "
        f"float64, on the smoothed photograph."
    )
    return Table("Equivariance", head, rows, note)


def tables(results: Results) -> list[Table]:
    return [_digits_table(results), _speed_table(results), _equivariance_table(results)]


def write(results: Results, out: Path) -> Path:
    """Writes index.html, report.json and the pictures into `out`; returns the path of the page."""
    with filled(out, FILES) as place:
        _write(results, place)
    return out / "index.html"


def _write(results: Results, out: Path) -> None:
    images = pictures.draw(results, out)
    (out / "report.json").write_text(json.dumps(asdict(results), indent=2) + "\n", encoding="utf-8")
    digits, ratios, errors = tables(results)
    sections = [
        _Section(
            "Generators",
            "Vector fields v(x) of named generators over the photograph, and L f = v(x) · ∇f below each.",
            pictures=["fields"],
        ),
        _Section(
            "Digits",
            "Three layers of the same width, trained on the digits of scikit-learn, upright and turned by random "
            "angles. "
            "30 % of the images were set aside for the test before anything else; "
            "the curves are on a validation part of the rest.",
            [digits],
            ["digits"],
        ),
        _Section(
            "Speed",
            "Forward and backward on the photograph, lifted to many channels by fixed random numbers.",
            [ratios],
            ["speed"],
        ),
        _Section(
            "Equivariance",
            "A layer with the rotation generator commutes with rotations, up to the error of its finite differences.",
            [errors],
            ["equivariance"],
        ),
    ]
    (out / "index.html").write_text(_page(results, sections, images), encoding="utf-8")


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #d8dde3; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
.note { color: #57606a; font-size: 14px; }
"""


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{note}'


def _html_picture(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>'


def _page(results: Results, sections: list[_Section], images: dict[str, Path]) -> str:
    about = Table("", ["", ""], [[key, value] for key, value in results.information.items()])
    body = [
        "<h1>lconv_fast: demo</h1>",
        "<p>The layer y = f W<sub>0</sub> + Σ<sub>i</sub> (L<sub>i</sub> f) W<sub>i</sub> on bundled data"
        f" (seed {results.seed}{', quick' if results.quick else ''}).</p>",
    ]
    for section in sections:
        body += [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
        body += [_html_table(table) for table in section.tables]
        body += [_html_picture(name, images[name]) for name in section.pictures]
    body += ["<h2>Machine</h2>", _html_table(about)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lconv_fast: demo</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
