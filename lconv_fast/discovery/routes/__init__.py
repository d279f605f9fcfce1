"""Ways from pairs to generators: which function takes which kind of generator on which route."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lconv_fast.checks import choice
from lconv_fast.discovery.problem import Problem
from lconv_fast.discovery.result import Found
from lconv_fast.discovery.routes.dense import by_regression
from lconv_fast.discovery.routes.graph import on_graph
from lconv_fast.discovery.routes.labelled import from_labelled
from lconv_fast.discovery.routes.lconv import by_lconv
from lconv_fast.discovery.routes.unlabelled import from_unlabelled

__all__ = ["KINDS", "ROUTES", "TABLE", "Route", "chosen_route"]


class Route(NamedTuple):
    run: Callable[[Problem], Found]
    takes: tuple[str, ...]  # arguments of `discover`, beyond those that all routes take, that it heeds


def direct(problem: Problem) -> Found:
    """Gauss-Newton through the group's own warp."""
    return from_unlabelled(problem) if problem.t is None else from_labelled(problem)


# For each kind, "auto" is the first row.
TABLE: dict[tuple[str, str], Route] = {
    ("affine", "direct"): Route(direct, ("num_generators", "resolution")),
    ("affine", "lconv"): Route(by_lconv, ("recursions", "device")),
    ("field", "direct"): Route(direct, ("num_generators", "resolution", "degree")),
    ("field", "lconv"): Route(by_lconv, ("recursions", "device")),
    ("stencil", "lconv"): Route(by_lconv, ("recursions", "device")),
    ("graph", "lconv"): Route(on_graph, ("recursions", "device", "edges")),
    ("dense", "regression"): Route(by_regression, ()),
}
KINDS = tuple(dict.fromkeys(kind for kind, _ in TABLE))
ROUTES = ("auto", *dict.fromkeys(route for _, route in TABLE))


def chosen_route(kind: str, route: str) -> Route:
    """The row of TABLE; raises ValueError, with the names that there are, where there is none."""
    choice("kind", kind, KINDS)
    choice("route", route, ROUTES)
    if route == "auto":
        return next(row for (own, _), row in TABLE.items() if own == kind)
    if (kind, route) not in TABLE:
        *others, last = [repr(own) for own, way in TABLE if way == route]
        listed = f"{', '.join(others)} and {last}" if others else last
        raise ValueError(f"route: {route!r} takes kind {listed}, got kind {kind!r}")
    return TABLE[kind, route]
