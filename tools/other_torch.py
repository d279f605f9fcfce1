"""One build of the module under another PyTorch: built against its headers, run under it and under this environment's.

    python tools/other_torch.py 2.11.0

The wheel is downloaded once, into build/other_torch; where that fails, `skipped: ...` says so and the exit status is 0.
A wheel for CUDA loads on a machine without CUDA by empty stand-ins for the libraries that it names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "other_torch"
# What is built is what depends on PyTorch, and the kernels for any processor alone.
BUILD = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLCONV_KERNEL_SETS=baseline"]
CHECK = """
import sys
import torch
import lconv_fast as lc
from lconv_fast.ops import reference
from lconv_fast.ops.geometry import Geometry

assert lc._C.__file__.startswith(sys.argv[1]), lc._C.__file__
assert torch.__version__.startswith(sys.argv[2]), torch.__version__
g = lc.AffineGenerators.named("se", 2, learnable=True).double()
f, w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 7, 9), (4, 6, 4), (6,)))
y = lc.functional.lconv(f, w, g, b)
geometry = Geometry.of(g.stencil(), [7, 9], [1, 1], 1)
truth = reference.apply(f, w, g.coefficients(), b, *geometry, True, False)
inputs = [f, w, b, *g.parameters()]
u = torch.randn_like(y)
for ours, theirs in zip((y, *torch.autograd.grad(y, inputs, u)), (truth, *torch.autograd.grad(truth, inputs, u))):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    lc.LConv2d(4, 6).to(dtype)(f.to(dtype)).sum().backward()
print("runs under PyTorch", torch.__version__)
"""


def run(*command: object, **variables: str) -> str:
    done = subprocess.run(
        list(map(str, command)), env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def unpacked(version: str) -> Path | None:
    """The folder that holds this version's torch, or None where it cannot be had."""
    folder, wheels = FOLDER / version, FOLDER / "wheels"
    if not folder.exists():
        try:
            run(sys.executable, "-m", "pip", "download", "-q", f"torch=={version}", "--no-deps", "-d", wheels)
        except RuntimeError as error:
            print(f"skipped: PyTorch {version} cannot be downloaded: {str(error).strip().splitlines()[-1]}")
            return None
        (wheel,) = wheels.glob(f"torch-{version}*.whl")
        partial = folder.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(folder)
        wheel.unlink()
    return folder


def stand_ins(libraries: Path, into: Path) -> None:
    """Empty libraries by the names that those in a folder need and that are not to be found, with their symbols."""
    needed, symbols = set(), defaultdict(set)
    for library in libraries.glob("*.so*"):
        needed |= set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", library)))
        for line in run("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            symbols[version.lstrip("@")].add(name)
    there = {library.name for library in libraries.glob("*.so*")}
    missing = {n for n in needed - there if re.match(r"lib(cu|nv|nccl)", n)}
    into.mkdir(exist_ok=True)
    for k, name in enumerate(sorted(missing)):
        # Symbols with a version belong to the library of that name; the others may stand in any.
        own = symbols.get(name, set())
        version = name if own else ""
        if not own and "nvshmem" in name and symbols["NVSHMEM"]:
            own, version = symbols["NVSHMEM"], "NVSHMEM"
        functions = own | ({s for s in symbols[""] if re.match(r"(cu|nccl|nvrtc|nvtx|nvJit)", s)} if k == 0 else set())
        source, map_file = into / "stand_in.c", into / "stand_in.map"
        source.write_text("".join(f"int {f}(void) {{ return 100; }}\n" for f in sorted(functions)))
        command = ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", source, f"-Wl,-soname,{name}", "-o", into / name]
        if version:
            map_file.write_text(f"{version} {{ global: *; }};\n")
            command.append(f"-Wl,--version-script={map_file}")
        run(*command)


def main() -> int:
    version = sys.argv[1]
    folder = unpacked(version)
    if folder is None:
        return 0
    stubs, site, build = FOLDER / f"{version}.libraries", FOLDER / f"{version}.site", FOLDER / f"{version}.build"
    stand_ins(folder / "torch" / "lib", stubs)
    other = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(stubs)}
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "lconv_fast", site / "lconv_fast", ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    place = f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={site / 'lconv_fast'}"
    run("cmake", "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}", place, *BUILD, **other)
    run("cmake", "--build", build, **other)
    import torch

    for name, paths, libraries in ((version, [site, folder], stubs), (torch.__version__, [site], "")):
        variables = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "LD_LIBRARY_PATH": str(libraries)}
        print(run(sys.executable, "-c", CHECK, site, name, **variables).strip().splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
