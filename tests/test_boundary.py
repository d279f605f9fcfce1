"""The rows of padding modes: the same in Python and C++, and their rule against numpy's own padding. What the kernels
make of them is crossed with all kinds elsewhere (test_layer, test_gpu_interpreter)."""

import numpy as np
import pytest
import torch
from problems import MODES

from lconv_fast import _C
from lconv_fast.ops.boundary import PADDING_MODES

# By another library, so that the rule is not its own witness; None: a constant. A new mode needs its line here.
NUMPY = {"zeros": None, "circular": "wrap", "replicate": "edge", "reflect": "reflect"}


def test_the_compiled_rows_are_these():
    rows = [(name, mode.inverts, mode.boundary.bounded) for name, mode in PADDING_MODES.items()]
    assert _C.boundaries() == rows
    assert [int(mode) for mode in PADDING_MODES.values()] == list(range(len(rows)))


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("size", [4, 5, 9])
def test_the_rule_is_numpys(name, size):
    """For numbers and for tensors, up to one step less than the size beyond either end."""
    mode, reach = PADDING_MODES[name], size - 1
    shown, outside = mode.boundary.shown, range(-reach, size + reach)
    assert (shown is None) == (NUMPY[name] is None)
    if shown is None:
        return
    expected = np.pad(np.arange(size), reach, mode=NUMPY[name]).tolist()
    assert [shown(i, size) for i in outside] == expected
    assert shown(torch.tensor(list(outside)), size).tolist() == expected
    # Both ends are alike, and inverting modes show each point at most once to a window of `size` indices.
    assert [size - 1 - shown(size - 1 - i, size) for i in outside] == expected
    windows = [expected[k : k + size] for k in range(size)]
    assert mode.inverts == all(len(set(window)) == size for window in windows)
    if not mode.inverts:
        assert [mode.inward(k) for k in range(1, size)] == [shown(-k, size) for k in range(1, size)]
