"""The MSE loss of an L-conv layer as a field theory: eq. (19) and (20) of Dehmamy et al. 2021."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lconv_fast.checks import MOST_NUMBER, check_float, check_strided, choice, extents, positive_int, real
from lconv_fast.generators import AffineGenerators
from lconv_fast.modules import LConv1d, LConv2d, LConv3d
from lconv_fast.physics.density import Scheme
from lconv_fast.physics.derivatives import (
    Accuracy,
    by_parts,
    check_derivations,
    check_field,
    check_scheme,
    coordinate_scale,
    coordinates,
    gradient,
    vector_fields,
)


class QuadraticLagrangian(nn.Module):
    """L = Phi^T m2 Phi + d_a Phi^T h^ab(x) d_b Phi + 2 Phi^T b^a(x) d_a Phi  (transposes conjugate for complex Phi).

    From a layer, |Q[Phi]|^2 with m2, h, v_i of eq. (20) and b^a = v_i [L_i]^a: see `from_layer`. On its own, a free
    field: h = diag(1, -c^2, -c^2) with m2 = -M^2 is the wave (Klein-Gordon) equation with axis 0 as time.

    It is a density, called as (phi (N, m, *spatial), dphi (N, m, n, *spatial), x (n, *spatial)) -> (N, *spatial).

    Args:
        m2: (m, m), real, or a number for one component and for every component alike.
        h: (n, n) for every component alike, (n, n, m, m), or (n, n, m, m, *spatial).
        b: (n, m, m) or (n, m, m, *spatial), or None.
        components: m, where neither m2 nor h says it.
        accuracy, padding_mode: of d_a; as for AffineGenerators, and 'spectral' with 'circular'.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    layer: Any
    _m2: Tensor
    _h: Tensor
    _b: Tensor | None

    def __init__(
        self,
        m2: Tensor | float,
        h: Tensor,
        b: Tensor | None = None,
        *,
        components: int | None = None,
        accuracy: Accuracy = 2,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.layer = None
        if not isinstance(h, Tensor) or not h.is_floating_point():
            raise TypeError(f"h: expected a real floating-point tensor, got {getattr(h, 'dtype', type(h).__name__)}")
        if h.dim() < 2 or h.shape[0] != h.shape[1] or not 1 <= h.shape[0] <= 3:
            raise ValueError(f"h: expected shape (n, n), (n, n, m, m) or (n, n, m, m, *spatial), got {tuple(h.shape)}")
        self.ndim = h.shape[0]
        check_scheme(accuracy, padding_mode, self.ndim)
        check_strided("h", h)
        if isinstance(m2, Tensor):
            check_float("m2", m2, (0, 2), "() or (m, m)")
        else:
            m2 = real("m2", m2, -MOST_NUMBER, MOST_NUMBER)
        if b is not None:
            check_float("b", b, (3, self.ndim + 3), "(n, m, m) or (n, m, m, *spatial)")
        for name, given in (("m2", m2), ("b", b)):
            if isinstance(given, Tensor) and given.device != h.device:
                raise TypeError(f"{name}: expected device {h.device} as h, got {given.device}")
        m2 = torch.as_tensor(m2, dtype=h.dtype, device=h.device)
        if components is not None:
            components = positive_int("components", components)
        count = components or (h.shape[2] if h.dim() > 2 else m2.shape[0] if m2.dim() else 1)
        one = torch.eye(count, dtype=h.dtype, device=h.device)
        m2 = m2 * one if m2.dim() == 0 else m2
        h = h[..., None, None] * one if h.dim() == 2 else h
        for name, t, shape in (("m2", m2, ()), ("h", h, (self.ndim,) * 2), ("b", b, (self.ndim,))):
            if t is None:
                continue
            full = (*shape, count, count)
            spatial = t.shape[len(full) :]
            if tuple(t.shape[: len(full)]) != full or (spatial and (name == "m2" or len(spatial) != self.ndim)):
                raise ValueError(f"{name}: expected shape {full}, or with *spatial for h and b, got {tuple(t.shape)}")
        self.accuracy, self.padding_mode, self.components = accuracy, padding_mode, count
        self.register_buffer("_m2", m2)
        self.register_buffer("_h", h)
        self.register_buffer("_b", b)

    @classmethod
    def from_layer(cls, layer: nn.Module) -> QuadraticLagrangian:
        """|Q[Phi]|^2 of an LConv1d, 2d or 3d with affine or field generators, eq. (19) in its corrected form:

            |Q[Phi]|^2 = Phi^T m2 Phi + d_a Phi^T h^ab d_b Phi + 2 Phi^T v_i L_i Phi,
            m2 = W0^T W0,   h^ab(x) = W_i^T W_j [L_i]^a [L_j]^b,   v_i = W0^T W_i,

        which is eq. (20) where W_i = W0 eps^i. A bias c adds 2 c^T Q[Phi] + |c|^2. The layer is kept, not copied: its
        parameters stay differentiable.

        Raises:
            TypeError: no L-conv layer on a grid, or generators that are no vector fields.
            ValueError: a layer with a stride, whose loss has no density on the grid of Phi.
        """
        if not isinstance(layer, LConv1d | LConv2d | LConv3d):
            raise TypeError(f"layer: expected LConv1d, LConv2d or LConv3d, got {type(layer).__name__}")
        if set(layer.stride) != {1}:
            raise ValueError(
                f"layer: expected stride 1, since the density lives on the grid of phi, got {layer.stride}"
            )
        check_derivations(layer.generators, layer.ndim)
        result = cls.__new__(cls)
        nn.Module.__init__(result)
        result.layer = layer
        result.ndim, result.components = layer.ndim, layer.in_channels
        generators: Any = layer.generators
        result.accuracy, result.padding_mode = generators.accuracy, generators.padding_mode
        return result

    # ---- eq. (20) ------------------------------------------------------------------------------------------------

    def _weights(self) -> Tensor:
        """W^0 and W^i as full matrices: (n_L + 1, out, in), groups as blocks."""
        layer = self.layer
        weight = layer.weight
        if layer.groups == 1:
            return weight
        parts = weight.reshape(weight.shape[0], layer.groups, -1, weight.shape[2])
        return torch.stack([torch.block_diag(*part) for part in parts])

    @property
    def m2(self) -> Tensor:
        """W0^T W0, (m, m)."""
        if self.layer is None:
            return self._m2
        first = self._weights()[0]
        return first.T @ first

    @property
    def v(self) -> Tensor:
        """v_i = W0^T W_i (= m2 eps^i), (n_L, m, m). Raises ValueError without a layer."""
        if self.layer is None:
            raise ValueError("v: only a Lagrangian made from a layer has v_i; b has the coefficients of d_a")
        weights = self._weights()
        return weights[0].T @ weights[1:]

    def h(self, x: Tensor | tuple[int, ...]) -> Tensor:
        """h^ab(x), (n, n, m, m, *spatial); x: coordinates (n, *spatial), or the shape of the grid."""
        x = self._points(x)
        if self.layer is None:
            return self._spread(self._h, 4, x)
        weights, field = self._weights()[1:], vector_fields(self.layer.generators, x)
        return torch.einsum("ioc,jod,ia...,jb...->abcd...", weights, weights, field, field)

    def b(self, x: Tensor | tuple[int, ...]) -> Tensor:
        """b^a(x) = v_i [L_i]^a, (n, m, m, *spatial); x as for `h`."""
        x = self._points(x)
        if self.layer is None:
            zero = self._h.new_zeros(self.ndim, self.components, self.components)
            return self._spread(zero if self._b is None else self._b, 3, x)
        return torch.einsum("icd,ia...->acd...", self.v, vector_fields(self.layer.generators, x))

    def _points(self, x: Tensor | tuple[int, ...]) -> Tensor:
        like = self._h if self.layer is None else self.layer.weight
        if not isinstance(x, Tensor):
            return coordinates(extents("x", x, self.ndim), like)
        check_float("x", x, (self.ndim + 1,), "(n, *spatial)")
        return x

    def _spread(self, t: Tensor, least: int, x: Tensor) -> Tensor:
        spatial = tuple(x.shape[1:])
        if t.dim() == least:
            return t.reshape(*t.shape, *[1] * len(spatial)).expand(*t.shape, *spatial)
        if tuple(t.shape[least:]) != spatial:
            raise ValueError(f"phi: expected the spatial shape {tuple(t.shape[least:])} of h and b, got {spatial}")
        return t

    # ---- the density ---------------------------------------------------------------------------------------------

    def forward(self, phi: Tensor, dphi: Tensor, x: Tensor) -> Tensor:
        """The density (N, *spatial) of phi (N, m, *spatial) and its derivatives dphi (N, m, n, *spatial)."""
        self.check(phi)
        if self.layer is not None:
            # |W0 phi + W_i [L_i]^a d_a phi + c|^2 without the m x m matrices of every point.
            moved = torch.einsum("ia...,Nca...->Nic...", vector_fields(self.layer.generators, x).to(dphi), dphi)
            weights = self._weights().to(phi.dtype)
            y = torch.einsum("oc,Nc...->No...", weights[0], phi) + torch.einsum("ioc,Nic...->No...", weights[1:], moved)
            return _square(y if self.layer.bias is None else y + _column(self.layer.bias, y))
        m2, h = self._m2.to(phi.dtype), self._h.to(phi.dtype)
        value = _real_sum(phi.conj(), torch.einsum("cd,Nd...->Nc...", m2, phi))
        at = "..." if h.dim() > 4 else ""
        value = value + torch.einsum(f"abcd{at},Nca...,Ndb...->N...", h, dphi.conj(), dphi).real
        if self._b is not None:
            b = self._b.to(phi.dtype)
            at = "..." if b.dim() > 3 else ""
            value = value + 2 * torch.einsum(f"acd{at},Nc...,Nda...->N...", b, phi.conj(), dphi).real
        return value

    def density(self, phi: Tensor, form: str = "corrected") -> Tensor:
        """L[phi], (N, *spatial), with this Lagrangian's own derivatives of phi.

        form (all but 'corrected' for a Lagrangian from a layer alone; a bias adds 2 c^T Q + |c|^2 to each):
            'corrected': Phi^T m2 Phi + d_a Phi^T h^ab d_b Phi + 2 Phi^T v_i L_i Phi, from m2, h^ab and b^a.
            'printed': eq. (19) as printed, with [L_i]^a d_a (Phi^T v_i Phi) = Phi^T (v_i + v_i^T) L_i Phi in the place
                of the last term. It differs by Phi^T (v_i - v_i^T) L_i Phi unless every v_i is symmetric.
            'direct': |Q[Phi]|^2, by the fused layer.
        """
        self.check(phi)
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "corrected": self._corrected,
            "printed": lambda f: self._corrected(f) - self.correction(f),
            "direct": lambda f: _square(self.output(f)),
        }
        choice("form", form, forms)
        return forms[form](phi)

    def _corrected(self, phi: Tensor) -> Tensor:
        x = coordinates(tuple(phi.shape[2:]), phi)
        dphi = gradient(phi, self.accuracy, self.padding_mode)
        m2, h, b = (t.to(phi.dtype) for t in (self.m2, self.h(x), self.b(x)))
        value = _real_sum(phi.conj(), torch.einsum("cd,Nd...->Nc...", m2, phi))
        value = value + torch.einsum("abcd...,Nca...,Ndb...->N...", h, dphi.conj(), dphi).real
        value = value + 2 * torch.einsum("acd...,Nc...,Nda...->N...", b, phi.conj(), dphi).real
        bias = None if self.layer is None else self.layer.bias
        if bias is not None:  # |Q0 + c|^2 = |Q0|^2 + 2 c^T (Q0 + c) - |c|^2
            value = value + 2 * (_column(bias, phi) * self.output(phi)).real.sum(1) - bias.square().sum()
        return value

    def correction(self, phi: Tensor) -> Tensor:
        """Phi^T (v_i - v_i^T) L_i Phi, (N, *spatial): what eq. (19) as printed lacks."""
        return self._with_matrices(phi, self.v - self.v.transpose(1, 2))

    def total_derivative(self, phi: Tensor) -> Tensor:
        """L_i (Phi^T v_i Phi), (N, *spatial): the last term of eq. (19), differenced as it stands.

        Its sum over the grid is `boundary_term` - sum_x q_i div v_i, q_i = Phi^T v_i Phi: zero for translations on
        periodic axes.
        """
        moved = self._generators()(self._products(phi))  # (N, n_L, n_L, *spatial): L_i of every product
        return torch.diagonal(moved, dim1=1, dim2=2).sum(-1)

    def boundary_term(self, phi: Tensor) -> Tensor:
        """What the total derivative integrates to beside -sum_x q_i div v_i, (N,): for affine generators.

        sum_x L_i q_i = sum_x q_i (L_i^T 1), and L_i^T 1 = d_a^T v_i^a is -div v_i but within the reach of d_a of the
        boundary (and of the seam of a periodic axis across which v_i jumps): this is the sum over those points.
        """
        generators = self._generators()
        if not isinstance(generators, AffineGenerators):
            raise TypeError(f"generators: expected AffineGenerators, got {type(generators).__name__}")
        products = self._products(phi)
        spatial = tuple(phi.shape[2:])
        weight = generators.transpose()(products.new_ones(1, 1, *spatial))[0, :, 0]  # L_i^T 1
        traces = torch.einsum("iaa->i", generators.matrix) / coordinate_scale(generators, spatial)
        return (products * (weight + traces.reshape(-1, *[1] * len(spatial)))).flatten(1).sum(1)

    def _products(self, phi: Tensor) -> Tensor:
        """q_i = Re Phi^T v_i Phi, (N, n_L, *spatial)."""
        self.check(phi)
        return torch.einsum("Nc...,icd,Nd...->Ni...", phi.conj(), self.v.to(phi.dtype), phi).real.contiguous()

    def _with_matrices(self, phi: Tensor, matrices: Tensor) -> Tensor:
        """Re Phi^T M_i L_i Phi."""
        self.check(phi)
        moved = by_parts(self._generators(), phi)
        return torch.einsum("Nc...,icd,Nid...->N...", phi.conj(), matrices.to(phi.dtype), moved).real

    def _generators(self) -> nn.Module:
        if self.layer is None:
            raise ValueError("generators: only a Lagrangian made from a layer has them")
        return self.layer.generators

    def output(self, phi: Tensor) -> Tensor:
        """Q[phi] with the bias, by the fused layer; a complex phi by its two parts."""
        if self.layer is None:
            raise ValueError("output: only a Lagrangian made from a layer has a Q")
        if not phi.is_complex():
            return self.layer(phi)
        imaginary = self.layer(phi.imag)
        if self.layer.bias is not None:
            imaginary = imaginary - _column(self.layer.bias, imaginary)
        return torch.complex(self.layer(phi.real), imaginary)

    def check(self, phi: Tensor) -> None:
        check_field("phi", phi)
        if phi.dim() != self.ndim + 2 or phi.shape[1] != self.components:
            raise ValueError(
                f"phi: expected (N, {self.components}, *spatial) with {self.ndim} spatial axes, got {tuple(phi.shape)}"
            )
        own = self._h if self.layer is None else self.layer.weight
        if phi.device != own.device:
            raise TypeError(f"phi: expected device {own.device} as the Lagrangian's numbers, got {phi.device}")

    def extra_repr(self) -> str:
        return f"components={self.components}, ndim={self.ndim}, scheme={Scheme(self.accuracy, self.padding_mode)}"


def _square(y: Tensor) -> Tensor:
    return y.abs().square().sum(1) if y.is_complex() else y.square().sum(1)


def _real_sum(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).real.sum(1)


def _column(bias: Tensor, like: Tensor) -> Tensor:
    return bias.reshape(-1, *[1] * (like.dim() - 2)).to(like.dtype)
