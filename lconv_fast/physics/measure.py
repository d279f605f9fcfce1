"""Integrals over a group as integrals over the grid, and the group-invariant loss (section 6 of Dehmamy et al. 2021).

    I = sum_n int_G dg |Q[Phi_n](g)|^2 = sum_n int_S d^n x mu(x) |Q[Phi_n]|^2,   mu = 1 / |dx/dg|

mu is the measure that the group keeps, div(mu v_i) = 0 for every generator. It is found among closed forms:

    flat                mu = 1                 div v_i = 0: translations, rotations, se, sl, lorentz
    scaling             mu = 1 / |x|^n         v_i = (alpha + antisymmetric) x: scaling, scaling with rotations
    n commuting fields  mu = 1 / |det v_i^a|   simply transitive, e.g. scaling of every axis on its own

Coordinates x are those of the generators. The last two diverge at fixed points (x = 0): a grid with a point there, an
odd size on every axis, has no such integral. Similitudes, gl and affine groups keep no measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lconv_fast.checks import extents
from lconv_fast.generators import AffineGenerators
from lconv_fast.physics.derivatives import check_derivations, check_field, coordinate_scale, coordinates

Form = Callable[[Tensor, Tensor, Tensor], Tensor]  # matrix (n_L, n, n), shift (n_L, n), points x (n, K) -> mu (K,)

CLOSED_FORMS: dict[str, Form] = {
    "1": lambda matrix, shift, x: torch.ones_like(x[0]) + 0 * x[0],
    "1 / |x|^n": lambda matrix, shift, x: x.square().sum(0).pow(-x.shape[0] / 2),
    "1 / |det v|": lambda matrix, shift, x: (
        torch.linalg.det(_fields(matrix, shift, x).movedim(-1, 0)).abs().reciprocal()
    ),
}


def _fields(matrix: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("iab,bk->iak", matrix, x) + shift[..., None]


def _form(matrix: Tensor, shift: Tensor) -> str | None:
    """The first closed form with div(mu v_i) = 0 at some points."""
    count, ndim = shift.shape
    random = torch.Generator().manual_seed(0)
    x = (torch.rand(ndim, 8, generator=random, dtype=torch.float64) + 0.3).requires_grad_()
    for name, mu in CLOSED_FORMS.items():
        if name == "1 / |det v|" and count != ndim:
            continue
        value = mu(matrix, shift, x)
        if not value.isfinite().all():
            continue
        (slope,) = torch.autograd.grad(value.sum(), x)
        field = _fields(matrix, shift, x)
        traces = torch.einsum("iaa->i", matrix)[:, None]
        change = torch.einsum("iak,ak->ik", field, slope) + traces * value
        size = field.norm(dim=1) * slope.norm(dim=0) + matrix.norm(dim=(1, 2))[:, None] * value
        if (change.abs() <= 1e-6 * size.clamp_min(1e-300)).all():
            return name
    return None


def haar_measure(generators: AffineGenerators, spatial: Sequence[int]) -> Tensor:
    """mu(x) on the grid, (*spatial), up to the constant that a basis of the algebra fixes (see the module).

    Raises:
        TypeError: generators that are not affine.
        ValueError: a group that keeps no measure (similitude, gl, affine), and a grid with a point where mu diverges.
    """
    spatial = extents("spatial", spatial)
    check_derivations(generators, len(spatial))
    if not isinstance(generators, AffineGenerators):
        raise TypeError(f"generators: expected AffineGenerators, got {type(generators).__name__}")
    matrix, shift = generators.matrix.detach(), generators.shift.detach()
    scale = coordinate_scale(generators, spatial)
    name = _form(matrix.double().cpu(), shift.double().cpu())
    if name is None:
        raise ValueError(
            f"measure: these generators keep none of the measures {', '.join(CLOSED_FORMS)}; the similitudes, gl "
            "and the affine group keep no measure at all. Give measure='flat' or a tensor (*spatial)"
        )
    x = coordinates(spatial, matrix).reshape(len(spatial), -1) / scale
    return check_measure(CLOSED_FORMS[name](matrix, shift, x).reshape(spatial), spatial)


def check_measure(measure: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """A measure is positive and finite at each point of the grid."""
    if not measure.is_floating_point():
        raise TypeError(f"measure: expected a real floating-point tensor, got {measure.dtype}")
    if tuple(measure.shape) != spatial:
        raise ValueError(f"measure: expected the spatial shape {spatial}, got {tuple(measure.shape)}")
    wrong = ~(measure.isfinite() & (measure > 0))
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"measure: expected positive, finite numbers, got {measure[at].item()} at the point {at}, one of "
            f"{int(wrong.sum())}; a group's measure diverges at its fixed points, which an even grid does not hold"
        )
    return measure


def measure_on(measure: str | Tensor, spatial: tuple[int, ...], generators: object, like: Tensor) -> Tensor | None:
    """A named or given measure on the grid; None: flat."""
    if isinstance(measure, Tensor):
        return check_measure(measure, spatial).to(like.real)
    if isinstance(measure, str) and measure == "flat":
        return None
    if not isinstance(measure, str) or measure != "haar":
        raise ValueError(f"measure: expected 'flat', 'haar' or a tensor (*spatial), got {measure!r}")
    if generators is None:
        raise ValueError("generators: 'haar' needs them where the layer has none of its own")
    return haar_measure(generators, spatial).to(like.real)  # type: ignore[arg-type]


def invariant_loss(
    layer: nn.Module | Callable[[Tensor], Tensor],
    phi: Tensor | tuple[Tensor, Tensor],
    measure: str | Tensor = "flat",
    *,
    generators: AffineGenerators | None = None,
) -> Tensor:
    """`I[Phi; W] = sum_n sum_x mu(x) |Q[Phi_n](x)|^2`: the loss of eq. (19), integrated over the group.

    Args:
        layer: Q, an L-conv layer or any equivariant map to (N, C, *spatial) on the grid of phi.
        phi: Phi = [f | y], (N, m, *spatial); or the pair (f, y), which is concatenated: y as features
            (N, m_y, *spatial), or as categories (N, m_y), constant over the grid, on which the group acts trivially.
        measure: 'flat'; 'haar', 1 / |dx/dg| by the generators; or a tensor (*spatial) of positive numbers.
        generators: of the group, where layer.generators are not meant.

    Returns:
        A number, differentiable.

    Raises:
        TypeError, ValueError: shapes that do not fit; a measure that vanishes or diverges on the grid, or that the
            group does not have.
    """
    if not callable(layer):
        raise TypeError(f"layer: expected a module or function of phi, got {type(layer).__name__}")
    if isinstance(phi, tuple):
        if len(phi) != 2:
            raise ValueError(f"phi: expected a tensor or the pair (f, y), got {len(phi)} values")
        phi = _pair(*phi)
    check_field("phi", phi)
    spatial = tuple(phi.shape[2:])
    if generators is None:
        generators = getattr(layer, "generators", None)
    else:
        check_derivations(generators, len(spatial))
    weight = measure_on(measure, spatial, generators, phi)
    y = layer(phi)
    if not isinstance(y, Tensor):
        raise TypeError(f"layer: expected one that returns a tensor, got {type(y).__name__} from it")
    if tuple(y.shape[2:]) != spatial:
        raise ValueError(f"layer: expected a result on the grid {spatial} of phi, got shape {tuple(y.shape)}")
    squares = y.abs().square().sum(1)
    return squares.sum() if weight is None else (squares * weight).sum()


def _pair(f: Tensor, y: Tensor) -> Tensor:
    check_field("phi[0]", f)
    spatial = tuple(f.shape[2:])
    if not isinstance(y, Tensor) or y.dim() not in (2, f.dim()) or y.shape[0] != f.shape[0]:
        raise ValueError(
            f"phi[1]: expected labels (N, m_y) or (N, m_y, *spatial) beside {tuple(f.shape)}, "
            f"got {tuple(getattr(y, 'shape', ()))}"
        )
    if y.dim() == 2:
        y = y.reshape(*y.shape, *[1] * len(spatial)).expand(*y.shape, *spatial)
    if tuple(y.shape[2:]) != spatial:
        raise ValueError(f"phi[1]: expected the spatial shape {spatial} of phi[0], got {tuple(y.shape)}")
    return torch.cat([f, y.to(f)], 1)
