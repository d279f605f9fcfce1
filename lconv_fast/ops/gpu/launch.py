"""A kernel on its way to the card."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from lconv_fast.ops.geometry import require
from lconv_fast.ops.gpu.card import Card

OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
MOST_PROGRAMS = 2**31 - 1


class Launch:
    """A kernel with its constants, for calls that are laid out alike: compiled by the first, launched by all.

    What Triton looks at in arguments to choose a compilation (types, alignment, divisibility of integers) is the same
    for all calls of a plan, but for numbers that the kernels name in `do_not_specialize`: the choice is made once.
    """

    def __init__(self, kernel: Any, warps: int, /, **constants: Any) -> None:
        self.kernel, self.warps, self.constants = kernel, warps, constants
        self.compiled: Any = None
        self.tail: list[Any] = []

    def compile(self, device: torch.device, arguments: tuple[Any, ...]) -> Any:
        """The compiled kernel, or None in Triton's interpreter."""
        if self.compiled is None and isinstance(self.kernel, JITFunction):
            with _current(device):
                self.compiled = self.kernel.run(
                    *arguments, **self.constants, num_warps=self.warps, **OPTIONS, grid=(1,), warmup=True
                )
            self.tail = [self.constants[name] for name in self.kernel.arg_names[len(arguments) :]]
        return self.compiled

    def places(self, card: Card, device: torch.device, arguments: tuple[Any, ...]) -> int | None:
        """Programs that a multiprocessor holds, once it is known what the compiler made of the kernel."""
        compiled = self.compile(device, arguments)
        if compiled is None:
            return None
        compiled._init_handles()
        return card.places(self.warps, compiled.n_regs, compiled.metadata.shared)

    def __call__(self, programs: int, device: torch.device, *arguments: Any) -> None:
        require(programs <= MOST_PROGRAMS, f"{programs} programs are more than a launch takes")
        compiled = self.compile(device, arguments)
        with _current(device):
            if compiled is None:
                self.kernel[(programs,)](*arguments, **self.constants, num_warps=self.warps, **OPTIONS)
            else:
                compiled[(programs, 1, 1)](*arguments, *self.tail)


class _Current:
    """Nothing to change: the device is the current one, or has no such thing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_ALREADY = _Current()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Launches go to the current device: makes it the tensors' own."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _ALREADY
    return torch.cuda.device(device)
