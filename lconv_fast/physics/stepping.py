"""The discrete Euler-Lagrange equation solved forward in time: a variational (symplectic) integrator.

With one time axis of unit step, the action of neighbouring slices is the trapezoidal discrete Lagrangian

    L_d(p, q) = 1/2 sum_x [ L(p, q - p, grad p) + L(q, q - p, grad q) ],

and stationarity of sum_k L_d(phi_k, phi_k+1) in phi_k is, with D_1, D_2 the gradients in the first and second slice,

    D_2 L_d(phi_k-1, phi_k) + D_1 L_d(phi_k, phi_k+1) = 0.

For L = phi_t^2 / 2 - V this is the Verlet (leapfrog) step phi_k+1 = 2 phi_k - phi_k-1 - V'(phi_k). It keeps the
discrete Noether charges of internal symmetries to rounding, and an energy near the true one for all times (Marsden and
West, "Discrete mechanics and variational integrators", Acta Numerica 10, 2001).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lconv_fast.checks import MOST_NUMBER, real, unsigned_int
from lconv_fast.physics.density import Density, Scheme, check_lagrangian, evaluate, scheme_of
from lconv_fast.physics.derivatives import Accuracy, check_field, check_scheme, coordinates, gradient
from lconv_fast.physics.lagrangian import QuadraticLagrangian


def variational_step(
    lagrangian: QuadraticLagrangian | Density,
    axis: int = 0,
    *,
    accuracy: Accuracy | None = None,
    padding_mode: str | None = None,
    tolerance: float = 1e-12,
) -> VariationalStep:
    """The step (previous, current) -> next of the discrete Euler-Lagrange equation, with `axis` as time.

    Args:
        lagrangian: a QuadraticLagrangian or a density (phi, dphi, x) -> (N, *spatial), as for `euler_lagrange`; dphi
            has the time derivative at `axis`. One step is one unit of time: dt^2 stands in the density.
        axis: of time, among the axes of the density.
        accuracy, padding_mode: of the derivatives in space. None: those of the Lagrangian, else 2 and 'zeros'.
        tolerance: of Newton's method, |residual| over that of the slice before it.
    """
    check_lagrangian(lagrangian)
    if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
        raise ValueError(f"axis: expected the number of an axis, 0 or more, got {axis!r}")
    if isinstance(lagrangian, QuadraticLagrangian) and axis >= lagrangian.ndim:
        raise ValueError(f"axis: expected less than the {lagrangian.ndim} axes of the Lagrangian, got {axis}")
    scheme = scheme_of(accuracy, padding_mode, lagrangian)
    # Of the axes of space, which may be none: how many there are is known once there are slices.
    check_scheme(*scheme, 1)
    return VariationalStep(lagrangian, axis, scheme, real("tolerance", tolerance, 0, 1))


class VariationalStep:
    """(previous, current) -> next; slices are (N, m, *space), without the axis of time. See `variational_step`."""

    MOST = 20  # Newton steps

    def __init__(self, lagrangian: Density, axis: int, scheme: Scheme, tolerance: float) -> None:
        self.lagrangian, self.axis, self.scheme, self.tolerance = lagrangian, axis, scheme, tolerance
        self._quadratic = isinstance(lagrangian, QuadraticLagrangian)
        # Newton's matrices of the last step, with the shape and dtype they are for.
        self._kept: tuple[torch.Size, torch.dtype, Tensor, bool] | None = None

    def __call__(self, previous: Tensor, current: Tensor, time: float = 0.0) -> Tensor:
        """phi_k+1 from phi_k-1 and phi_k, at whose time x[axis] is `time`; not recorded by autograd.

        Raises:
            ValueError: slices that do not fit; a density without kinetic term (phi_k+1 does not take part).
            RuntimeError: Newton's method does not converge.
        """
        time = _time(time)
        self._check(previous, current)
        previous, current = previous.detach(), current.detach()
        guess = 2 * current - previous
        value, scale = self._residual(previous, current, guess, time)
        first = value.norm()
        # Rounding of the slopes themselves bounds what can be asked for.
        least = torch.maximum(self.tolerance * first, 64 * torch.finfo(guess.real.dtype).eps * scale)
        kept = self._kept is not None and self._kept[:2] == (guess.shape, guess.dtype)
        for k in range(self.MOST):
            if not kept:
                mass, local, singular = self._blocks(current, guess, time)
                if singular and k == 0:
                    raise ValueError(
                        "lagrangian: the next slice does not follow from the density: its second derivative in the "
                        "time derivative of phi is singular (no kinetic term for some component)"
                    )
                if singular:
                    break
                self._kept = (guess.shape, guess.dtype, mass, local)
            assert self._kept is not None
            _, _, mass, local = self._kept
            change = _blockwise(mass, value)
            if not local:
                jacobian = partial(self._jacobian, current, guess, time)
                change = _gmres(jacobian, partial(_blockwise, mass), value, self.tolerance)
            guess = guess - change
            if local and self._quadratic:  # linear, and the blocks are all there is: the change is exact
                return guess
            before = value.norm()
            value, _ = self._residual(previous, current, guess, time)
            if value.norm() <= least:
                return guess
            # The matrices of an earlier step serve as long as they contract.
            kept = bool(value.norm() < 0.1 * before)
        raise RuntimeError(
            f"variational_step: Newton's method has a residual of {value.norm().item():.3g} after {k + 1} steps, "
            f"from {first.item():.3g}; a smaller time step (dt^2 in the density) may help"
        )

    def run(self, previous: Tensor, current: Tensor, steps: int, time: float = 0.0) -> tuple[Tensor, Tensor]:
        """The last two slices after a number of steps."""
        time = _time(time)
        self._check(previous, current)
        for k in range(unsigned_int("steps", steps)):
            previous, current = current, self(previous, current, time + k)
        return previous, current

    def trajectory(self, previous: Tensor, current: Tensor, steps: int, time: float = 0.0) -> Tensor:
        """All slices, stacked along the axis of time: (N, m, *spatial) with steps + 2 points on it."""
        time, slices = _time(time), [previous, current]
        self._check(previous, current)
        for k in range(unsigned_int("steps", steps)):
            slices.append(self(slices[-2], slices[-1], time + k))
        return torch.stack(slices, self.axis + 2)

    def energy(self, previous: Tensor, current: Tensor, time: float = 0.0) -> Tensor:
        """The energy of a pair of slices, (N,).

        Of a quadratic Lagrangian: -1/2 (q . D_1 L_d(p, q) + p . D_2 L_d(p, q)), the symplectic form of a state and the
        one after it, which the linear step keeps to rounding. Of others: -dL_d/dh at step h = 1 in

            L_d(p, q; h) = h/2 sum_x [ L(p, (q - p)/h, grad p) + L(q, (q - p)/h, grad q) ],

        the trapezoid of p^t phi_t - L, which oscillates by the order h^2 and does not drift.
        """
        time = _time(time)
        self._check(previous, current)
        p, q = previous.detach().requires_grad_(), current.detach().requires_grad_()
        h = torch.ones(p.shape[0], dtype=p.real.dtype, device=p.device, requires_grad=True)
        with torch.enable_grad():
            total = self.discrete(p, q, time, h).sum()
            first, second, rate = torch.autograd.grad(total, (p, q, h))
        if not self._quadratic:
            return -rate
        return -((first.conj() * q.detach() + second.conj() * p.detach()).real.flatten(1).sum(1) / 2)

    def charge(self, previous: Tensor, current: Tensor, internal: Tensor, time: float = 0.0) -> Tensor:
        """D_2 L_d(p, q) . internal q, (N,): the discrete Noether charge, kept to rounding by a symmetry `internal`."""
        time = _time(time)
        self._check(previous, current)
        with torch.enable_grad():
            at = current.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.discrete(previous.detach(), at, time).sum(), at)
        check_field("internal", internal, least=2)
        if tuple(internal.shape) != (current.shape[1],) * 2:
            raise ValueError(f"internal: expected a matrix on the components, got {tuple(internal.shape)}")
        moved = torch.einsum("cd,Nd...->Nc...", internal.to(current), current)
        return (slope.conj() * moved).real.flatten(1).sum(1)

    def discrete(self, p: Tensor, q: Tensor, time: float, h: Tensor | None = None) -> Tensor:
        """L_d(p, q; h), (N,)."""
        space = p.dim() - 2
        rate = q - p if h is None else (q - p) / h.reshape(-1, *[1] * (space + 1))
        total = self._at(p, rate, time) + self._at(q, rate, time + 1)
        return total / 2 if h is None else h * total / 2

    def _at(self, phi: Tensor, rate: Tensor, time: float) -> Tensor:
        """sum_x L(phi, rate, grad phi), (N,), on a grid with one point of time."""
        space, at = phi.dim() - 2, self.axis
        slices = [rate]
        if space:
            grad = gradient(phi, *self.scheme)
            slices = [*grad[:, :, :at].unbind(2), rate, *grad[:, :, at:].unbind(2)]
        dphi = torch.stack(slices, 2).unsqueeze(at + 3)
        x = coordinates((*phi.shape[2 : at + 2], 1, *phi.shape[at + 2 :]), phi)
        x[at] = time
        return evaluate(self.lagrangian, phi.unsqueeze(at + 2), dphi, x).flatten(1).sum(1)

    def _residual(self, previous: Tensor, current: Tensor, following: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """D_2 L_d(previous, current) + D_1 L_d(current, following), and the norm of the first of the two."""
        with torch.enable_grad():
            at = current.detach().requires_grad_()
            parts = (self.discrete(previous, at, time - 1), self.discrete(at, following, time))
            slopes = [torch.autograd.grad(part.sum(), at)[0] for part in parts]
        return slopes[0] + slopes[1], slopes[0].norm()

    def _jacobian(self, current: Tensor, guess: Tensor, time: float, direction: Tensor) -> Tensor:
        """d/dq of D_1 L_d(current, q) at the guess, times a direction u: the gradient in p of D_2 L_d(p, q) . u."""
        with torch.enable_grad():
            p, q = current.detach().requires_grad_(), guess.detach().requires_grad_()
            (second,) = torch.autograd.grad(self.discrete(p, q, time).sum(), q, create_graph=True)
            if not second.requires_grad:
                return torch.zeros_like(guess)
            (found,) = torch.autograd.grad((second.conj() * direction).real.sum(), p, allow_unused=True)
        return torch.zeros_like(guess) if found is None else found

    def _blocks(self, current: Tensor, guess: Tensor, time: float) -> tuple[Tensor, bool, bool]:
        """The matrices of `_jacobian` on the real components of each point, (N, *space, M, M), whether they are all
        of it (no product of the time derivative with derivatives in space stands in the density), and whether one is
        singular."""
        count = guess.shape[1] * (2 if guess.is_complex() else 1)
        columns = []
        for k in range(count):
            unit = torch.eye(count, dtype=guess.real.dtype, device=guess.device)[k]
            everywhere = _components(unit.expand(guess.shape[0], *guess.shape[2:], count), guess)
            columns.append(_real(self._jacobian(current, guess, time, everywhere)))
        mass = torch.stack(columns, -1)
        sizes = torch.linalg.svdvals(mass)
        singular = not bool((sizes[..., -1] > 1e-12 * sizes.max()).all())
        random = torch.Generator().manual_seed(0)
        probe = torch.randn(guess.shape, dtype=guess.dtype, generator=random).to(guess.device)
        true = self._jacobian(current, guess, time, probe)
        by_blocks = _components((mass @ _real(probe).unsqueeze(-1)).squeeze(-1), guess)
        local = bool((true - by_blocks).norm() <= 1e3 * torch.finfo(guess.real.dtype).eps * true.norm())
        return mass, local, singular

    def _check(self, previous: Tensor, current: Tensor) -> None:
        check_field("previous", previous, least=2)
        check_field("current", current, least=2)
        if previous.shape != current.shape or previous.dtype != current.dtype:
            raise ValueError(
                f"current: expected {tuple(previous.shape)} {previous.dtype} as previous, "
                f"got {tuple(current.shape)} {current.dtype}"
            )
        ndim = getattr(self.lagrangian, "ndim", None)
        if self.axis > current.dim() - 2 or (ndim is not None and current.dim() - 1 != ndim):
            raise ValueError(
                f"current: expected a slice (N, m, *space) without the axis {self.axis} of time"
                f"{'' if ndim is None else f', {ndim - 1} axes of space'}; got {tuple(current.shape)}"
            )


def _time(time: float) -> float:
    return real("time", time, -MOST_NUMBER, MOST_NUMBER)


def _real(t: Tensor) -> Tensor:
    """(N, m, *space) -> its real components, last: (N, *space, M)."""
    t = t.movedim(1, -1)
    return torch.cat([t.real, t.imag], -1) if t.is_complex() else t


def _components(t: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_real`."""
    if like.is_complex():
        t = torch.complex(*t.chunk(2, -1))
    return t.movedim(-1, 1)


def _blockwise(mass: Tensor, value: Tensor) -> Tensor:
    if mass.shape[-1] == 1:
        return value / mass[..., 0].movedim(-1, 1)
    return _components(torch.linalg.solve(mass, _real(value).unsqueeze(-1)).squeeze(-1), value)


def _gmres(
    operator: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], value: Tensor, tolerance: float
) -> Tensor:
    """x with operator(x) = value, right-preconditioned GMRES without restarts (Saad and Schultz 1986)."""
    norm = value.norm()
    basis, images = [value / norm], []
    hessenberg = torch.zeros(61, 60, dtype=norm.dtype, device=value.device)
    for k in range(60):
        images.append(precondition(basis[k]))
        w = operator(images[k])
        for j, b in enumerate(basis):
            hessenberg[j, k] = (b.conj() * w).real.sum()
            w = w - hessenberg[j, k] * b
        hessenberg[k + 1, k] = w.norm()
        right = torch.zeros(k + 2, 1, dtype=norm.dtype, device=value.device)
        right[0] = norm
        y = torch.linalg.lstsq(hessenberg[: k + 2, : k + 1], right).solution
        if (hessenberg[: k + 2, : k + 1] @ y - right).norm() <= tolerance * norm or hessenberg[k + 1, k] == 0:
            break
        basis.append(w / hessenberg[k + 1, k])
    return sum((c * z for c, z in zip(y[1:, 0], images[1:], strict=True)), y[0, 0] * images[0])
