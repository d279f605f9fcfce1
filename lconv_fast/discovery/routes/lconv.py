"""The L-conv route: the paper's recursive layer (I + t/p L)^p with a learnable structured generator, by fused kernels.

Section 4 of Dehmamy et al. 2021, with affine, field or stencil generators in the place of a dense L: it reaches grids
where dense L cannot be stored. Coarse to fine: blurred images see far, and the blur is lowered in steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lconv_fast.checks import check_float, check_tensor, positive_int
from lconv_fast.discovery.problem import EXPLAINED, Problem
from lconv_fast.discovery.result import Found
from lconv_fast.generators import AffineGenerators, FieldGenerators, Generators, StencilGenerators

COARSEST = 16  # points a side of the first grid, at least
ORDER, LONGEST = 4, 1.5  # of each factor of the recursion: its series, and the pixels that it moves points by
ROUGHNESS = 1.0  # weight of a free field's mean square second difference, in pixels^2: zero for affine fields


def recursive_lconv(x: Tensor, t: Tensor, generators: Generators, recursions: int, order: int = 1) -> Tensor:
    """(I + 1/p sum_i t[n,i] L_i)^p x for images x (N, C, *spatial), each with its own t (N, n_L).

    With `order` k, each of the p factors is the exponential series up to its k-th power, from k L-convs. Order 1 is the
    paper's; it lets a wave of omega radians per pixel grow by exp((omega v)^2 / 2p) where exp(tL) moves it by v pixels,
    while order 4 keeps all waves bounded as long as a factor moves no point by more than 1.5 pixels.
    """
    recursions, order = positive_int("recursions", recursions), positive_int("order", order)
    check_float("x", x, (3, 4, 5), "(N, C, *spatial) with 1 to 3 axes")
    if not isinstance(generators, Generators):
        raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
    check_tensor("t", t)
    if tuple(t.shape) != (x.shape[0], generators.num_generators):
        raise ValueError(f"t: expected shape {(x.shape[0], generators.num_generators)}, got {tuple(t.shape)}")
    step = (t.to(x.dtype) / recursions).reshape(*t.shape, *[1] * (x.dim() - 1))
    for _ in range(recursions):
        power = x
        for k in range(1, order + 1):
            power = (step / k * generators(power)).sum(1)
            x = x + power
    return x


def _start(kind: str, count: int, spatial: tuple[int, ...], dtype: torch.dtype) -> Generators:
    """Generators of a kind that are zero, with room for what the search is about."""
    ndim = len(spatial)
    if kind == "affine":
        zeros = torch.zeros(count, ndim, ndim, dtype=dtype), torch.zeros(count, ndim, dtype=dtype)
        return AffineGenerators(*zeros, accuracy=8, padding_mode="replicate", learnable=True)
    if kind == "field":
        field_ = torch.zeros(count, ndim, *spatial, dtype=dtype)
        return FieldGenerators(field_, accuracy=8, padding_mode="replicate", learnable=True)
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * ndim).reshape(-1, ndim)
    return StencilGenerators(
        torch.zeros(count, len(offsets), *spatial, dtype=dtype), offsets, padding_mode="replicate", learnable=True
    )


def _smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur along each axis."""
    if sigma < 0.3:
        return images
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(
        -(torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device) ** 2) / (2 * sigma**2)
    )
    kernel = kernel / kernel.sum()
    for axis in range(2, images.dim()):
        moved = images.movedim(axis, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        padded = torch.nn.functional.pad(rows, [reach, reach], mode="replicate")
        images = torch.nn.functional.conv1d(padded, kernel[None, None]).reshape(moved.shape).movedim(-1, axis)
    return images


def by_lconv(problem: Problem) -> Found:
    """Minimises |y - (I + t/p L)^p x|^2 over the interior by L-BFGS, on grids that grow and at falling blurs.

    Interrupted, it keeps the generators of the last grid and blur that were done.
    """
    labels = labels_of(problem)
    dtype = torch.float64 if problem.x[0].numel() <= 4096 else torch.float32
    x, y, t = (v.to(problem.device, dtype) for v in (problem.x, problem.y, labels))
    spatial, size = problem.spatial, t.abs().max(0).values
    scaled = t / size
    # A stencil's taps are a pixel apart, and mean something else on another grid.
    doublings = 0 if problem.kind == "stencil" else max(min(spatial) // COARSEST, 1).bit_length() - 1
    factors = [2**k for k in range(doublings, -1, -1)]
    generators = _start(problem.kind, t.shape[1], _coarse(x, factors[0]).shape[2:], dtype).to(problem.device)
    residual, steps, fits, interrupted = 1.0, 1, 0, False
    for level, factor in enumerate(factors):
        source, target = _coarse(x, factor), _coarse(y, factor)
        grid = tuple(source.shape[2:])
        if level:
            generators = _refined(generators, grid)
        steps = problem.recursions or min(64, max(8, max(grid) // 8))
        if interrupted:
            continue
        problem.report(f"L-conv on {' x '.join(map(str, grid))} points", level / len(factors))
        first = (max(grid) / 10, max(grid) / 20, max(grid) / 40) if not level else ()
        kept = _copied(generators)
        try:
            for blur in [*[b for b in first if b > 1.0], 1.0]:
                residual = _fit(generators, _smooth(source, blur), _smooth(target, blur), scaled, steps)
                kept, fits = _copied(generators), fits + 1
        except KeyboardInterrupt:
            if not fits:
                raise
            interrupted = True
            generators.load_state_dict(kept)
    found, notes = _finished(generators, size, spatial, steps)
    return of_learned(problem, found, residual, steps, notes, interrupted)


def labels_of(problem: Problem) -> Tensor:
    """t (P, n_L), which these routes need."""
    if problem.t is None:
        way = "" if problem.kind == "graph" else " by the L-conv route"
        raise ValueError(f"parameters: kind {problem.kind!r}{way} needs labelled pairs, got None")
    return torch.from_numpy(problem.t)


def of_learned(
    problem: Problem, generators: Generators, residual: float, steps: int, notes: list[str], interrupted: bool
) -> Found:
    """What was learned, if it explains enough of the variance."""
    assert problem.t is not None
    good = residual <= 1 - EXPLAINED
    if not good:
        notes = [*notes, f"the L-conv explains less than {EXPLAINED:.0%} of the variance: not identifiable this way"]
    return Found(
        f"a recursive L-conv of {steps} factors of order {ORDER}",
        problem.t,
        np.full(problem.pairs, 1 - residual),
        residual,
        generators=generators if good else None,
        notes=notes,
        interrupted=interrupted,
    )


def _copied(generators: Generators) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in generators.state_dict().items()}


def _fit(generators: Generators, x: Tensor, y: Tensor, t: Tensor, steps: int) -> float:
    """The residual in units of y's variance, after it was made small."""
    residual = 1.0
    for _ in range(2):  # what comes from outside the grid is known once the field is
        inside = _inside(x, t, generators, steps)
        residual = minimise(generators, x, y, t, steps, inside)
    return residual


def _inside(x: Tensor, t: Tensor, generators: Generators, steps: int) -> Tensor:
    """1 at points of each pair that stay in the grid, else 0, (P, 1, *spatial): exp(tL) of coordinates is the flow."""
    spatial = x.shape[2:]
    axes = [torch.arange(size, dtype=x.dtype, device=x.device) for size in spatial]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, *spatial)
    last = torch.tensor(spatial, dtype=x.dtype, device=x.device).reshape(-1, *[1] * len(spatial)) - 1
    margin = (last / 16).clamp(1.0, 4.0)
    with torch.no_grad():
        flow = recursive_lconv(points, t, generators, steps, ORDER)
    kept = ((flow >= margin) & (flow <= last - margin) & (points >= margin) & (points <= last - margin)).all(1, True)
    return kept.to(x.dtype)


def minimise(generators: Generators, x: Tensor, y: Tensor, t: Tensor, steps: int, inside: Tensor) -> float:
    """Makes |y - (I + t/p L)^p x|^2 over the points inside, in units of y's variance there, small by L-BFGS."""
    parameters, count = list(generators.parameters()), inside.expand_as(x).sum()
    variance = ((y - (y * inside).sum() / count).square() * inside).sum() / count
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=40, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )

    def misfit() -> Tensor:
        error = recursive_lconv(x, t, generators, steps, ORDER) - y
        return (error.square() * inside).sum() / count / variance

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = misfit()
        # A free field is not determined where the image is flat.
        if isinstance(generators, FieldGenerators | StencilGenerators):
            value = value + ROUGHNESS * sum(_roughness(p) for p in parameters)
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return float(misfit())


def _coarse(images: Tensor, factor: int) -> Tensor:
    """Means over blocks of factor points a side; what does not fill one is cut off on both sides."""
    for axis in range(2, images.dim()):
        blocks = images.shape[axis] // factor
        start = (images.shape[axis] - blocks * factor) // 2
        images = images.narrow(axis, start, blocks * factor).unflatten(axis, (blocks, factor)).mean(axis + 1)
    return images


def _refined(generators: Generators, grid: tuple[int, ...]) -> Generators:
    """The same fields on a grid of about twice the points a side."""
    with torch.no_grad():
        if isinstance(generators, AffineGenerators):  # pixels per unit time, in coordinates of half the extent
            generators.matrix.mul_(2)
            generators.shift.mul_(2)
            return generators
        assert isinstance(generators, FieldGenerators)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(grid)]
        field_ = 2 * torch.nn.functional.interpolate(generators.field, size=grid, mode=mode, align_corners=False)
    return FieldGenerators(field_, accuracy=8, padding_mode="replicate", learnable=True)


def _roughness(p: Tensor) -> Tensor:
    """Mean square of second differences along the grid's axes."""
    total = p.new_zeros(())
    for axis in range(2, p.dim()):
        total = total + p.diff(n=2, dim=axis).square().mean()
    return total


def _finished(
    generators: Generators, size: Tensor, spatial: tuple[int, ...], steps: int
) -> tuple[Generators, list[str]]:
    """The generators for parameters in their own unit, and in pixels."""
    notes: list[str] = []
    with torch.no_grad():
        if isinstance(generators, AffineGenerators):
            half = (max(spatial) - 1) / 2
            matrix, shift = generators.matrix / size[:, None, None], generators.shift / size[:, None]
            corner = (generators.matrix.abs().sum(-1) + generators.shift.abs()).max() / steps
            found: Generators = AffineGenerators((matrix / half).float(), shift.float(), coordinate_scale=1.0)
        elif isinstance(generators, FieldGenerators):
            corner = generators.field.abs().max() / steps
            found = FieldGenerators((generators.field / size.reshape(-1, *[1] * (len(spatial) + 1))).float())
        else:
            assert isinstance(generators, StencilGenerators)
            corner = torch.zeros(())
            values = generators.weights / size.reshape(-1, *[1] * (generators.weights.dim() - 1))
            found = StencilGenerators(values.float(), torch.tensor(generators.taps), padding_mode="replicate")
    if corner > LONGEST:
        raise ValueError(
            f"recursions: {steps} factors move points by up to {float(corner):.1f} pixels each, more than differences "
            "see: expected more recursions, or smaller parameters"
        )
    return found, notes
