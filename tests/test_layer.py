"""The layer against eq. (17) with dense matrices in float64: values and gradients, for every kind of problem."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MODES, TOLERANCE, Problem, dense_layer, other_problems, problems, relative_rms

import lconv_fast as lc

EVERY = [*problems(), *other_problems()]
PLANE = [p for p in EVERY if p.ndim == 2 or p.mode == "none"]


def layer_and_truth(problem, dtype, stride, groups, memory_format="contiguous", transposed=False):
    numbers = problem.numbers()
    if dtype in (torch.float16, torch.bfloat16):
        numbers = problem.numbers(torch.float32)  # as under autocast: generators keep float32
    elif dtype == torch.float32:
        numbers = problem.numbers(torch.float32)
    generators = problem.make(numbers, learnable=True)
    matrices = problem.dense(numbers)
    if transposed:
        generators, matrices = generators.transpose(), matrices.transpose(1, 2)
    f = torch.randn(2, 4 * groups, *problem.grid, dtype=torch.float64).to(dtype)
    weight = torch.randn(problem.count + 1, 3 * groups, 4, dtype=torch.float64).to(dtype)
    bias = torch.randn(3 * groups, dtype=torch.float64).to(dtype)
    if memory_format == "channels_last":
        f = f.movedim(1, -1).contiguous().movedim(-1, 1)
    f, weight, bias = (t.requires_grad_() for t in (f, weight, bias))
    y = problem.layer(f, weight, generators, bias, stride, groups)
    truth_inputs = [t.detach().double().requires_grad_() for t in (f, weight, bias)]
    truth = dense_layer(truth_inputs[0], truth_inputs[1], matrices, truth_inputs[2], stride, groups)
    return y, (f, weight, bias), truth, truth_inputs, generators


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("transposed", [False, True], ids=["L", "L^T"])
@pytest.mark.parametrize("problem", EVERY, ids=str)
def test_agrees_with_dense(problem, transposed, memory_format):
    for stride, groups in ((1, 1), (2, 2)):
        y, inputs, truth, truth_inputs, _ = layer_and_truth(
            problem, torch.float64, stride, groups, memory_format, transposed
        )
        assert relative_rms(y, truth) < 1e-13
        g = torch.randn_like(truth)
        for ours, theirs in zip(
            torch.autograd.grad(y, inputs, g), torch.autograd.grad(truth, truth_inputs, g), strict=True
        ):
            assert relative_rms(ours, theirs) < 1e-13


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("problem", PLANE, ids=str)
def test_dtypes(problem, dtype):
    # Half types: a result is rounded once, 2^-11 or 2^-8 relative at most, whatever the sum was.
    y, inputs, truth, truth_inputs, _ = layer_and_truth(problem, dtype, 1, 1, "channels_last")
    assert y.dtype == dtype and relative_rms(y, truth) < TOLERANCE[dtype]
    g = torch.randn_like(truth).to(dtype)
    ours = torch.autograd.grad(y, inputs, g)
    theirs = torch.autograd.grad(truth, truth_inputs, g.double())
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and relative_rms(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("problem", EVERY, ids=str)
def test_generator_gradient(problem):
    """Numbers against differences of the dense layer, exact since it is at most quadratic in them."""
    numbers = problem.numbers()
    generators = problem.make(numbers, learnable=True)
    f = torch.randn(2, 3, *problem.grid, dtype=torch.float64)
    weight = torch.randn(problem.count + 1, 2, 3, dtype=torch.float64)
    g = torch.randn(2, 2, *problem.grid, dtype=torch.float64)
    y = problem.layer(f, weight, generators)
    ours = torch.autograd.grad(y, list(generators.parameters()), g)
    for k, (gradient, number) in enumerate(zip(ours, numbers, strict=True)):
        direction = torch.randn_like(number)
        ends = [problem.dense((*numbers[:k], number + s * direction, *numbers[k + 1 :])) for s in (1, -1)]
        moved = dense_layer(f, weight, ends[0], None, 1, 1) - dense_layer(f, weight, ends[1], None, 1, 1)
        expected = (moved * g).sum() / 2
        scale = gradient.norm() * direction.norm() + (g * y).abs().sum()
        assert abs((gradient * direction).sum() - expected) < 1e-13 * scale


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_drawn_shapes(data):
    """Odd sizes, more channels than a block, sizes of one, strides and offsets of the views."""
    ndim = data.draw(st.integers(1, 3))
    grid = tuple(data.draw(st.sampled_from([1, 2, 3, 7, 16, 33] if ndim < 3 else [1, 2, 5, 7])) for _ in range(ndim))
    mode = data.draw(st.sampled_from(MODES[:3]))
    channels, outs = data.draw(st.sampled_from([1, 2, 17, 64, 100])), data.draw(st.sampled_from([1, 3, 33, 50]))
    count = data.draw(st.sampled_from([1, 2, 5]))
    field = torch.randn(count, ndim, *grid, dtype=torch.float64)
    generators = lc.FieldGenerators(field, padding_mode=mode, accuracy=data.draw(st.sampled_from([2, 4])))
    weight = torch.randn(count + 1, outs, channels, dtype=torch.float64)
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "sliced", "expanded", "flipped axes"]))
    f = torch.randn(2, channels, *grid, dtype=torch.float64)
    if layout == "channels_last":
        f = f.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "sliced":
        f = torch.randn(3, channels + 2, *[n * 2 + 1 for n in grid], dtype=torch.float64)[
            (slice(1, None), slice(1, -1), *[slice(1, None, 2)] * ndim)
        ]
    elif layout == "expanded":
        f = f[:, :, :1].expand_as(f)
    elif layout == "flipped axes":
        f = torch.randn(*reversed(f.shape), dtype=torch.float64).permute(*reversed(range(ndim + 2)))
    stride = data.draw(st.sampled_from([1, 2, 3]))
    truth = dense_layer(f, weight, generators.to_dense(grid), None, stride, 1)
    f.requires_grad_()
    y = lc.functional.lconv(f, weight, generators, stride=stride)
    assert relative_rms(y, truth) < 1e-13
    cotangent = torch.randn(*reversed(y.shape), dtype=torch.float64).permute(*reversed(range(y.dim())))
    (gradient,) = torch.autograd.grad(y, f, cotangent)
    (expected,) = torch.autograd.grad(dense_layer(f, weight, generators.to_dense(grid), None, stride, 1), f, cotangent)
    assert relative_rms(gradient, expected) < 1e-13


def test_memory_format_is_kept():
    layer = lc.LConv2d(8, 16)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 6, 7).to(memory_format=memory_format)
        assert layer(x).is_contiguous(memory_format=memory_format)
    x = torch.randn(2, 8, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    assert lc.LConv3d(8, 8, "se")(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_nan_goes_where_it_reaches_and_nowhere_else():
    generators = lc.StencilGenerators(torch.ones(1, 4), [[0, 1], [0, -1], [1, 0], [-1, 0]])
    for channels in (3, 40):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, channels, 9, 150).to(memory_format=memory_format)
            x[1, 2, 4, 100] = float("nan")
            y = lc.functional.lconv(x, torch.randn(2, 5, channels), generators)
            expected = torch.zeros(2, 9, 150, dtype=torch.bool)
            for dy, dx in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
                expected[1, 4 + dy, 100 + dx] = True
            assert torch.equal(y.isnan(), expected[:, None].expand_as(y))


def test_empty_batch():
    layer = lc.LConv2d(3, 4, learnable=True)
    x = torch.randn(0, 3, 5, 6, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 4, 5, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.count_nonzero() == 0 for p in layer.parameters())


@pytest.mark.parametrize("mode", MODES[:3])
def test_size_one_axis_gives_what_the_boundary_says(mode):
    layer = lc.LConv2d(2, 2, "translation", padding_mode=mode, bias=False)
    x = torch.randn(1, 2, 1, 8)
    row = lc.LConv1d(2, 2, "translation", padding_mode=mode, bias=False)
    with torch.no_grad():
        row.weight.copy_(layer.weight[[0, 2]])  # across the single row, every boundary gives a zero difference
    assert torch.allclose(layer(x)[:, :, 0], row(x[:, :, 0]), atol=1e-6)


def test_bit_identical_for_any_number_of_threads():
    layer = lc.LConv2d(24, 40, learnable=True, padding_mode="circular")
    x = torch.randn(3, 24, 65, 70, requires_grad=True)

    def results():
        y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    threads = torch.get_num_threads()
    try:
        reference = results()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(results(), reference, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_saved_beyond_the_inputs():
    layer = lc.LConv2d(8, 8, learnable=True)
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    extra = [t for t in saved if t.untyped_storage().data_ptr() not in known]
    # The affine numbers [matrix | shift], 6 * 2 * 3 floats, are put together for the kernel.
    assert sum(t.numel() for t in extra) <= 36


def test_problem_list_is_complete():
    made = {type(p.make(p.numbers())) for p in EVERY}
    assert made == {getattr(lc, name) for name in dir(lc) if name.endswith("Generators") and name != "Generators"}
    assert Problem("affine", 2, "reflect", 8).dense(Problem("affine", 2, "reflect", 8).numbers()).abs().sum() > 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_last_results_can_be_changed_in_place(ndim):
    """As nn.ReLU(inplace=True) after the layer does: the result is no view; gradients are the activation's."""
    layer = (lc.LConv2d if ndim == 2 else lc.LConv3d)(3, 4)
    x = torch.randn(2, 3, *(5, 6, 4)[:ndim])
    x = x.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d).requires_grad_()
    y = layer(x)
    assert not y._is_view() and y.stride(1) == 1
    (found,) = torch.autograd.grad(torch.relu_(layer(x)).sum(), x)
    (expected,) = torch.autograd.grad(torch.relu(layer(x)).sum(), x)
    assert torch.equal(found, expected)
