"""Group convolutions from L-convs: theorem 1 of Dehmamy et al. 2021.

    [kappa * f](g) = int_G kappa(u) f(g u) du                                   (eq. 3)
                   = sum_k c_k [delta_eta * f](g u_k),   c_k = kappa(u_k) vol   (lemma 1, eq. 12)
                   = sum_k c_k Q_p ... Q_1 f                                    (lemma 2, eq. 13)

for commuting generators, where u = exp(t^i L_i) has coordinates t, the Haar measure is dt, and f(g u) = exp(t^i L_i) f:
translations T_n, SO(2) on the plane, SO(2) x R+, and any other commuting basis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from lconv_fast.checks import check_float, check_function, positive_int
from lconv_fast.generators import Generators
from lconv_fast.recursive import flow

MOST_CELLS = 10**6
Kernel = Callable[[Tensor], Tensor]
Support = Sequence[tuple[float, float]]


class GConv(nn.Module):
    """sum_k c_k exp(t_k^i L_i) f by composed L-convs, on a lattice t_k = start + k step: what `approximate` makes.

    Neighbouring elements differ by one short flow, so that a lattice of K elements takes about K of them.

    Attributes:
        elements: (K, n_L), the t_k. coefficients: c_k, (K,) or (K, C_out, C_in).
        eta: the radius of a cell. slope: xi, the largest |d kappa / dt| found. volume: |G_0|.
        bound: |G_0| eta^2 xi^2, what lemma 1 gives for int |kappa - kappa~|^2; kernel_error: that integral, measured.
    """

    elements: Tensor
    coefficients: Tensor

    def __init__(
        self,
        generators: Generators,
        axes: list[Tensor],
        coefficients: Tensor,
        *,
        steps: int,
        order: int,
        eta: float,
        slope: float,
        volume: float,
        kernel_error: float,
    ) -> None:
        super().__init__()
        self.generators, self.steps, self.order = generators, steps, order
        self.axes = axes
        self.register_buffer("elements", torch.cartesian_prod(*axes).reshape(-1, len(axes)))
        self.register_buffer("coefficients", coefficients)
        self.eta, self.slope, self.volume, self.kernel_error = eta, slope, volume, kernel_error
        self.bound = volume * eta**2 * slope**2

    def forward(self, f: Tensor) -> Tensor:
        """(N, C, *spatial) to (N, C, *spatial), or to C_out channels with a kernel of matrices."""
        check_float("f", f, tuple(range(2, 16)), "(N, C, *spatial)")
        c = self.coefficients.to(f.dtype).reshape(*[len(axis) for axis in self.axes], *self.coefficients.shape[1:])
        return self._sum(f, c, 0)

    def _sum(self, f: Tensor, c: Tensor, axis: int) -> Tensor:
        """The sum over the lattice's axes from `axis` on."""
        if axis == len(self.axes):
            return c * f if c.dim() == 0 else torch.einsum("oc,nc...->no...", c, f)
        t = self.axes[axis].tolist()
        # Outwards from the element nearest to the identity: errors of moving grow with the distance moved.
        near = min(range(len(t)), key=lambda k: abs(t[k]))
        start = self._moved(f, axis, t[near])
        result = self._sum(start, c[near], axis + 1)
        for direction in (range(near + 1, len(t)), range(near - 1, -1, -1)):
            moving, at = start, t[near]
            for k in direction:
                moving, at = self._moved(moving, axis, t[k] - at), t[k]
                result = result + self._sum(moving, c[k], axis + 1)
        return result

    def _moved(self, f: Tensor, axis: int, t: float) -> Tensor:
        """Q_p ... Q_1 f for u = exp(t L_axis)."""
        if t == 0:
            return f
        element = torch.zeros(len(self.axes), dtype=f.dtype, device=f.device)
        element[axis] = t
        return flow(f, self.generators, element, self.steps, order=self.order)

    def extra_repr(self) -> str:
        return f"elements={len(self.elements)}, eta={self.eta:.3g}, steps={self.steps}, order={self.order}"


def approximate(
    kernel: Kernel,
    generators: Generators,
    support: Support,
    eta: float,
    *,
    steps: int = 1,
    order: int = 1,
) -> GConv:
    """The multi-layer L-conv that approximates a group convolution: theorem 1 of Dehmamy et al. 2021.

    Lemma 1: the support is cut into equal boxes in the coordinates t, of half diagonal at most eta, with u_k at their
    centres; kappa~ is kappa(u_k) on box k, and int |kappa - kappa~|^2 < |G_0| eta^2 xi^2, with |d kappa / dt| < xi. So
    halving eta quarters the bound. A box that is symmetric about u_k has no first-order term: delta_eta there is the
    identity up to eta^2.

    Lemma 2: f is moved to each u_k from its neighbour by `steps` layers of degree `order` in L: of (I + h L) with
    order 1, eq. (13), whose error at a fixed distance falls like its step; a step of degree p in L, which is p L-convs,
    has error O(eta^(p + 1)).

    Args:
        kernel: kappa, differentiable: t (M, n_L) to (M,), the same for each channel, or to (M, C_out, C_in).
        generators: commuting ones, t in their units of time.
        support: (low, high) of each coordinate, outside which kappa is taken as 0.
        eta: radius of the boxes.
        steps, order: of the way from one box to the next.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; generators that do not commute are
            the caller's to avoid, since that depends on the grid.
    """
    if not isinstance(generators, Generators):
        raise TypeError(f"generators: expected a Generators object, got {type(generators).__name__}")
    count = generators.num_generators
    steps, order = positive_int("steps", steps), positive_int("order", order)
    check_function("kernel", kernel, "t (M, n_L)")
    box = _box(support, count)
    if isinstance(eta, bool) or not isinstance(eta, Real):
        raise TypeError(f"eta: expected a positive number, got {eta!r}")
    if not 0 < eta < math.inf:
        raise ValueError(f"eta: expected a positive number, got {eta!r}")
    sides = 2 * eta / count**0.5  # of a cube with half diagonal eta
    cells = ((box[:, 1] - box[:, 0]) / sides - 1e-9).ceil().clamp_min(1)
    if cells.prod() > MOST_CELLS:
        raise ValueError(f"eta: expected at most {MOST_CELLS} boxes on the support, got {eta!r}: {cells.prod():.3g}")
    width = (box[:, 1] - box[:, 0]) / cells
    axes = [
        low + step * (torch.arange(int(n), dtype=torch.float64) + 0.5)
        for low, step, n in zip(box[:, 0], width, cells, strict=True)
    ]
    elements = torch.cartesian_prod(*axes).reshape(-1, count)
    values = kernel(elements)
    if values.shape[:1] != elements.shape[:1] or values.dim() not in (1, 3):
        raise ValueError(
            f"kernel: expected shape ({len(elements)},) or ({len(elements)}, C_out, C_in), got {tuple(values.shape)}"
        )
    kernel_error, slope = _lemma_1(kernel, elements, values, width)
    numbers = generators.coefficients()
    return GConv(
        generators,
        axes,
        (values * width.prod()).detach().to(numbers),
        steps=steps,
        order=order,
        eta=(width.norm() / 2).item(),
        slope=slope,
        volume=(box[:, 1] - box[:, 0]).prod().item(),
        kernel_error=kernel_error,
    )


def _box(support: object, count: int | None = None) -> Tensor:
    """(low, high) of each coordinate: (n_L, 2)."""
    expected = f"support: expected (low, high) with low < high for {count or 'all'} generators, got {support!r}"
    try:
        box = torch.as_tensor(support, dtype=torch.float64)
        fits = box.dim() == 2 and box.shape == (count or max(len(box), 1), 2) and bool((box[:, 0] < box[:, 1]).all())
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(expected) from None
    if not fits or not bool(box.isfinite().all()):
        raise ValueError(expected)
    return box


def _lemma_1(kernel: Kernel, elements: Tensor, values: Tensor, width: Tensor, points: int = 4) -> tuple[float, float]:
    """int |kappa - kappa~|^2 by Gauss's rule in each box, and the largest |d kappa / dt| at its points and corners."""
    nodes, weights = _gauss(points)
    places = torch.tensor(list(itertools.product(nodes.tolist(), repeat=len(width))), dtype=width.dtype)
    shares = torch.tensor(list(itertools.product(weights.tolist(), repeat=len(width))), dtype=width.dtype).prod(1)
    error, slope = 0.0, 0.0
    ends = torch.tensor(list(itertools.product((-0.5, 0.0, 0.5), repeat=len(width))), dtype=width.dtype)
    for place, share in [*zip(places, shares.tolist(), strict=True), *((end, 0.0) for end in ends)]:
        t = (elements + place * width).requires_grad_()
        with torch.enable_grad():
            found = kernel(t)
        error += share * width.prod().item() * (found.detach() - values.detach()).square().sum().item()
        if not found.requires_grad:  # a constant
            continue
        squares = torch.zeros(len(t), dtype=t.dtype)
        for column in found.reshape(len(t), -1).unbind(1):
            (gradient,) = torch.autograd.grad(column.sum(), t, retain_graph=True)
            squares += gradient.square().sum(1)
        slope = max(slope, squares.max().sqrt().item())
    return error, slope


def _gauss(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [-1/2, 1/2]: eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, points, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return nodes / 2, vectors[0] ** 2


def integrate(
    kernel: Kernel, f: Tensor, act: Callable[[Tensor, Tensor], Tensor], support: Support, points: int
) -> Tensor:
    """[kappa * f] = int kappa(t) exp(t^i L_i) f dt by Gauss's rule with `points` nodes on each axis: the direct way,
    which approximations are compared with.

    act: (f, t (n_L,)) to f(. u), in whatever way is exact for the case at hand.
    """
    check_function("kernel", kernel, "t (M, n_L)")
    check_function("act", act, "f and t (n_L,)")
    check_float("f", f, tuple(range(1, 16)), "(N, C, *spatial)")
    nodes, weights = _gauss(positive_int("points", points, MOST_CELLS))
    box = _box(support)
    width = box[:, 1] - box[:, 0]
    result: Tensor | float = 0.0
    for place in itertools.product(range(points), repeat=len(width)):
        t = box.mean(1) + width * nodes[list(place)]
        c = (kernel(t.unsqueeze(0))[0] * weights[list(place)].prod() * width.prod()).to(f.dtype)
        moved = act(f, t)
        result = result + (c * moved if c.dim() == 0 else torch.einsum("oc,nc...->no...", c, moved))
    assert isinstance(result, Tensor)
    return result
