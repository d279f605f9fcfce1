"""Do two builds of the CPU kernels give the same bits?

    python tools/same_bits.py record before.json      # with the old build
    python tools/same_bits.py compare before.json     # with the new one; exit code 1 where a bit differs

Draws problems over kinds of generators, dimensions, boundaries, accuracies, types, layouts, strides, groups, channels
and extents, and hashes the results of all four operators (the layer, and its gradients of input, weight, bias and
generators), once for each instruction set that this processor has. A change of structure has to keep every bit; a
change of arithmetic shows which problems it touches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lconv_fast as lc  # noqa: E402
from lconv_fast.ops.boundary import PADDING_MODES  # noqa: E402

KINDS = ("affine", "named", "field", "stencil", "constant")
NAMES = ("translation", "rotation", "scaling", "se", "similitude", "sl", "gl", "affine")
DTYPES = ("float32", "float32", "float64", "bfloat16", "float16")
CHANNELS = (1, 2, 3, 4, 5, 8, 11, 16, 17, 24, 32, 33, 48, 64, 96)


@dataclass(frozen=True)
class Draw:
    """One problem, as numbers that its hash can be filed under."""

    kind: str
    name: str
    spatial: tuple[int, ...]
    padding_mode: str
    accuracy: int
    dtype: str
    channels_last: bool
    stride: tuple[int, ...]
    groups: int
    batch: int
    ins: int  # of a group, as outs
    outs: int
    count: int
    seed: int


def draw(seed: int) -> Draw:
    """Problem number `seed`: the same on every machine."""
    chance = random.Random(seed)
    ndim = chance.choice((1, 2, 2, 2, 3, 3))
    # Wide images meet the paths of long lines, narrow ones tiles that span several lines.
    most = {1: (60, 700), 2: (12, 220), 3: (6, 70)}[ndim]
    spatial = [chance.randint(6, most[0]) for _ in range(ndim - 1)] + [chance.randint(6, most[1])]
    if chance.random() < 0.3:
        spatial[-1] = chance.choice((32, 64, 96, 128, 192))
    dtype = chance.choice(DTYPES)
    return Draw(
        kind=chance.choice(KINDS),
        name=chance.choice([name for name in NAMES if ndim > 1 or name in ("translation", "scaling", "gl", "affine")]),
        spatial=tuple(spatial),
        padding_mode=chance.choice(("zeros", *PADDING_MODES)),
        accuracy=chance.choice((2, 2, 2, 4, 6)),
        dtype=dtype,
        channels_last=chance.random() < 0.6,
        stride=tuple(chance.choice((1, 1, 1, 1, 2, 3)) for _ in range(ndim)),
        groups=chance.choice((1, 1, 1, 2)),
        batch=chance.choice((1, 2, 3, 5)),
        ins=chance.choice(CHANNELS),
        outs=chance.choice(CHANNELS),
        count=chance.choice((1, 2, 3, 4, 6, 9)),
        seed=seed,
    )


def generators_of(p: Draw, numbers: torch.Generator) -> lc.Generators:
    """Learnable generators in the problem's type, so that the fourth operator runs as well."""
    ndim = len(p.spatial)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=torch.float64).float()

    made: lc.Generators
    if p.kind == "named":
        made = lc.AffineGenerators.named(
            p.name, ndim=ndim, accuracy=p.accuracy, padding_mode=p.padding_mode, learnable=True
        )
    elif p.kind == "affine":
        made = lc.AffineGenerators(
            normal(p.count, ndim, ndim),
            normal(p.count, ndim),
            accuracy=p.accuracy,
            padding_mode=p.padding_mode,
            learnable=True,
        )
    elif p.kind == "field":
        made = lc.FieldGenerators(
            normal(p.count, ndim, *p.spatial), accuracy=p.accuracy, padding_mode=p.padding_mode, learnable=True
        )
    else:
        taps = torch.randint(-2, 3, (4, ndim), generator=numbers).unique(dim=0)
        shape = (p.count, len(taps), *(p.spatial if p.kind == "stencil" else ()))
        made = lc.StencilGenerators(normal(*shape), taps, padding_mode=p.padding_mode, learnable=True)
    return made.double() if p.dtype == "float64" else made


def hashes(p: Draw) -> dict[str, str]:
    """The hash of each result's bits."""
    dtype = getattr(torch, p.dtype)
    numbers = torch.Generator().manual_seed(p.seed)
    generators = generators_of(p, numbers)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=torch.float64).to(dtype)

    def laid_out(t: Tensor) -> Tensor:
        return t.movedim(1, -1).contiguous().movedim(-1, 1) if p.channels_last else t

    ins, outs = p.groups * p.ins, p.groups * p.outs
    x = laid_out(tensor(p.batch, ins, *p.spatial)).requires_grad_()
    weight = tensor(generators.num_generators + 1, outs, p.ins).requires_grad_()
    bias = tensor(outs).requires_grad_()
    y = lc.functional.lconv(x, weight, generators, bias, stride=p.stride, groups=p.groups)
    learned = dict(generators.named_parameters())
    cotangent = laid_out(tensor(*y.shape))
    gradients = torch.autograd.grad(y, [x, weight, bias, *learned.values()], cotangent)
    named = dict(zip(["input", "weight", "bias", *learned], gradients, strict=True))

    def bits(t: Tensor) -> str:
        plain = torch.empty(t.numel(), dtype=t.dtype).copy_(t.detach().flatten())
        return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]

    return {name: bits(t) for name, t in {"output": y, **named}.items()}


def record(count: int) -> dict[str, dict[str, dict[str, str]]]:
    """Hashes by instruction set and problem; a process for each, since a set is chosen when the module is loaded."""
    found = {}
    for capability in lc._C.kernels():
        answer = subprocess.run(
            [sys.executable, __file__, "hash", "--count", str(count)],
            env={**os.environ, "LCONV_FAST_CPU_CAPABILITY": capability},
            check=True,
            capture_output=True,
            text=True,
        )
        found[capability] = json.loads(answer.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare", "hash"))
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=200, help="problems")
    given = parser.parse_args()
    if given.what == "hash":
        print(json.dumps({str(seed): hashes(draw(seed)) for seed in range(given.count)}))
        return 0
    if given.file is None:
        parser.error("expected a file")
    found = record(given.count)
    if given.what == "record":
        given.file.write_text(json.dumps(found))
        print(f"{given.count} problems for {', '.join(found)} in {given.file}")
        return 0
    before = json.loads(given.file.read_text())
    same, differing = 0, []
    for capability, problems in found.items():
        for seed, results in problems.items():
            old = before.get(capability, {}).get(seed, {})
            changed = [name for name, bits in results.items() if old.get(name) != bits]
            same += len(results) - len(changed)
            if changed:
                differing.append((capability, changed, draw(int(seed))))
    for capability, changed, problem in differing[:20]:
        print(f"{capability}: {', '.join(changed)} differ: {asdict(problem)}")
    print(f"{same} results have the same bits, {len(differing)} problems differ")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
