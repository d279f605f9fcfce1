"""The one place that knows how the library's GPU operators are reached: CPU tensors, the CUDA registrations.

Within `on_gpu` every call of ``torch.ops.lconv_fast.*`` goes to what the library registered for CUDA, which PyTorch's
dispatcher is asked for: no file or function of lconv_fast/ops/gpu is named. Autograd stands above. Epilogues are told
that their tensors are on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lconv_fast.form.fused as fused

_NAMESPACE = "lconv_fast"
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class _OnCuda(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator.namespace == _NAMESPACE:
            return operator.redispatch(_CUDA, *arguments, **(keywords or {}))
        return operator(*arguments, **(keywords or {}))


@contextlib.contextmanager
def on_gpu() -> Iterator[None]:
    """Results are poisoned before kernels write to them: what is left out shows as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    on_gpu_before, fused.on_gpu = fused.on_gpu, lambda input: True
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        with _OnCuda():
            yield
    finally:
        fused.on_gpu = on_gpu_before
        torch.use_deterministic_algorithms(before)


def kernel_names() -> set[str]:
    """All kernels of the library that are launched, by name."""
    import triton

    import lconv_fast.ops.gpu as package

    names = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
                names.add(name)
    return names
