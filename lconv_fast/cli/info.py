"""`lconv-fast info`: what this installation is and can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from rich.table import Table

from lconv_fast.cli.shared import console

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SWITCH = "THP_MEM_ALLOC_ENABLE"  # PyTorch's, read when its first tensor is made


def info() -> None:
    """Versions, CPU capability, kernels built, threads, memory pages, and the GPU if there is one."""
    table = Table(show_header=False, title="lconv_fast")
    for name, value in information().items():
        table.add_row(name, value)
    console.print(table)


def information() -> dict[str, str]:
    """What `info` prints, in its order."""
    import numpy
    import torch

    import lconv_fast
    from lconv_fast import _C

    rows = {
        "lconv_fast": lconv_fast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "CPU capability": _C.cpu_capability(),
        "CPU kernels": ", ".join(_C.kernels()),
        "second-level cache": f"{_C.second_level_cache_bytes() / 2**20:.2f} MiB",
        **{f"built with {key}": str(value) for key, value in _C.build_info().items()},
        "threads": str(torch.get_num_threads()),
        "huge pages": huge_pages(),
        "GPU": "none",
    }
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        rows["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return rows


def huge_pages(setting: Path = HUGE_PAGES) -> str:
    """How the system gives pages of 2 MiB to large tensors, and which setting is missing where it does not: fresh
    results are written page by page, and small pages make that slow."""
    try:
        words = setting.read_text(encoding="ascii").split()
    except OSError:
        return "unknown on this system"
    chosen = next((word.strip("[]") for word in words if word.startswith("[")), "unknown")
    value = os.environ.get(SWITCH, "").strip()
    asked = value.isdigit() and int(value) != 0
    if chosen == "always":
        return "always"
    if chosen == "madvise":
        return f"madvise, and {SWITCH} is set" if asked else f"madvise, but {SWITCH} is not set: export {SWITCH}=1"
    if chosen == "never":
        also = "" if asked else f", and {SWITCH} is not set: export {SWITCH}=1"
        return f"never: an administrator can write madvise to {setting}{also}"
    return chosen
