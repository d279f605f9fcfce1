"""The page: ratios per case, a roofline, cost against size, and where lconv_fast is slower."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .measure import Row

HEAD = """<!doctype html><meta charset="utf-8"><title>lconv_fast benchmark</title><style>
body{font:15px system-ui;max-width:1100px;margin:2em auto;padding:0 1em} table{border-collapse:collapse;font-size:13px}
td,th{border-bottom:1px solid #ddd;padding:.25em .6em;text-align:left} img{max-width:100%}</style>
<h1>lconv_fast benchmark</h1>"""


def losses(rows: list[Row]) -> list[tuple[str, str, str, float, bool]]:
    """(case, operator, contender, speed of lconv_fast relative to it, whether it computes the same), slowest first."""
    found = [
        (row.case, row.operator, name, ratio, name in row.same)
        for row in rows
        for name, ratio in row.ratios.items()
        if ratio < 1
    ]
    return sorted(found, key=lambda loss: loss[3])


def _image(figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _ratios(rows: list[Row]) -> str:
    names = sorted({name for row in rows for name in row.ratios})
    figure, axes = plt.subplots(figsize=(10, 0.28 * len(rows) + 1.5))
    for name in names:
        pairs = [(row.ratios[name], k) for k, row in enumerate(rows) if name in row.ratios]
        axes.plot(*zip(*pairs, strict=True), "o", label=name, markersize=5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{row.case}, {row.operator}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to lconv_fast (right of the line: lconv_fast is faster)")
    axes.legend(fontsize=8)
    return _image(figure)


def _roofline(rows: list[Row], place: dict) -> str:
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [row.flops / row.bytes for row in rows]
    reach = [min(intensity) / 2, max(intensity) * 2]
    peak, copy = place["multiply_add_rate"], place["copy_bandwidth"]
    corner = peak / copy
    axes.plot([reach[0], corner, max(reach[1], corner)], [reach[0] / corner, 1, 1], "k-", linewidth=1)
    for operator in dict.fromkeys(row.operator for row in rows):
        chosen = [row for row in rows if row.operator == operator]
        axes.plot(
            [r.flops / r.bytes for r in chosen], [r.fraction_of_peak for r in chosen], "o", label=operator, markersize=5
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs of eq. (17) per byte of arguments and results")
    axes.set_ylabel("fraction of the measured multiply-add rate")
    axes.legend(fontsize=8)
    return _image(figure)


def _growth(rows: list[Row]) -> str:
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in sorted({name for row in rows for name in row.same}):
        chosen = [row for row in rows if name in row.seconds]
        first = rows[0].seconds["lconv_fast"]
        axes.plot([r.points for r in chosen], [r.seconds[name] / first for r in chosen], "o-", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("points")
    axes.set_ylabel("forward time, relative to lconv_fast on the smallest image")
    axes.legend(fontsize=8)
    return _image(figure)


def _table(head: list[str], body: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in body)}</table>"


def write_page(path: Path, place: dict, rows: list[Row], growth: list[Row]) -> None:
    parts = [
        HEAD,
        _table(
            ["", ""],
            [[name, f"{value:.3g}" if isinstance(value, float) else str(value)] for name, value in place.items()],
        ),
    ]
    slower = [
        [case, operator, name, f"{ratio:.2f}", "yes" if same else "no, a yardstick"]
        for case, operator, name, ratio, same in losses(rows)
    ]
    parts += [
        "<h2>Where lconv_fast is slower</h2>",
        _table(["case", "operator", "than", "at this fraction of its speed", "computes the same"], slower)
        if slower
        else "<p>Nowhere in these cases.</p>",
    ]
    if growth:
        parts += ["<h2>Cost against size</h2>", _growth(growth)]
    if rows:
        parts += ["<h2>Ratios</h2>", _ratios(rows), "<h2>Roofline</h2>", _roofline(rows, place)]
    head = [
        "case",
        "operator",
        "of FMA peak",
        "of copy bandwidth",
        "opponent",
        "ratio",
        "95 %",
        "others",
        "peak memory",
        "held for backward",
    ]
    body = []
    for row in rows:
        others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row.ratios.items() if name != row.opponent)
        spread = "-".join(f"{edge:.2f}" for edge in row.intervals[row.opponent]) if row.opponent else ""
        body.append(
            [
                row.case,
                row.operator,
                f"{row.fraction_of_peak:.2f}",
                f"{row.fraction_of_copy:.2f}",
                row.opponent or "none",
                f"{row.ratios[row.opponent]:.2f}" if row.opponent else "",
                spread,
                others,
                ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in row.peak_memory.items() if n in row.same),
                ", ".join(f"{n} {b} B" for n, b in row.held_for_backward.items() if n in row.same),
            ]
        )
    parts += ["<h2>All numbers</h2>", _table(head, body)]
    path.write_text("\n".join(parts))
