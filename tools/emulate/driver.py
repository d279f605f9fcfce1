"""A stand-in for the CUDA driver: Triton compiles for a chip that is not there, and its own launcher calls us.

`install` makes Triton's active driver one whose library is `driver.c`. Launches then arrive as the packed parameters
that a card would get, together with the tensors they came from and the PTX of the kernel.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tools.emulate.chips import REGISTERS, WARP, Chip

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled, and what its loading needs."""

    name: str
    ptx: str
    cubin: bytes
    warps: int
    shared: int  # bytes


@dataclass(frozen=True)
class Launch:
    """What one launch hands to the driver."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    tensors: tuple[Tensor, ...]
    parameters: Any  # void**


class _Chip(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("shared", "multiprocessors", "registers", "warp_size", "major", "minor")]


class _Config(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint)]


_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Config), ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p))


@functools.cache
def library() -> ctypes.CDLL:
    """The stand-in, compiled and loaded under the name that Triton's launcher opens."""
    source = Path(__file__).with_name("driver.c")
    folder = Path(tempfile.mkdtemp(prefix="emulated_driver_"))
    target = folder / "libcuda.so.1"
    subprocess.run(
        [os.environ.get("CC", "gcc"), "-w", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", source, "-o", target],
        check=True,
    )
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # where Triton links its launcher against the driver
    return ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


class StandIn:
    """Makes Triton compile for `chip` and hand its launches to `run`, in this process from now on.

    Args:
        chip: what Triton and PyTorch are told of the card.
        run: called with each `Launch`, while the parameters are valid. What it raises arrives at the launching call.
    """

    def __init__(self, chip: Chip, run: Callable[[Launch], None]) -> None:
        self.run = run
        self.kernels: dict[int, Kernel] = {}  # by function handle
        self._tensors: tuple[Tensor, ...] = ()
        self._error: BaseException | None = None
        lib = library()
        lib.emulate_chip(_Chip(chip.shared, chip.multiprocessors, REGISTERS, WARP, chip.major, chip.minor))
        self._callback = _LAUNCH(self._launch)
        lib.emulate_launch(self._callback)
        _tell_torch(chip)
        self._tell_triton(chip)

    def _launch(self, config, function: int, parameters) -> int:
        c = config.contents
        try:
            self.run(Launch(self.kernels[function], tuple(c.grid), tuple(c.block), c.shared, self._tensors, parameters))
        except BaseException as error:  # ctypes would print it and go on
            self._error = error
            return 1
        return 0

    def _tell_triton(self, chip: Chip) -> None:
        from triton import knobs
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia import driver as nvidia
        from triton.runtime import driver

        standin = self

        class Launcher(nvidia.CudaLauncher):
            def __call__(self, *arguments) -> None:
                standin._tensors = tuple(_tensors(arguments))
                standin._error = None
                try:
                    super().__call__(*arguments)
                finally:
                    standin._tensors = ()
                    if standin._error is not None:
                        raise standin._error

        class Driver(nvidia.CudaDriver):
            def __init__(self) -> None:
                self.utils = nvidia.CudaUtils()
                self.utils.load_binary = functools.partial(_loaded, nvidia.CudaUtils().load_binary)
                self.launcher_cls = Launcher

            def get_current_target(self) -> GPUTarget:
                return GPUTarget("cuda", chip.capability, WARP)

            def get_current_device(self) -> int:
                return 0

            def get_current_stream(self, device: int = 0) -> int:
                return 0

            def get_device_capability(self, device: int = 0) -> tuple[int, int]:
                return chip.major, chip.minor

            def get_active_torch_device(self) -> torch.device:
                return torch.device("cpu")

        def loaded(module, function: int, name: str, files, hash) -> None:
            by_suffix = {Path(file).suffix: Path(file) for file in files.values()}
            self.kernels[function] = Kernel(
                name,
                by_suffix[".ptx"].read_text(),
                by_suffix[".cubin"].read_bytes(),
                **_warps_and_shared(by_suffix[".json"]),
            )

        knobs.runtime.kernel_load_end_hook.add(loaded)
        driver.set_active(Driver())


def _loaded(load: Callable, name: str, cubin: bytes, shared: int, device: int):
    """What loading answers, with the registers of a thread that the machine code takes."""
    module, function, _, spills, threads = load(name, cubin, shared, device)
    return module, function, registers_of(cubin), spills, threads


_REGISTER_COUNT = bytes((4, 0x2F, 8, 0))  # of an entry in .nv.info: a symbol and a number follow


def registers_of(cubin: bytes) -> int:
    """Registers of a thread, from the notes in an ELF file of machine code."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + size * k) for k in range(count)]
    for name, _, _, _, offset, length, *_ in sections:
        start = sections[names][4] + name
        if cubin[start : cubin.index(0, start)] == b".nv.info":
            place = cubin.index(_REGISTER_COUNT, offset, offset + length)
            return struct.unpack_from("<I", cubin, place + 8)[0]
    raise ValueError("no notes on registers in this file")


def _warps_and_shared(metadata: Path) -> dict[str, int]:
    found = json.loads(metadata.read_text())
    return {"warps": found["num_warps"], "shared": found["shared"]}


def _tell_torch(chip: Chip) -> None:
    """PyTorch's questions about a card, answered for any device."""
    properties = SimpleNamespace(
        name=chip.name,
        major=chip.major,
        minor=chip.minor,
        multi_processor_count=chip.multiprocessors,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=chip.shared,
        shared_memory_per_multiprocessor=chip.shared + 1024,
        regs_per_multiprocessor=REGISTERS,
        warp_size=WARP,
    )
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment,return-value]
    torch.cuda.get_device_name = lambda device=None: chip.name
    torch.cuda.get_device_capability = lambda device=None: (chip.major, chip.minor)
