"""Learn generators from pairs y = exp(sum_i t_i L_i) x: checks, the choice of a route, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lconv_fast.checks import check_float
from lconv_fast.discovery.algebra import identify
from lconv_fast.discovery.direct import EXPLAINED, family_of, from_labelled, from_unlabelled
from lconv_fast.discovery.flows import Array
from lconv_fast.discovery.recursive import Learned, learn_by_lconv, learn_on_graph
from lconv_fast.discovery.regression import learn_dense
from lconv_fast.discovery.result import Result
from lconv_fast.discovery.scrambled import likest
from lconv_fast.generators import AffineGenerators, FieldGenerators

KINDS = ("affine", "field", "stencil", "graph", "dense")
ROUTES = ("auto", "direct", "lconv")
NEAREST = 12  # neighbours of a node whose graph is not given: on a grid, those up to two points away


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
) -> Result:
    """The generators L_i of y_p = exp(sum_i t[p,i] L_i) x_p + noise, section 4 of Dehmamy et al. 2021.

    Routes. "direct" (affine fields, polynomials, and free fields as polynomials of the degree that Schwarz's criterion
    allows): Gauss-Newton through the group's own warp, coarse to fine; labelled pairs share one fit, unlabelled ones
    are fitted each and their span is tested for its dimension. "lconv" (affine, field, stencil; labelled pairs): a
    recursive L-conv (I + t/p L)^p with a learnable generator, the paper's idea through the fused operators. "dense":
    the exact regression of the paper's supplement. "auto" is direct where it applies.

    Args:
        x, y: pairs (P, C, *spatial) with 1 to 3 spatial axes; the same group element acts on all channels of a pair.
        kind: "affine", "field" (polynomial of `degree`, or free without it), "stencil", "graph" or "dense". For
            graphs, x and y are (P, C, nodes).
        parameters: known t, (P,) or (P, n_L); None: unlabelled.
        num_generators: n_L for unlabelled pairs; None: by the rank test.
        recursions: p of the L-conv route; the number of factors; None: from the grid's size.
        degree: of a polynomial field; None: free.
        edges: of a graph, (2, E), sources and targets; each node's edge to itself is added. None: each node and the
            NEAREST most like it in the images.
        alpha: level of the tests: the probability of one generator too many.
        resolution: pixels; motions below it do not count as a generator, since interpolation makes such errors. None:
            0.01, and 0.2 for a free field, which polynomials do not hold exactly.
        device: of the L-conv route. seed: of its start. progress: shows a bar on work longer than a second.

    Returns:
        Result. dimension 0 where nothing moves, or no warp of the family explains half of y's variance in most pairs.

    Raises:
        TypeError, ValueError: shapes that differ, values that are not finite, constant images, labels that are all zero
            or dependent, fewer pairs than generators, and combinations of kind and route that there are not.
    """
    started = time.perf_counter()
    t = _checked(x, y, kind, parameters, num_generators, route, alpha)
    images, targets = (v.detach().cpu().double().numpy() for v in (x, y))
    with _progress(progress) as report:
        if kind == "dense":
            result = learn_dense(images, targets, t)
        elif kind == "graph":
            result = _on_graph(x, y, t, edges, recursions, device, report)
        elif route == "lconv" or (route == "auto" and kind == "stencil"):
            result = _by_lconv(x, y, t, kind, recursions, device, seed, report)
        else:
            family = family_of(kind, x.dim() - 2, degree)
            if t is None:
                result = from_unlabelled(images, targets, family, num_generators, alpha, resolution, report)
            else:
                result = from_labelled(images, targets, t, family, alpha, report)
            result.kind = kind
    result.seconds = time.perf_counter() - started
    if isinstance(result.generators, AffineGenerators | FieldGenerators):
        result.algebra = identify(result.generators)
        if result.algebra.closure > 0.1:
            result.notes.append(
                "the span is not closed under brackets: there are generators that these pairs do not show"
            )
    return result


def _checked(
    x: Tensor,
    y: Tensor,
    kind: str,
    parameters: Tensor | None,
    num_generators: int | None,
    route: str,
    alpha: float,
) -> Array | None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if route not in ROUTES:
        raise ValueError(f"route: expected one of {', '.join(ROUTES)}, got {route!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha!r}")
    for name, value in (("x", x), ("y", y)):
        check_float(name, value, (3, 4, 5), "(P, C, *spatial) with 1 to 3 spatial axes")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.shape[0] == 0 or x.shape[1] == 0 or min(x.shape[2:]) < 5:
        raise ValueError(f"x: expected a pair or more, of at least 5 points on each axis, got {tuple(x.shape)}")
    for name, value in (("x", x), ("y", y)):
        flat = [int(p) for p in torch.nonzero(value.detach().double().flatten(1).std(1) == 0).flatten()]
        # A graph is learned from many images: some may be blank.
        if len(flat) == len(x) or (flat and kind != "graph"):
            raise ValueError(f"{name}: expected images that vary, but those of pairs {flat[:5]} are constant")
    if parameters is None:
        if num_generators is not None and not 1 <= num_generators <= len(x):
            raise ValueError(f"num_generators: expected 1 to {len(x)}, the number of pairs, got {num_generators!r}")
        return None
    t = torch.as_tensor(parameters).detach().cpu().double().numpy()
    t = t[:, None] if t.ndim == 1 else t
    if t.ndim != 2 or len(t) != len(x) or t.shape[1] == 0:
        raise ValueError(f"parameters: expected shape ({len(x)},) or ({len(x)}, n_L), got {tuple(parameters.shape)}")
    if num_generators is not None and num_generators != t.shape[1]:
        raise ValueError(f"num_generators: expected {t.shape[1]} as parameters has, got {num_generators!r}")
    if not np.isfinite(t).all():
        raise ValueError("parameters: expected finite values, got NaN or infinity")
    if not t.any():
        raise ValueError("parameters: all are zero, so that nothing about the generators can be identified")
    if len(t) < t.shape[1]:
        raise ValueError(f"x: {len(t)} pairs cannot identify {t.shape[1]} generators")
    if np.linalg.matrix_rank(t) < t.shape[1]:
        raise ValueError(
            f"parameters: columns are dependent: rank {np.linalg.matrix_rank(t)} of {t.shape[1]} generators"
        )
    return t


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


def _on_graph(
    x: Tensor,
    y: Tensor,
    t: Array | None,
    edges: Tensor | None,
    recursions: int | None,
    device: Any,
    report: Callable[[str, float], None],
) -> Result:
    if x.dim() != 3:
        raise ValueError(f"x: kind 'graph' takes (P, C, nodes), got {tuple(x.shape)}")
    if t is None:
        raise ValueError("parameters: kind 'graph' needs labelled pairs, got None")
    nodes = x.shape[2]
    if edges is None:
        edges = likest(torch.cat([x, y]), NEAREST)
    itself = torch.arange(nodes, device=edges.device).expand(2, -1)
    edges = torch.cat([edges[:, edges[0] != edges[1]], itself], 1)
    unknowns, equations = edges.shape[1] * t.shape[1], x.numel()
    if equations < 2 * unknowns:
        raise ValueError(f"x: {equations} values cannot identify {unknowns} numbers on {edges.shape[1]} edges")
    learned = learn_on_graph(x, y, torch.from_numpy(t), edges, recursions, device, report)
    return _of_learned("graph", learned, x, t)


# ---- the L-conv route -----------------------------------------------------------------------------------------------


def _by_lconv(
    x: Tensor,
    y: Tensor,
    t: Array | None,
    kind: str,
    recursions: int | None,
    device: Any,
    seed: int,
    report: Callable[[str, float], None],
) -> Result:
    if t is None:
        raise ValueError(f"parameters: kind {kind!r} by the L-conv route needs labelled pairs, got None")
    learned = learn_by_lconv(x, y, torch.from_numpy(t), kind, recursions, device, seed, report)
    return _of_learned(kind, learned, x, t)


def _of_learned(kind: str, learned: Learned, x: Tensor, t: Array) -> Result:
    result = Result(kind, learned.route, t, np.full(len(x), 1 - learned.residual), residual=learned.residual)
    result.notes += learned.notes
    if learned.residual > 1 - EXPLAINED:
        result.notes.append(f"the L-conv explains less than {EXPLAINED:.0%} of the variance: not identifiable this way")
    else:
        result.generators, result.dimension = learned.generators, t.shape[1]
    return result
