import os

# Triton decides when it is first imported, by any test, whether its kernels are interpreted (tests/gpu_interpreter.py).
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
