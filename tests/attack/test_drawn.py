"""Drawn problems against the dense matrices in float64: kinds x sizes x boundaries x accuracies x strides x groups x
dtypes x memory layouts, with all gradients, and in float64 those of the gradients."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import GRIDS, MODES, TOLERANCE, Problem, dense_layer

import lconv_fast as lc

KINDS = ("affine", "field", "stencil", "constant", "differential", "differential sampled", "product", "dense",
         "low_rank", "graph", "incidence")  # fmt: skip
SPECTRAL = ("affine", "field", "differential", "differential sampled", "product")
MATRICES = ("dense", "low_rank", "graph", "incidence")
LAYOUTS = ("contiguous", "channels last", "sliced", "offset", "turned", "expanded", "overlapping", "every other")


@dataclasses.dataclass(frozen=True)
class Drawn(Problem):
    sizes: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        return self.sizes


@st.composite
def drawn_problems(draw) -> Drawn:
    kind = draw(st.sampled_from(KINDS))
    ndim = 1 if kind in ("graph", "incidence") else draw(st.sampled_from(list(GRIDS)))
    mode = "none" if kind in MATRICES else draw(st.sampled_from(MODES))
    accuracies = [2, 4, 6, 8] + (["spectral"] if mode == "circular" and kind in SPECTRAL else [])
    accuracy = draw(st.sampled_from(accuracies))
    most, least = {1: 9, 2: 6, 3: 5}[ndim], 1
    if mode == "reflect":  # more points than the widest tap reaches
        least = 3 if kind in ("stencil", "constant") else accuracy // 2 + 1
    sizes = draw(st.lists(st.integers(least, max(least, most)), min_size=ndim, max_size=ndim))
    if max(sizes) < 2:
        sizes[0] = 2
    return Drawn(kind, ndim, mode, accuracy, draw(st.integers(2, 3)), tuple(sizes))


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    """`t`, or as much of its values as such a layout can hold, as a leaf."""
    if layout == "channels last" and t.dim() > 2:
        t = t.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "sliced":
        wide = torch.full([size + 2 for size in t.shape], math.nan, dtype=t.dtype)
        t = wide[tuple(slice(1, size + 1) for size in t.shape)].copy_(t)
    elif layout == "every other":
        wide = torch.full([2 * size for size in t.shape], math.nan, dtype=t.dtype)
        t = wide[(slice(None, None, 2),) * t.dim()].copy_(t)
    elif layout == "offset":
        t = torch.cat([t.new_full((3,), math.nan), t.flatten()])[3:].reshape(t.shape)
    elif layout == "turned":
        order = list(range(t.dim()))[::-1]
        t = t.permute(order).contiguous().permute(order)
    elif layout == "expanded":
        t = t[..., :1].expand(t.shape)
    elif layout == "overlapping":
        t = t.flatten().as_strided(t.shape, [1] * t.dim()) if t.numel() > sum(t.shape) else t
    return t.detach().requires_grad_()


def inner(gradients, directions):
    return sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))


def attack(data) -> None:
    problem = data.draw(drawn_problems())
    dtype = data.draw(st.sampled_from([*TOLERANCE, torch.float64]))
    groups, ins, outs = (data.draw(st.integers(1, 3)) for _ in range(3))
    batch, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(4)]
    transposed, with_bias = data.draw(st.booleans()), data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 2**31)))

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    numbers_type = dtype if dtype.itemsize > 2 else torch.float32
    numbers = problem.numbers(numbers_type, seed=int(torch.randint(10**6, ())))
    generators = problem.make(numbers, learnable=True)
    own = list(generators.parameters())
    if transposed:
        generators = generators.transpose()
    x = laid_out(random(batch, groups * ins, *problem.grid), layouts[0])
    w = laid_out(random(problem.count + 1, groups * outs, ins), layouts[1])
    b = laid_out(random(groups * outs), layouts[2]) if with_bias else None
    y = problem.layer(x, w, generators, b, stride, groups)
    u = laid_out(random(*y.shape), layouts[3]).detach()
    inputs = [x, w, *([b] if with_bias else []), *own]
    gradients = torch.autograd.grad(y, inputs, u, create_graph=dtype == torch.float64)

    true = [t.detach().double().requires_grad_() for t in inputs]
    true_numbers = tuple(true[len(inputs) - len(own) :])
    matrices = problem.dense(true_numbers)
    matrices = matrices.transpose(1, 2) if transposed else matrices
    true_y = dense_layer(true[0], true[1], matrices, true[2] if with_bias else None, stride, groups)
    truth = torch.autograd.grad(true_y, true, u.double(), create_graph=dtype == torch.float64)

    # The size of the sums' terms, without their signs: what rounding is relative to.
    size = [t.detach().abs().requires_grad_() for t in true[: 2 + with_bias]]
    size_y = dense_layer(size[0], size[1], matrices.detach().abs(), size[2] if with_bias else None, stride, groups)
    sizes = list(torch.autograd.grad(size_y, size, u.double().abs()))
    bound = (10 * u.double().norm() * true[0].norm() * true[1].norm()).detach()
    sizes += [bound.expand(()) for _ in own]

    tolerance = 4 * TOLERANCE[dtype] if dtype != torch.float64 else 1e-13
    for name, one, other, scale in zip(
        ["y", "x", "w", *["b"] * with_bias, *["numbers"] * len(own)],
        [y, *gradients], [true_y, *truth], [size_y, *sizes], strict=True,
    ):  # fmt: skip
        assert one.shape == other.shape
        error = (one.double() - other).norm()
        assert error <= tolerance * scale.detach().norm() + 1e-300, (name, problem, float(error))

    if dtype == torch.float64:
        directions = [torch.randn_like(g, memory_format=torch.contiguous_format) for g in gradients]
        found = torch.autograd.grad(inner(gradients, directions), inputs, allow_unused=True, materialize_grads=True)
        expected = torch.autograd.grad(inner(truth, directions), true, allow_unused=True, materialize_grads=True)
        scale = max(float(t.detach().norm()) for t in expected) + float(bound)
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).detach().norm()) <= 1e-12 * scale, problem


SETTINGS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=70, derandomize=True, **SETTINGS)
@given(st.data())
def test_drawn_problems(data):
    attack(data)


@pytest.mark.full
@settings(max_examples=3000, print_blob=True, **SETTINGS)
@given(st.data())
def test_thousands_of_drawn_problems(data):
    attack(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e-310, 1e300])
def test_odd_values_reach_only_their_neighbours(value):
    """As in a sum with those terms: what a point does not see cannot change it, and what it sees does not vanish."""
    generators = lc.AffineGenerators.named("se").double()
    x, w = torch.randn(1, 2, 9, 8, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    before = lc.functional.lconv(x, w, generators)
    x[0, 1, 4, 3] = value
    after = lc.functional.lconv(x, w, generators)
    seen = torch.zeros(9, 8, dtype=torch.bool)
    seen[3:6, 3] = seen[4, 2:5] = True
    assert torch.equal(after[..., ~seen], before[..., ~seen])
    assert after[..., 4, 3].isfinite().all() == math.isfinite(value)
