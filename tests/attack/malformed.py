"""Drawn calls of the operators with arguments that do not fit, and the process that each of them runs in."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from problems import Problem, relative_rms, results
from test_tracing import operator_calls

from lconv_fast import _C
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry
from lconv_fast.ops.graph import Graph

PROBLEMS = [Problem(kind, n, mode) for kind in ("affine", "field", "constant", "stencil") for n in (1, 2, 3)
            for mode in ("zeros", "circular", "replicate", "reflect")]  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (-(2**63), -(2**62), -(2**48), -(2**31), -3, -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**47, 2**48, 2**62,
            2**63 - 1, 2**63, True, 1.5, None, "1")  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-320, 1e308, 1.0, None, "1")

Call = tuple[Callable[..., object], list]


def fitting_calls(draw: random.Random) -> list[Call]:
    """Calls of every operator that are right, on a grid and on a graph."""
    dtype = draw.choice(DTYPES)
    problem = draw.choice(PROBLEMS)
    grid = [(op, list(arguments)) for op, arguments in operator_calls(problem, dtype, draw.random() < 0.5)]
    grid.append((torch.ops.lconv_fast.sum_points.default, [torch.randn(2, 3, *problem.grid).to(dtype)]))
    geometry = Geometry.of(problem.make(problem.numbers()).stencil(), problem.grid, [1] * problem.ndim, 1)
    grid.append((_C.plan, [problem.count, 2, *geometry]))
    ops, nodes, edges, count = torch.ops.lconv_fast, draw.choice((1, 5, 40, 700)), draw.choice((0, 3, 60, 900)), 2
    graph = Graph.of(torch.randint(nodes, (2, edges)), nodes, draw.random() < 0.5)._replace(groups=2)
    f, g = (torch.randn(2, nodes, c).to(dtype).transpose(1, 2) for c in (6, 4))
    w = torch.randn(count + 1, 4, 3).to(dtype)
    s = torch.randn(count, edges, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return [
        *grid,
        (ops.graph_apply.default, [f, w, s, torch.randn(4).to(dtype), *graph, True, False]),
        (ops.graph_apply.default, [g, w, s, None, *graph, True, True]),
        (ops.graph_gram.default, [f, g, s, *graph, True]),
        (ops.graph_correlate.default, [f, w, g, *graph]),
        (ops.graph_backward.default, [g, f, w, s, *graph, True]),
    ]


def other_tensor(t: torch.Tensor, others: list, draw: random.Random) -> object:
    """Of another shape, type, device or layout, or another argument's own memory."""

    def with_integer() -> torch.Tensor:
        if t.is_floating_point() or not t.numel():
            return t.to(torch.int32)
        values = t.clone()
        values[draw.randrange(t.numel())] = draw.choice([v for v in INTEGERS[:16]])
        return values

    axis = draw.randrange(max(t.dim(), 1))
    ways: list[Callable[[], object]] = [
        lambda: t.unsqueeze(0),
        lambda: t[0],
        lambda: t.new_zeros(()),
        lambda: t.new_zeros(0),
        lambda: t.new_zeros([1] * 9),
        lambda: t.to(draw.choice([*DTYPES, torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])),
        lambda: t.to("meta"),
        lambda: t.narrow(axis, 0, max(t.shape[axis] - 1, 0)),
        lambda: torch.cat([t, t], axis),
        lambda: t.new_zeros([0 if a == axis else size for a, size in enumerate(t.shape)]),
        # Alone it would be a sum that takes for ever, and no mistake.
        lambda: t[:1].expand(draw.choice([2**40, 2**55]), *t.shape[1:]) if len(others) > 1 else t,
        lambda: t.flatten().as_strided(t.shape, [1 if k else 0 for k in range(t.dim())]),
        lambda: t.transpose(0, -1),
        lambda: t.repeat_interleave(2, -1)[..., ::2],
        lambda: t.flip(0),
        lambda: torch.full_like(t, draw.choice(NUMBERS[:7])) if t.is_floating_point() else t,
        lambda: t.to_sparse(),
        lambda: t.to_mkldnn(),
        lambda: torch._neg_view(t),
        lambda: torch._efficientzerotensor(t.shape, dtype=t.dtype),
        lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([t, t]),
        lambda: draw.choice([o for o in others if isinstance(o, torch.Tensor)]),
        lambda: t.clone().requires_grad_(),
        lambda: draw.choice([None, "x", 1, [], [t], t.tolist()]),
        with_integer,
        with_integer,
    ]
    return draw.choice(ways)()


def other_list(values: list, choices: tuple, draw: random.Random) -> object:
    changed = list(values)
    way = draw.randrange(8)
    if way == 0 and changed:
        changed.pop()
    elif way == 1:
        changed.append(draw.choice(choices))
    elif way == 2:
        changed = []
    elif way == 3:
        changed.reverse()
    elif way == 4:
        changed = changed * draw.choice([2, 1000])
    elif way == 5:
        return draw.choice([None, 1, "x", changed[:1]])
    elif changed:
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.choice(choices)
    return changed


def malformed_call(seed: int) -> Call:
    """A right call with up to three arguments changed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    op, arguments = draw.choice(fitting_calls(draw))
    for _ in range(draw.choice([1, 1, 2, 3])):
        k = draw.randrange(len(arguments))
        value = arguments[k]
        if isinstance(value, torch.Tensor):
            try:
                arguments[k] = other_tensor(value, arguments, draw)
            except (RuntimeError, IndexError, TypeError, NotImplementedError):
                continue  # there is no such tensor
        elif isinstance(value, (list, tuple, torch.Size)):
            numbers = value and isinstance(value[0], float)
            arguments[k] = other_list(list(value), NUMBERS if numbers else INTEGERS, draw)
        elif isinstance(value, bool):
            arguments[k] = draw.choice([not value, 2, None, "x"])
        elif isinstance(value, int):
            arguments[k] = draw.choice(INTEGERS)
        else:
            arguments[k] = draw.choice([*NUMBERS, torch.randn(3)])
    return op, arguments


def agrees(op: Callable[..., object], arguments: list, found: object) -> bool:
    """Whether what a call that was taken gives is what the definition gives, where that can tell."""
    name = op._schema.name.split("::")[1] if hasattr(op, "_schema") else "plan"
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    numbers = [n for a in arguments if isinstance(a, (list, tuple)) for n in a if isinstance(n, float)]
    if not hasattr(reference, name) or not all(abs(n) < 1e3 for n in numbers):
        return True
    if any(a.numel() > 10**5 or a.is_meta or a.layout != torch.strided for a in tensors):
        return True
    if not all((a.detach().abs() < 1e3).all() for a in tensors):
        return True
    try:
        wide = [a.detach().double() if isinstance(a, torch.Tensor) else a for a in arguments]
        truth = results(getattr(reference, name)(*wide))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return True  # the definition takes less
    tolerance = 2e-2 if any(a.dtype.itemsize == 2 for a in tensors) else 1e-4
    return all(
        not one.numel() or relative_rms(one, other) < tolerance
        for one, other in zip(results(found), truth, strict=True)
    )


def outcome(call: Callable[[], None], seconds: int) -> str:
    """Runs `call` in a forked process: '' where it returned or raised, else how the process ended, and what it said."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            try:
                call()
            except AssertionError:
                os._exit(4)
            except Exception as error:
                # Bugs of its own, as PyTorch calls them, are none of these.
                os._exit(3 if "INTERNAL ASSERT" in str(error) else 0)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            return ""
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        said.seek(0)
        return f"{how}: {said.read().decode(errors='replace')[:3000]}"


def failures(seeds: range, seconds: int) -> Iterator[str]:
    """One line for each call whose process did not end by itself. Before them, the fork is of a process that runs
    the operators on one thread: the threads of a pool would not be there after it."""
    assert torch.get_num_threads() == 1
    for seed in seeds:

        def run(seed=seed):
            op, arguments = malformed_call(seed)
            assert agrees(op, arguments, op(*arguments))

        how = outcome(run, seconds)
        if how:
            op, arguments = malformed_call(seed)
            shown = [f"{a.dtype}{tuple(a.shape)}" if isinstance(a, torch.Tensor) else a for a in arguments]
            yield f"seed {seed}: {op}{shown}: {how}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert len(sys.argv) == 4, "malformed.py FIRST COUNT SECONDS: seeds, and a limit for each call"
    first, count, seconds = map(int, sys.argv[1:])
    found = 0
    for line in failures(range(first, first + count), seconds):
        found += 1
        print(line, flush=True)
    print(f"{found} of {count} calls ended their process or gave a wrong result")
    sys.exit(bool(found))
