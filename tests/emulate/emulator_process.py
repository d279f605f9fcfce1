"""Emulated chips need processes of their own: the kernels of this one may be those of Triton's interpreter."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@functools.cache
def triton_missing() -> str:
    """Why kernels cannot be compiled here, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "the GPU kernels need the package triton, which this platform may not have"
    return ""


def python(*arguments: object) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
