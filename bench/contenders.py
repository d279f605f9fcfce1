"""Who is measured. Each contender is a function of (x, weight, numbers of the generators) for one case.

`same` says whether it computes the layer: those that do not are limits and yardsticks, shown and never counted as
opponents. Each is written as its best user would write it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lconv_fast as lc
from lconv_fast import composed as plain
from lconv_fast.composed import vector_field

from .cases import Case

# Bytes that the dense matrices of a case may take.
DENSE_LIMIT = 2**30

Numbers = tuple[Tensor, ...]  # the generators' parameters
Run = Callable[[Tensor, Tensor, Numbers], Tensor]


@dataclass
class Contender:
    name: str
    run: Run
    same: bool = True
    learns: bool = True  # whether gradients reach the generators' numbers
    weight: Tensor | None = None  # of its own, in the place of the layer's
    channels_last: bool | None = None  # the layout of its input and output, where not the case's


def in_layout(t: Tensor, channels_last: bool | None) -> Tensor:
    if channels_last is None:
        return t
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def numbers_of(case: Case, generators: lc.Generators) -> Numbers:
    names = {"affine": ("matrix", "shift"), "field": ("field",), "stencil": ("weights",)}[case.kind]
    return tuple(getattr(generators, name) for name in names)


def with_numbers(case: Case, generators: lc.Generators) -> Run:
    """The public function, with the numbers in the generators' own parameters."""
    return lambda x, weight, numbers: lc.functional.lconv(x, weight, generators)


def weights_at_taps(case: Case, numbers: Numbers) -> tuple[list[tuple[int, ...]], Tensor]:
    """Taps, and (n_L, K, *size): the generators written out as stencils."""
    ndim = case.ndim
    taps = [tuple(sign * (a == b) for b in range(ndim)) for a in range(ndim) for sign in (-1, 1)]
    if case.kind == "stencil":
        return taps, numbers[0]
    v = velocity(case, numbers)
    return taps, torch.stack([v[:, k // 2] * (0.5 if k % 2 else -0.5) for k in range(2 * ndim)], 1)


def velocity(case: Case, numbers: Numbers) -> Tensor:
    """The field v (n_L, n, *size)."""
    if case.kind == "field":
        return numbers[0]
    return vector_field(*numbers, case.size)


def composed(case: Case) -> Run:
    """Slices, products and one einsum; in float64, the reference."""
    ndim = case.ndim
    taps = [tuple(sign * (a == b) for b in range(ndim)) for a in range(ndim) for sign in (-1, 1)]

    def run(x: Tensor, weight: Tensor, numbers: Numbers) -> Tensor:
        if case.kind == "stencil":
            return plain.composed(x, weight, numbers[0], taps)
        return plain.composed(x, weight, velocity(case, numbers))

    return run


def sparse(case: Case, numbers: Numbers) -> Run:
    """All L_i stacked as one CSR matrix, made ready beforehand, times (points, N C); then one product with W."""
    with torch.no_grad():
        taps, v = weights_at_taps(case, numbers)
    grids = torch.meshgrid(*[torch.arange(n) for n in case.size], indexing="ij")
    rows, columns, values = [], [], []
    points = case.points // case.batch
    for i in range(case.count):
        for k, tap in enumerate(taps):
            at = [grid + offset for grid, offset in zip(grids, tap, strict=True)]
            inside = torch.stack([(a >= 0) & (a < n) for a, n in zip(at, case.size, strict=True)]).all(0)
            flat = torch.zeros_like(grids[0])
            for a, n in zip(at, case.size, strict=True):
                flat = flat * n + a
            rows.append(i * points + torch.arange(points).reshape(case.size)[inside])
            columns.append(flat[inside])
            values.append(v[i, k][inside])
    shape = (case.count * points, points)
    places = torch.stack([torch.cat(rows), torch.cat(columns)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # that CSR is in beta, and that indices are taken on trust
        coo = torch.sparse_coo_tensor(places, torch.cat(values), shape)
        matrix = coo.coalesce().to_sparse_csr()
        transposed = coo.t().coalesce().to_sparse_csr()

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, f: Tensor) -> Tensor:
            return matrix @ f

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            return transposed @ g

    def run(x: Tensor, weight: Tensor, numbers: Numbers) -> Tensor:
        f = x.flatten(2).permute(2, 0, 1).reshape(points, -1)
        moved = torch.cat([f, Product.apply(f)]).reshape(case.count + 1, points, case.batch, case.channels)
        return torch.einsum("ipnc,ioc->nop", moved, weight).reshape(case.batch, -1, *case.size)

    return run


def dense(case: Case, numbers: Numbers) -> Run:
    """The paper's einsum with dense L_i, made ready beforehand."""
    taps, v = weights_at_taps(case, numbers)
    generators = lc.StencilGenerators(v.detach(), [list(tap) for tap in taps])
    matrices = generators.to_dense(case.size)

    def run(x: Tensor, weight: Tensor, numbers: Numbers) -> Tensor:
        moved = torch.einsum("ixy,ncy->nicx", matrices, x.flatten(2))
        both = torch.cat([x.flatten(2).unsqueeze(1), moved], 1)
        return torch.einsum("nicx,ioc->nox", both, weight).reshape(case.batch, -1, *case.size)

    return run


def contenders(case: Case, numbers: Numbers, generators: lc.Generators, compiled: bool) -> list[Contender]:
    result = [Contender("lconv_fast", with_numbers(case, generators)), Contender("composed", composed(case))]
    if compiled:
        result.append(Contender("composed, torch.compile", torch.compile(composed(case), dynamic=False)))
    points = case.points // case.batch
    if case.dtype == torch.float32:
        result.append(Contender("torch.sparse", sparse(case, numbers), learns=False))
        if case.count * points**2 * 4 <= DENSE_LIMIT:
            result.append(Contender("dense", dense(case, numbers), learns=False))
    depth = (case.count + 1) * case.channels
    ready = torch.randn(case.points, depth, dtype=case.dtype)  # what mm would have to be given
    ready_too = ready.clone()  # and the other operand of the same depth, for the gradient of the input

    class Products(torch.autograd.Function):
        """The three products of the layer and its gradients, each with its deep operand ready-made."""

        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(weight)
            return ready @ weight.reshape(-1, case.channels)

        @staticmethod
        def backward(ctx, g: Tensor):
            (weight,) = ctx.saved_tensors
            x_gradient = None
            if ctx.needs_input_grad[0]:
                x_gradient = ready_too @ weight.reshape(-1, case.channels)
                x_gradient = x_gradient.reshape(case.batch, *case.size, case.channels).movedim(-1, 1)
            w_gradient = (ready.t() @ g).reshape(weight.shape) if ctx.needs_input_grad[1] else None
            return x_gradient, w_gradient

    result.append(Contender("torch.mm, operand ready", lambda x, w, n: Products.apply(x, w), same=False, learns=False))
    if case.ndim > 1:
        convolve = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[case.ndim]
        kernel = torch.randn(case.channels, case.channels, *[3] * case.ndim, dtype=case.dtype)
        for last in (True, False):
            result.append(
                Contender(
                    f"conv {'x'.join('3' * case.ndim)} {'channels-last' if last else 'contiguous'}",
                    lambda x, w, n: convolve(x, w, padding=1),
                    same=False,
                    learns=False,
                    weight=in_layout(kernel, last),
                    channels_last=last,
                )
            )
    return result
