"""Where memory does not suffice, every operator says how many bytes of which shape it asked for, before any work."""

import re
import subprocess
import sys

import pytest

SIDE = 2**21
CASES = {
    "forward": ("lconv(big, torch.zeros(4, 1, 1), se)", 4 * SIDE**2, (1, 1, SIDE, SIDE)),
    "channels last": (
        "lconv(torch.zeros(1, 2, 4, 4).to(memory_format=torch.channels_last), one.expand(4, 2**42, 2), se)",
        4 * 16 * 2**42, (1, 2**42, 4, 4),
    ),
    "generators": ("se(big)", 3 * 4 * SIDE**2, (1, 3, SIDE, SIDE)),
    "transposed": ("lconv(big, torch.zeros(4, 1, 1), se.transpose())", 4 * SIDE**2, (1, 1, SIDE, SIDE)),
    "half": (
        "lconv(one.bfloat16().expand(1, 1, *side), torch.zeros(4, 1, 1).bfloat16(), se)", 2 * SIDE**2,
        (1, 1, SIDE, SIDE),
    ),
    "more than 64 bits count": (
        "lconv(one.expand(2**10, 1, *side), one.expand(4, 2**20, 1), se)", 4 * 2**30 * SIDE**2,
        (2**10, 2**20, SIDE, SIDE),
    ),
    "gram": ("ops.gram(wide, wide, v, *small, True)", 4 * 4 * 2**44, (4, 2**22, 2**22)),
    "correlate": ("ops.correlate(big, torch.zeros(3, 1, 1), big, *sampled)", 4 * 4 * SIDE**2, (2, 2, SIDE, SIDE)),
    "backward": ("ops.backward(big, big, torch.zeros(4, 1, 1), v, *large, True)", 4 * SIDE**2, (1, 1, SIDE, SIDE)),
    "sum_points": ("ops.sum_points(one.expand(0, 2**42, 3))", 4 * 2**42, (2**42,)),
    "coefficients made contiguous": (
        "ops.apply(big, torch.zeros(2, 1, 1), one.expand(1, 2, *side), None, *sampled, True, False)", 2 * 4 * SIDE**2,
        (1, 2, SIDE, SIDE),
    ),
    "coefficients of another type": (
        "ops.apply(big, torch.zeros(2, 1, 1), one.double().expand(1, 2, *side), None, *sampled, True, False)",
        2 * 4 * SIDE**2, (1, 2, SIDE, SIDE),
    ),
}  # fmt: skip
PREAMBLE = f"""
import torch, lconv_fast as lc
from lconv_fast.ops.geometry import Geometry
lconv, ops, side = lc.functional.lconv, torch.ops.lconv_fast, ({SIDE}, {SIDE})
se, one = lc.AffineGenerators.named("se"), torch.zeros(1)
big, wide, v = one.expand(1, 1, *side), one.expand(1, 2**22, 9, 9), se.coefficients()
large, small = (Geometry.of(se.stencil(), sizes, (1, 1), 1) for sizes in (side, (9, 9)))
sampled = Geometry.of(lc.FieldGenerators(torch.zeros(1, 2, 3, 3)).stencil(), side, (1, 1), 1)
"""


@pytest.fixture(scope="module")
def answers():
    """All in one process, whose memory is limited."""
    code = PREAMBLE + "\nimport resource\nresource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))\n"
    for call, _, _ in CASES.values():
        code += f"try:\n    {call}\n    print('done')\nexcept RuntimeError as error:\n    print(repr(str(error)))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "ispatch" not in done.stderr, done.stderr
    return dict(zip(CASES, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_bytes_and_shape(case, answers):
    _, count, shape = CASES[case]
    found = re.search(r"tried to allocate (\d+) bytes, for a tensor of shape \((.*?)\)", answers[case])
    assert found, answers[case]
    assert (int(found[1]), found[2]) == (count, ", ".join(map(str, shape)))
