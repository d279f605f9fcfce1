"""How far a module is from commuting with a group: finite elements, and the generators layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lconv_fast.checks import boolean, check_function, check_module, real, unsigned_int
from lconv_fast.generators import AffineGenerators, Generators
from lconv_fast.physics.audit_report import Audit, Layer
from lconv_fast.physics.grids import Follower, Shape
from lconv_fast.physics.group import check_group, exponential, matched, one_of, placed
from lconv_fast.physics.tangents import tangent

Where = dict[str, tuple[float | Sequence[float], float | Sequence[float]]]


def equivariance_error(
    module: nn.Module | Callable[[Tensor], Tensor], x: Tensor, generators: Generators | str, t: float | Tensor
) -> Tensor:
    """|Q[w.f] - w.Q[f]| / |Q[f]| for w = exp(t L): eq. (2) and (16) of Dehmamy et al. 2021, measured.

    exp(t L) is that of the discrete generators. On a result with another grid, the group acts by the generators of that
    grid (strides are followed); on a result without a grid, (N, K), it acts trivially.

    Args:
        module: any module or function of x; put into evaluation mode for the call.
        x: (N, C, *spatial), real.
        generators: on the axes of x, or a name (see AffineGenerators.named).
        t: a number: exp(t L_i) for every generator, the result is (n_L,); or (n_L,): exp(sum_i t_i L_i), a number.

    Raises:
        TypeError, ValueError: generators of another dimension; a grid that cannot be followed.
    """
    check_function("module", module, "x")
    group = _group(generators, x)
    count = group.num_generators
    if isinstance(t, Tensor) and t.dim():
        if tuple(t.shape) != (count,):
            raise ValueError(f"t: expected a number or shape ({count},), got {tuple(t.shape)}")
        elements = t.detach()[None]
    else:
        number = t.item() if isinstance(t, Tensor) and not t.is_complex() else t
        elements = real("t", number, -MOST_TIME, MOST_TIME) * torch.eye(count, dtype=torch.float64)
    root = tuple(x.shape[2:])
    follower = Follower(root)
    with torch.no_grad(), _evaluating(module):
        y = _followed(module, x, follower, {})
        if not isinstance(y, Tensor):
            raise TypeError(f"module: expected a tensor as result, got {type(y).__name__}; wrap the module to pick one")
        acting = _acting(group, follower, y, "module", type(module).__name__)
        errors = []
        for element in elements:
            moved = module(exponential(group, x, element))
            expected = y if acting is None else exponential(acting, y, element)
            errors.append((moved - expected).norm() / y.norm())
    result = torch.stack(errors)
    return result if len(elements) == count and not (isinstance(t, Tensor) and t.dim()) else result[0]


def audit(
    model: nn.Module,
    x: Tensor,
    generators: Generators | str,
    *,
    margin: int = 8,
    maps: bool = True,
    grids: Where | None = None,
) -> Audit:
    """d/dt Q[exp(t L) f] - L Q[f] at t = 0 for every module of a model, at full resolution.

    Every module Q is taken on its own, at the features f that reach it: what it adds to the model's error, not what it
    inherits. The derivative is a Jacobian-vector product J L f, by forward mode, else by double backward, else by
    differences (the row says which). The row '' is the model as a whole. On grids of another size the group acts by the
    generators of that grid; on vectors (N, K) it acts trivially. The model runs in evaluation mode and is not changed.

    Args:
        model: any nn.Module of one tensor x; modules may take and give several tensors.
        x: (N, C, *spatial), real.
        generators: named, given or discovered, on the axes of x.
        margin: points of x's grid at its border that count as boundary, scaled for other grids.
        maps: keeps the error of every point, for `Audit.picture`.
        grids: for modules whose grid cannot be followed, {path: (scale, offset)}: the point j of the result lies at
            scale * j + offset of the module's input; numbers, or one for each axis.

    Raises:
        TypeError, ValueError: generators of another dimension; a layer that cannot be followed, by its path.
    """
    check_module("model", model)
    group = _group(generators, x)
    margin, maps, grids = unsigned_int("margin", margin), boolean("maps", maps), _grids(grids, x)
    names = [f"{generators}[{i}]" if isinstance(generators, str) else f"L{i}" for i in range(group.num_generators)]
    run = _Run(group, Follower(tuple(x.shape[2:])), margin, maps, grids)
    with torch.no_grad(), _evaluating(model):
        # Once through the model to see every grid, and what cannot be followed in the innermost module.
        _followed(model, x.detach(), run.follower, run.grids, run.check)
        with _hooked(model, lambda path: {"before": run.hook(path)}), run.follower:
            model(x.detach())
    return Audit(run.layers, names)


MOST_TIME = 1e6  # of t
Hook = Callable[..., None]


@contextmanager
def _hooked(model: nn.Module, hooks: Callable[[str], dict[str, Hook]]) -> Iterator[None]:
    """Hooks of every module by its path, before or after its forward, for a while."""
    handles = []
    for path, module in model.named_modules():
        for when, hook in hooks(path).items():
            register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
            handles.append(register(hook, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _followed(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    follower: Follower,
    grids: Where,
    check: Hook | None = None,
) -> Tensor:
    """model(x), with every grid on the way placed; `check` sees every module with what it took and gave."""

    def place(path: str) -> dict[str, Hook]:
        def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            sides = _tensors((args, kwargs)), _tensors(result)
            shapes = [[tuple(t.shape[2:]) for t in side if t.dim() == follower.ndim + 2] for side in sides]
            if shapes[0] and shapes[1]:
                if path in grids:
                    given = [v if isinstance(v, Sequence) else (v,) * follower.ndim for v in grids[path]]
                    follower.place(shapes[1][0], shapes[0][0], *(tuple(map(float, v)) for v in given))
                else:
                    follower.saw_module(module, shapes[0][0], shapes[1][0])
            if check is not None:
                check(path, type(module).__name__, *sides)

        return {"after": after}

    if not isinstance(model, nn.Module):
        with follower:
            return model(x)
    with _hooked(model, place), follower:
        return model(x)


def _tensors(values: Any) -> list[Tensor]:
    return [v for v in tree_flatten(values)[0] if isinstance(v, Tensor) and v.is_floating_point()]


class _Run:
    """One audit: rows, in the order in which modules end."""

    def __init__(self, group: Generators, follower: Follower, margin: int, maps: bool, grids: Where) -> None:
        self.group, self.follower, self.margin, self.maps, self.grids = group, follower, margin, maps, grids
        self.layers: list[Layer] = []
        self.busy = False

    def check(self, path: str, name: str, inputs: list[Tensor], results: list[Tensor]) -> None:
        """Raises for what `layer` could not follow."""
        for came, side in ((True, inputs), (False, results)):
            for value in side:
                _acting(self.group, self.follower, value, path, name, came)

    def hook(self, path: str) -> Hook:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.busy:
                self.busy = True
                try:
                    self.layers.append(self.layer(path, module, args, kwargs))
                finally:
                    self.busy = False

        return before

    def layer(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer:
        flat, form = tree_flatten((args, kwargs))
        at = [k for k, value in enumerate(flat) if isinstance(value, Tensor) and value.is_floating_point()]
        inputs = [flat[k].detach() for k in at]
        name = type(module).__name__
        before = [_acting(self.group, self.follower, value, path, name, came=True) for value in inputs]

        def function(*values: Tensor) -> list[Tensor]:
            given = list(flat)
            for k, value in zip(at, values, strict=True):
                given[k] = value.clone()  # modules may work in place
            a, k = tree_unflatten(given, form)
            return _tensors(module.forward(*a, **k))

        interior: list[float] = []
        boundary: list[float] = []
        rates: list[float] = []
        maps: list[Tensor] = []
        shape: Shape = ()
        method = ""
        for i in range(self.group.num_generators):
            moved = [_apply(g, value, i) for g, value in zip(before, inputs, strict=True)]
            results, tangents, method = tangent(function, inputs, moved)
            # |defect|^2 and |motion|^2, in the interior and within the margin; |Q[f]|^2.
            sums, size = torch.zeros(2, 2, dtype=torch.float64), 0.0
            for k, (y, dy) in enumerate(zip(results, tangents, strict=True)):
                acting = _acting(self.group, self.follower, y, path, name)
                expected = _apply(acting, y, i)
                defect = _points(dy - expected)
                # What does not move is measured by its own size.
                motion = _points(y) if acting is None else torch.maximum(_points(dy), _points(expected))
                size += _points(y).sum().item()
                inside = self._inside(defect.shape).to(y.device)
                for row, mask in enumerate((inside, ~inside)):
                    sums[row] += torch.stack([defect[mask].sum(), motion[mask].sum()]).cpu()
                if k == 0:
                    shape = tuple(y.shape[2:])
                    if self.maps and shape:
                        maps.append(defect.sqrt().float().cpu())
            for part, (error, scale) in zip((interior, boundary), sums.tolist(), strict=True):
                part.append((error / scale) ** 0.5 if scale else 0.0)
            rates.append((sums[:, 0].sum().item() / size) ** 0.5 if size else 0.0)
        inner, outer, rate = (torch.tensor(part, dtype=torch.float64) for part in (interior, boundary, rates))
        leaf = next(module.children(), None) is None
        return Layer(path, name, leaf, shape, inner, outer, rate, method, torch.stack(maps) if maps else None)

    def _inside(self, spatial: Sequence[int]) -> Tensor:
        """Which points are farther than the margin from the border; where that leaves none, the middle ones."""
        mask = torch.ones(tuple(spatial), dtype=torch.bool)
        for axis, (size, root) in enumerate(zip(spatial, self.follower.root, strict=False)):
            width = min(-(-self.margin * size // root), (size - 1) // 2)
            if width:
                mask.narrow(axis, 0, width).fill_(False)
                mask.narrow(axis, size - width, width).fill_(False)
        return mask


def _grids(grids: object, x: Tensor) -> Where:
    """{path: (scale, offset)}, each a number or one for each axis of x."""
    expected = f"grids: expected {{path: (scale, offset)}} with numbers, or one for each of {x.dim() - 2} axes"
    if not isinstance(grids, Mapping | None):
        raise TypeError(f"{expected}, got {grids!r}")
    for path, place in (grids or {}).items():
        if not isinstance(path, str) or not isinstance(place, (tuple, list)) or len(place) != 2:
            raise TypeError(f"{expected}, got {path!r}: {place!r}")
        for value in place:
            numbers = value if isinstance(value, (tuple, list)) else [value] * (x.dim() - 2)
            if len(numbers) != x.dim() - 2 or not all(isinstance(number, Real) for number in numbers):
                raise TypeError(f"{expected}, got {path!r}: {place!r}")
    return dict(grids or {})


def _group(generators: Generators | str, x: Tensor) -> Generators:
    if isinstance(generators, str):
        if not isinstance(x, Tensor) or x.dim() < 3:
            raise TypeError(f"x: expected a tensor (N, C, *spatial), got {getattr(x, 'shape', type(x))}")
        if x.dim() > 5:
            raise ValueError(f"x: expected (N, C, *spatial) with 1 to 3 axes, got {tuple(x.shape)}")
        generators = AffineGenerators.named(generators, x.dim() - 2)
    check_group(generators, x)
    return matched(generators, x)


def _acting(
    group: Generators, follower: Follower, value: Tensor, path: str, name: str, came: bool = False
) -> Generators | None:
    """The generators on the grid of a tensor; None on vectors and single points, which do not move."""
    which = f"{path or 'the model'} ({name})"
    spatial: Shape = tuple(value.shape[2:])
    if value.dim() <= 2:
        if value.dim() == 2 and came and value.shape[1] in follower.flattened:
            shape, function = follower.flattened[value.shape[1]]
            raise ValueError(
                f"audit: {which} takes vectors that {function} made of a grid {shape}: the group's action on them "
                "cannot be followed; audit the part of the model before it"
            )
        return None
    if value.dim() == follower.ndim + 2 and value[0, 0].numel() == 1:
        return None
    side = "takes" if came else "gives"
    if value.dim() != follower.ndim + 2:
        raise ValueError(
            f"audit: {which} {side} a tensor {tuple(value.shape)}, where (N, C, *spatial) with {follower.ndim} spatial "
            "axes or (N, K) can be followed"
        )
    if spatial not in follower.known:
        raise ValueError(
            f"audit: {which} {side} a grid {spatial}, made by {follower.lost.get(spatial, 'an unknown function')} in a "
            f"way that cannot be followed from {follower.root}; say where it lies with grids={{path: (scale, offset)}}"
        )
    placement = follower.known[spatial]
    if (spatial, placement) not in follower.acting:
        found = placed(group, follower.root, spatial, placement)
        if found is None:
            raise ValueError(
                f"audit: {which} {side} a grid {spatial}, where only affine generators can be followed from "
                f"{follower.root}, got {type(group).__name__}"
            )
        try:
            one_of(found, 0)(torch.zeros(1, 1, *spatial, dtype=group.coefficients().dtype, device=value.device))
        except ValueError as error:
            raise ValueError(
                f"audit: {which} {side} a grid {spatial} that the generators do not fit: {error}"
            ) from None
        follower.acting[spatial, placement] = found
    return follower.acting[spatial, placement]


def _apply(generators: Generators | None, value: Tensor, index: int) -> Tensor:
    """L_index value; zero where the group acts trivially."""
    if generators is None:
        return torch.zeros_like(value)
    one = matched(one_of(generators, index), value)
    return one(value)[:, 0 if one.num_generators == 1 else index]


def _points(t: Tensor) -> Tensor:
    """Squares summed over batch and channels, at each point: (*spatial), or () for vectors."""
    squares = t.double().square() if t.numel() < 1 << 24 else t.square()
    return squares.sum((0, 1)).double() if t.dim() > 2 else squares.sum().double()


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
