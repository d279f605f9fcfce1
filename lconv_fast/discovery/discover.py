"""Learn generators from pairs y = exp(sum_i t_i L_i) x: checks, the choice of a route, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from lconv_fast.checks import check_float
from lconv_fast.discovery.algebra import identify
from lconv_fast.discovery.dimension import rank_test
from lconv_fast.discovery.flows import Affine, Array, Family, Polynomial, grid_points
from lconv_fast.discovery.recursive import Learned, learn_by_lconv, learn_on_graph
from lconv_fast.discovery.registration import Fit, register
from lconv_fast.discovery.regression import learn_dense
from lconv_fast.discovery.result import Result
from lconv_fast.discovery.scrambled import likest
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators

KINDS = ("affine", "field", "stencil", "graph", "dense")
ROUTES = ("auto", "direct", "lconv")
FREE_DEGREES = (1, 3, 5, 7)  # of the polynomials that a free field may turn out to be
RESOLUTION, FREE_RESOLUTION = 0.01, 0.2  # pixels
REFINING_BLUR = 2.0  # pixels: a field that starts from a smaller family's needs no coarser view
NEAREST = 12  # neighbours of a node whose graph is not given: on a grid, those up to two points away
EXPLAINED = 0.5  # of y's variance: what a warp must explain of a pair for it to count as one


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
            family = _family(kind, x.dim() - 2, degree)
            if t is None:
                families = [family] if family else _free_for_each(images, targets, report)
                if resolution is None:
                    resolution = RESOLUTION if family else FREE_RESOLUTION
                result = _unlabelled(images, targets, families, num_generators, alpha, resolution, report)
            else:
                result = _labelled(images, targets, t, family, alpha, report)
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


def _family(kind: str, ndim: int, degree: int | None) -> Family | None:
    """None for a free field: the data choose."""
    if kind == "affine":
        return Affine(ndim)
    if kind != "field":
        raise ValueError(f"route: 'direct' takes kind 'affine' and 'field', got kind {kind!r}")
    if degree is None:
        return None
    if not 0 <= degree <= 8:
        raise ValueError(f"degree: expected 0 to 8, got {degree!r}")
    return Polynomial(ndim, degree)


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


# ---- the direct route -----------------------------------------------------------------------------------------------


def _generators(family: Family, numbers: Array, spatial: tuple[int, ...]) -> Generators:
    """Fields (n_L, size) in units of half the extent as generators in pixels."""
    _, points, scale = grid_points(spatial)
    if isinstance(family, Affine):
        rows = numbers.reshape(len(numbers), family.ndim, family.ndim + 1)
        matrix, shift = torch.from_numpy(rows[:, :, :-1].copy()), torch.from_numpy(rows[:, :, -1] * scale)
        return AffineGenerators(matrix.float(), shift.float(), coordinate_scale=1.0)
    fields = np.stack([family.field(m, points) * scale for m in numbers])
    return FieldGenerators(torch.from_numpy(fields.reshape(len(numbers), family.ndim, *spatial)).float())


def _unit(family: Family, basis: Array, scale: float) -> Array:
    """A factor for each field that makes its parameter an angle, a logarithm of scale, or pixels: |A| = sqrt(2), or
    |b| = 1 for what is mostly a translation; other fields move points by one pixel in the root mean square."""
    if not isinstance(family, Affine):
        return np.full(len(basis), 1 / scale)
    rows = basis.reshape(len(basis), family.ndim, family.ndim + 1)
    linear, shift = np.linalg.norm(rows[:, :, :-1], axis=(1, 2)), np.linalg.norm(rows[:, :, -1], axis=1)
    mostly_shift = linear < 0.1 * shift
    return np.where(mostly_shift, 1 / (scale * np.maximum(shift, 1e-300)), math.sqrt(2) / np.maximum(linear, 1e-300))


def _starts(family: Family) -> list[Array]:
    """Where the coarse search begins: at the identity, and for affine fields at rotations by 0.6 radians and shifts by
    a seventh of the extent, each way along and about each axis."""
    starts = [np.zeros((1, family.size))]
    if not isinstance(family, Affine):
        return starts
    for a in range(family.ndim):
        rows = np.zeros((family.ndim, family.ndim + 1))
        rows[a, -1] = 0.3
        starts += [rows.reshape(1, -1), -rows.reshape(1, -1)]
        for b in range(a):
            rows = np.zeros((family.ndim, family.ndim + 1))
            rows[a, b], rows[b, a] = 0.6, -0.6
            starts += [rows.reshape(1, -1), -rows.reshape(1, -1)]
    return starts


def _free(x: Array, y: Array, t: Array, report: Callable[[str, float], None]) -> tuple[Family, Fit]:
    """The polynomial whose degree pays for its numbers (Schwarz's criterion), each starting where the one before it
    ended."""
    _, points, _ = grid_points(x.shape[2:])
    families = [Polynomial(x.ndim - 2, degree) for degree in FREE_DEGREES]
    best: tuple[float, Family, Fit] | None = None
    for k, family in enumerate(families):
        if best is not None and 4 * t.shape[1] * family.size > x[:, 0].size:
            break
        report(f"a field of degree {FREE_DEGREES[k]}", k / len(families))
        if best is None:
            fit = register(x, y, t, family)
        else:
            starts = [_as_in(family, best[1], best[2].theta, points)]
            fit = register(x, y, t, family, starts=starts, blur=REFINING_BLUR)
        independent = max(fit.points / fit.inflation, 3.0)
        score = independent * math.log(max(_unexplained(fit), 1e-30)) + t.shape[1] * family.size * math.log(independent)
        if best is not None and score >= best[0]:
            break
        best = score, family, fit
    assert best is not None
    return best[1:]


def _as_in(family: Family, smaller: Family, theta: Array, points: Array) -> Array:
    """The same fields (n_L, size) in a family that holds the smaller one."""
    fields = np.stack([smaller.field(m, points) for m in theta])
    return (fields @ np.linalg.pinv(family.basis(points))).reshape(len(theta), -1)


def _free_for_each(x: Array, y: Array, report: Callable[[str, float], None]) -> list[Family]:
    """Up to a degree that serves the first pairs, each with a field of its own."""
    few = [_free(x[p : p + 1], y[p : p + 1], np.ones((1, 1)), report)[0] for p in range(min(3, len(x)))]
    most = max(family.size for family in few)
    ladder = (Polynomial(x.ndim - 2, degree) for degree in FREE_DEGREES)
    return [family for family in ladder if family.size <= most]


def _register_one(x: Array, y: Array, families: list[Family], interpolation: str | None) -> Fit:
    """One pair through families that hold each other, each starting where the one before it ended."""
    _, points, _ = grid_points(x.shape[2:])
    fit, before = None, families[0]
    for family in families:
        if fit is None:
            fit = register(x, y, np.ones((1, 1)), family, interpolation=interpolation)
        else:
            starts = [_as_in(family, before, fit.theta, points)]
            fit = register(
                x, y, np.ones((1, 1)), family, starts=starts, interpolation=interpolation, blur=REFINING_BLUR
            )
        before = family
    assert fit is not None
    return fit


def _unexplained(fit: Fit) -> float:
    return max(fit.residual, 1e-30) / max(fit.variance, 1e-300)


def _outliers(fits: list[Fit]) -> Array:
    """Pairs with a residual far above what is usual among them: a search that ended in the wrong valley."""
    ratios = np.log([_unexplained(f) for f in fits])
    middle = np.median(ratios)
    spread = 1.4826 * np.median(np.abs(ratios - middle))
    return (ratios > middle + max(5 * spread, math.log(4))) & (ratios > math.log(1e-6))


def _unlabelled(
    x: Array,
    y: Array,
    families: list[Family],
    rank: int | None,
    alpha: float,
    resolution: float,
    report: Callable[[str, float], None],
) -> Result:
    family = families[-1]
    count, spatial = len(x), x.shape[2:]
    _, points, scale = grid_points(spatial)
    metric = family.gram(points)
    fits: list[Fit] = []
    interrupted, interpolation = False, None
    try:
        for p in range(count):
            report(f"pair {p + 1} of {count}", p / count)
            pair = slice(p, p + 1)
            fits.append(_register_one(x[pair], y[pair], families, interpolation))
            if p == 2:
                chosen = [f.interpolation for f in fits]
                interpolation = max(set(chosen), key=chosen.count)
        # Again from elsewhere, and from where the others went.
        doubtful = np.nonzero(_outliers(fits) | np.array([f.explained < 0.9 for f in fits]))[0]
        for k, p in enumerate(doubtful.tolist()):
            report(f"pair {p + 1} once more, {k + 1} of {len(doubtful)}", k / len(doubtful))
            pair, settled = slice(p, p + 1), [f.theta for q, f in enumerate(fits) if q not in doubtful]
            starts = [*_starts(family), *settled[:: max(1, len(settled) // 6)]]
            again = register(x[pair], y[pair], np.ones((1, 1)), family, starts=starts, interpolation=interpolation)
            fits[p] = min(fits[p], again, key=_unexplained)
    except KeyboardInterrupt:
        if len(fits) < 2:
            raise
        interrupted = True
    explained = np.array([f.explained for f in fits])
    used = (explained > EXPLAINED) & np.logical_not(_outliers(fits))
    parameters = np.full((len(fits), 0), np.nan)
    empty = Result(
        "affine",
        "registration of each pair",
        None,
        parameters,
        1.0,
        0,
        [],
        alpha,
        None,
        np.zeros(0),
        0.0,
        explained,
        interrupted,
    )
    if used.sum() < max(1, len(fits) / 2):
        empty.notes.append(
            f"no warp of the family explains {EXPLAINED:.0%} of the variance in {(~used).sum()} of {len(fits)} pairs: "
            "no symmetry of this kind is identifiable from this data"
        )
        return empty
    m = np.stack([f.theta[0] for f, good in zip(fits, used, strict=True) if good])
    floor = (resolution / scale) ** 2 * np.linalg.pinv(metric) / family.size
    covariances = np.stack([f.covariance + floor for f, good in zip(fits, used, strict=True) if good])
    if rank is not None and rank > len(m):
        raise ValueError(f"x: {len(m)} pairs that a warp explains cannot identify {rank} generators")
    test = rank_test(m, covariances, metric, alpha, rank)
    spectrum = test.singular_values * scale
    if test.dimension == 0:
        empty.p_values, empty.spectrum = test.p_values, spectrum
        empty.residual = float(np.mean([f.residual / max(f.variance, 1e-300) for f in fits]))
        empty.notes.append(f"no pair moves by more than its noise, or than the resolution of {resolution} pixels")
        return empty
    unit = _unit(family, test.basis, scale)
    parameters = np.full((len(fits), test.dimension), np.nan)
    parameters[used] = test.coefficients / unit
    residual = float(np.mean([f.residual / f.variance for f, good in zip(fits, used, strict=True) if good]))
    notes = []
    if rank is None and test.dimension >= min(len(m) - 1, family.size) and test.dimension < family.size:
        notes.append(f"{len(m)} pairs show {test.dimension} generators and could show no more: there may be others")
    if not used.all():
        left = np.nonzero(~used)[0].tolist()
        notes.append(f"pairs {left[:10]} are not explained by a warp of the family like the others: they took no part")
    return Result(
        "affine",
        "registration of each pair",
        _generators(family, test.basis * unit[:, None], spatial),
        parameters,
        residual,
        test.dimension,
        test.p_values,
        alpha,
        None,
        spectrum,
        0.0,
        explained,
        interrupted,
        notes,
    )


def _labelled(
    x: Array, y: Array, t: Array, family: Family | None, alpha: float, report: Callable[[str, float], None]
) -> Result:
    spatial, count = x.shape[2:], t.shape[1]
    _, points, scale = grid_points(spatial)
    size = np.abs(t).max(0)
    scaled = t / size  # fields of the largest motion seen: O(1) whatever the unit of t
    report("joint registration", 0.0)
    if family is None:
        family, fit = _free(x, y, scaled, report)
    else:
        fit = register(x, y, scaled, family)
    if fit.explained < 0.9 and count == 1:
        report("joint registration from other starts", 0.5)
        fit = min(fit, register(x, y, scaled, family, starts=_starts(family)), key=_unexplained)
    explained = np.full(len(x), fit.explained)
    blank = Result(
        "affine",
        "joint registration",
        None,
        t,
        fit.residual / max(fit.variance, 1e-300),
        0,
        [],
        alpha,
        None,
        np.zeros(0),
        0.0,
        explained,
    )
    if fit.explained < EXPLAINED:
        blank.notes.append(
            f"no warp of the family explains {EXPLAINED:.0%} of the variance with these labels: not identifiable"
        )
        return blank
    covariance, width = fit.covariance, family.size
    for i in range(count):
        own = slice(i * width, (i + 1) * width)
        wald = float(fit.theta[i] @ np.linalg.pinv(covariance[own, own]) @ fit.theta[i])
        blank.p_values.append(float(chi2.sf(wald, width)))
    metric = family.gram(points)
    blank.spectrum = scale * np.sqrt(np.einsum("ia,ab,ib->i", fit.theta, metric, fit.theta))
    moving = [p < alpha for p in blank.p_values]
    blank.notes += [f"generator {i} is zero within its noise" for i in range(count) if not moving[i]]
    if not all(moving):
        blank.dimension = sum(moving)
        if not any(moving):
            return blank
    blank.dimension = sum(moving)
    blank.parameters = t[:, moving]
    blank.generators = _generators(family, (fit.theta / size[:, None])[moving], spatial)
    return blank


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
    explained = np.full(len(x), 1 - learned.residual)
    notes = list(learned.notes)
    if learned.residual > 1 - EXPLAINED:
        notes.append(f"the L-conv explains less than {EXPLAINED:.0%} of the variance: not identifiable this way")
        return Result(
            kind, learned.route, None, t, learned.residual, 0, [], 0.0, None, np.zeros(0), 0.0, explained, notes=notes
        )
    return Result(
        kind,
        learned.route,
        learned.generators,
        t,
        learned.residual,
        t.shape[1],
        [],
        0.0,
        None,
        np.zeros(0),
        0.0,
        explained,
        notes=notes,
    )
