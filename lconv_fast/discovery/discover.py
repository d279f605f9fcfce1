"""Learn generators from pairs y = exp(sum_i t_i L_i) x: checks, the choice of a route, and the result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lconv_fast.checks import boolean
from lconv_fast.discovery.algebra import Algebra, identify
from lconv_fast.discovery.problem import (
    Problem,
    check_choices,
    check_pairs,
    check_variation,
    checked_device,
    checked_labels,
    described,
    in_own_unit,
)
from lconv_fast.discovery.result import Found, Result
from lconv_fast.discovery.routes import chosen_route
from lconv_fast.generators import AffineGenerators, FieldGenerators

NAMED = 0.2  # of the variance: above this residual the span is too uncertain for a name


def discover(
    x: Tensor,
    y: Tensor,
    *,
    kind: str = "affine",
    parameters: Tensor | None = None,
    num_generators: int | None = None,
    recursions: int | None = None,
    degree: int | None = None,
    edges: Tensor | None = None,
    route: str = "auto",
    alpha: float = 0.01,
    resolution: float | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
    ndim: int | None = None,
) -> Result:
    """The generators L_i of y_p = exp(sum_i t[p,i] L_i) x_p + noise, section 4 of Dehmamy et al. 2021.

    Routes (`lconv_fast.discovery.routes` has the table). "direct" (affine fields, polynomials, and free fields as
    polynomials of the degree that Schwarz's criterion allows): Gauss-Newton through the group's own warp, coarse to
    fine; labelled pairs share one fit, unlabelled ones are fitted each and their span is tested for its dimension.
    "lconv" (affine, field, stencil, graph; labelled pairs): a recursive L-conv (I + t/p L)^p with a learnable
    generator, the paper's idea through the fused operators. "regression" (dense): the exact regression of the paper's
    supplement. "auto" is the first of them that takes the kind. What is found does not depend on the unit of x and y.

    Ctrl-C ends the search: what the pairs have shown until then comes back as a result with `interrupted`, with a
    warning; where nothing is known yet, KeyboardInterrupt is raised.

    Args:
        x, y: pairs (P, C, *spatial) with 1 to 3 spatial axes; the same group element acts on all channels of a pair.
        kind: "affine", "field" (polynomial of `degree`, or free without it), "stencil", "graph" or "dense". For
            graphs, x and y are (P, C, nodes).
        parameters: known t, (P,) or (P, n_L); None: unlabelled.
        num_generators: n_L for unlabelled pairs; None: by the rank test.
        recursions: p of the L-conv route; the number of factors; None: from the grid's size.
        degree: of a polynomial field; None: free.
        edges: of a graph, (2, E), sources and targets; each node's edge to itself is added. None: each node and the
            12 most like it in the images.
        alpha: level of the tests: the probability of one generator too many.
        resolution: pixels; motions below it do not count as a generator, since interpolation makes such errors. None:
            0.01, and 0.2 for a free field, which polynomials do not hold exactly.
        device: of the L-conv route; None: that of x.
        seed: has no effect: no route draws random numbers.
        progress: shows a bar, if rich is installed.
        ndim: number of spatial axes. None: all but two, as long as C is below 5; with more channels a missing channel
            axis could not be told from many channels, and it must be said.

    Returns:
        Result. dimension 0 where nothing moves, or no warp of the family explains half of y's variance in most pairs.
        No algebra is named at a residual above 0.2 of the variance.

    Raises:
        TypeError, ValueError: shapes that differ or are ambiguous, values that are not finite, constant images, labels
            that are all zero or dependent, more generators than there are pairs or fields of the kind, and combinations
            of kind and route that there are not.
    """
    started = time.perf_counter()
    solve = chosen_route(kind, route)
    check_pairs(x, y, kind, ndim)
    check_choices(num_generators, recursions, degree, alpha, resolution, seed, edges, len(x))
    progress = boolean("progress", progress)
    t = None if parameters is None else checked_labels(parameters, len(x), num_generators)
    where = checked_device(device, x)
    images, targets = in_own_unit(x, y)
    check_variation(images, targets, kind)
    with _progress(progress) as report:
        found = solve.run(
            Problem(
                images, targets, t, kind, num_generators, recursions, degree, edges, alpha, resolution, where, report
            )
        )
    given = {
        "num_generators": None if t is not None else num_generators,
        "recursions": recursions,
        "degree": degree,
        "edges": edges,
        "resolution": resolution,
        "device": device,
    }
    unused = [name for name, value in given.items() if value is not None and name not in solve.takes]
    notes = [*found.notes, *(f"{name} has no effect on this route" for name in unused)]
    algebra, remarks = _algebra(found, tuple(x.shape[2:]))
    if found.interrupted:
        warnings.warn(
            f"discover: interrupted; the result holds what {len(found.parameters)} of {len(x)} pairs showed",
            RuntimeWarning,
            stacklevel=2,
        )
    return Result(
        kind=kind,
        route=found.route,
        data=described(x.shape, kind),
        pairs=len(x),
        parameters=found.parameters,
        explained=found.explained,
        generators=found.generators,
        residual=found.residual,
        p_values=found.p_values,
        alpha=alpha,
        algebra=algebra,
        spectrum=found.spectrum,
        seconds=time.perf_counter() - started,
        interrupted=found.interrupted,
        notes=[*notes, *remarks],
    )


def _algebra(found: Found, spatial: tuple[int, ...]) -> tuple[Algebra | None, list[str]]:
    """The algebra of what was found, as far as it can be told, and remarks about it."""
    if not isinstance(found.generators, AffineGenerators | FieldGenerators):
        return None, []
    if not found.residual <= NAMED:
        return None, [
            f"a residual of {found.residual:.2g} of the variance is above {NAMED:g}: the generators are uncertain, and "
            "no algebra is named"
        ]
    algebra = identify(found.generators, spatial)
    if algebra.closure > 0.1:
        return algebra, ["the span is not closed under brackets: there are generators that these pairs do not show"]
    return algebra, []


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[str, float], None]]:
    """report(what, fraction done)."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        wanted = False
    if not wanted:
        yield lambda what, fraction: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("discover", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
