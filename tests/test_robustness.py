"""Fresh memory, missing builds, threads and forked workers."""

import os
import resource
import subprocess
import sys
import threading

import pytest
import torch
from problems import TOLERANCE, Problem, relative_rms, results
from test_tracing import operator_calls

import lconv_fast as lc
from lconv_fast import _C
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["affine", "field", "stencil", "constant"])
def test_every_element_of_a_result_is_written(kind, dtype):
    """PyTorch fills fresh memory with NaN here: one that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        for op, arguments in operator_calls(Problem(kind, 2, "circular"), dtype):
            assert not any(result.isnan().any() for result in results(op(*arguments)))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("capability", _C.kernels())
def test_each_instruction_set(capability):
    """Every kernel set that this processor runs agrees with the reference; each in a process of its own."""
    code = """
import sys; sys.path.insert(0, "tests")
import torch
from problems import Problem, relative_rms, results, TOLERANCE
from test_tracing import operator_calls
from lconv_fast import _C, form
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry
assert _C.cpu_capability() == sys.argv[1]
torch.manual_seed(0)
for dtype, tolerance in TOLERANCE.items():
    for kind in ("affine", "field", "stencil", "constant"):
        for channels_last in (False, True):
            for op, arguments in operator_calls(Problem(kind, 2, "circular"), dtype, channels_last):
                wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
                expected = getattr(reference, op._schema.name.split("::")[1])(*wide)
                for ours, theirs in zip(results(op(*arguments)), results(expected), strict=True):
                    # 1.2: a handful of numbers, whose rounding does not average out
                    assert relative_rms(ours, theirs) < 1.2 * tolerance, (dtype, kind, str(op))
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, capability],
        env={**os.environ, "LCONV_FAST_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_unknown_instruction_set():
    code = "import lconv_fast as lc, torch; lc.LConv2d(1, 1)(torch.ones(1, 1, 3, 3))"
    environment = {**os.environ, "LCONV_FAST_CPU_CAPABILITY": "mmx"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "LCONV_FAST_CPU_CAPABILITY is 'mmx', expected one of: baseline" in done.stderr


def test_missing_module_says_how_to_build_it():
    code = "import sys; sys.modules['lconv_fast._C'] = None; import lconv_fast"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: lconv_fast has no compiled module: build it with `pip install")


def test_python_threads_at_once():
    layer = lc.LConv2d(6, 7, learnable=True)
    inputs = [torch.randn(2, 6, 20, 21) for _ in range(8)]
    expected = [torch.autograd.grad(layer(x).pow(2).sum(), list(layer.parameters())) for x in inputs]
    results: list = [None] * 8

    def work(k):
        for _ in range(5):
            results[k] = torch.autograd.grad(layer(inputs[k]).pow(2).sum(), list(layer.parameters()))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(results, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class _Layered(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        torch.manual_seed(k)
        x = torch.randn(2, 3, 33, 34)
        return lc.functional.lconv(x, torch.ones(4, 2, 3), lc.AffineGenerators.named("se"))


def test_forked_workers():
    lc.LConv2d(3, 3)(torch.randn(1, 3, 64, 64))  # the parent has started its threads
    loader = torch.utils.data.DataLoader(_Layered(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for k, y in enumerate(loader):
        assert torch.equal(y, _Layered()[k])


def test_memory_does_not_grow():
    layer = lc.LConv2d(8, 8, learnable=True)
    x = torch.randn(2, 8, 32, 32)

    def steps(count):
        for _ in range(count):
            layer(x).pow(2).mean().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = steps(100)
    assert steps(1000) - before <= 1024  # KiB


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("shape", [(37, 131), (3, 2, 200), (1000,)], ids=str)
def test_long_rows_agree_with_the_reference(shape, mode, channels_last):
    """More than one tile a row, and more than one block of channels."""
    generators = lc.AffineGenerators.named("affine", len(shape), padding_mode=mode)
    count, ops = generators.num_generators, torch.ops.lconv_fast
    geometry = Geometry.of(generators.stencil(), shape, [1] * len(shape), 1)
    x, g = torch.randn(2, 70, *shape), torch.randn(2, 40, *shape)
    if channels_last:
        x, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, g))
    weight, v = torch.randn(count + 1, 40, 70), generators.coefficients()
    calls = [("apply", (x, weight, v, None, *geometry, True, False)), ("gram", (x, g, v, *geometry, True))]
    calls += [("correlate", (x, weight, g, *geometry))]
    if mode != "reflect":
        calls.append(("apply", (g, weight, v, None, *geometry, True, True)))
    for name, arguments in calls:
        wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
        assert relative_rms(getattr(ops, name)(*arguments), getattr(reference, name)(*wide)) < 1e-6
