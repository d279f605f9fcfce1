"""The operators ``torch.ops.lconv_fast.*``: compiled kernels, schemas with fakes, and the reference."""

import torch as torch  # its libraries must be loaded before the module that is linked to them

try:
    from lconv_fast import _C as _C
except ImportError as error:
    raise ImportError(
        "lconv_fast has no compiled module: build it with `pip install --no-build-isolation .` "
        f"in the source tree (after installing torch, pybind11 and cmake); the loader said: {error}"
    ) from error

from lconv_fast.ops import finished as finished
from lconv_fast.ops import flops as flops
from lconv_fast.ops import gpu as gpu
from lconv_fast.ops import graph as graph
from lconv_fast.ops import schema as schema
