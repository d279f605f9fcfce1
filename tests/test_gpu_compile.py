"""The GPU kernels compiled for four chips without a GPU, and what their machine code must be like."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need the package triton, which this platform may not have", allow_module_level=True)

TOOL = Path(__file__).parent.parent / "tools" / "gpu_compile.py"
# The Triton of this environment, and others: LCONV_FAST_TRITONS names folders with triton (and a NumPy that it takes),
# joined as in PATH; made by `pip install --no-deps --target FOLDER triton==3.6.0 "numpy<2.4"`.
OTHERS = [folder for folder in os.environ.get("LCONV_FAST_TRITONS", "").split(os.pathsep) if folder]
TRITONS = [
    "",
    *(
        OTHERS
        or [
            pytest.param(
                None,
                marks=pytest.mark.skip(reason="LCONV_FAST_TRITONS names no folder with another Triton, as 3.6.0"),
                id="another",
            )
        ]
    ),
]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Instructions of the marching loop for each element of the data it marches along, on sm_90, and how many elements a
# thread has in a row. At the memory bandwidth of an H200, 27 is what one read and one write in 2 bytes leave room for,
# 40 two reads and one write. A tenth more than these fails.
MARCH = {
    "forward affine se C=64>64 1024x1024 bfloat16": (22.4, 32),
    "forward affine affine C=64>64 1024x1024 bfloat16": (22.9, 32),
    "forward affine se C=128>128 1024x1024 bfloat16": (22.0, 64),
    "transposed affine se C=64>64 1024x1024 bfloat16": (26.0, 32),
    "forward field affine C=64>64 1024x1024 bfloat16": (33.5, 32),
    "forward affine rotation C=64>64 128x128x128 bfloat16": (31, 32),
    "gram affine se C=64>64 1024x1024 bfloat16": (23.8, 16),
    "correlate affine se C=64>64 1024x1024 bfloat16": (23.6, 16),
    "backward affine se C=32>32 1024x1024 bfloat16": (32.5, 16),
    "forward constant laplacian C=64>64 1024x1024 bfloat16 zeros": (12.4, 32),
    "gram constant laplacian C=64>64 1024x1024 bfloat16 zeros": (9.8, 16),
    "forward constant laplacian C=64>64 1024x1024 bfloat16 zeros contiguous": (11.3, 32),
    "gram constant laplacian C=64>64 1024x1024 bfloat16 zeros contiguous": (16.6, 16),
}


def compiled(folder, target, triton="", cases="representative"):
    # The kernels of this process may be those of the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (triton, environment.get("PYTHONPATH"))))
    out = folder / "rows.json"
    command = [sys.executable, TOOL, "--targets", target, "--cases", cases, "--json", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


# They mix W with the numbers of the generators: a few thousand elements, and no product of a grid.
MIXING = {"basis_weight_kernel", "weight_gradient_kernel"}


def check(rows, target):
    assert rows
    for row in rows:
        half = (
            "float16" in row["case"] and row["kernel"] not in MIXING and "correlate C=" not in row["case"]
        )  # on graphs: sums over channels
        assert row["shared"] <= row["shared_limit"], row
        assert row["stack"] == 0, f"registers spilled: {row}"
        if half or "float64" in row["case"]:
            assert row["matrix"] > 0, f"no matrix instructions: {row}"
        if half and target == "sm_90" and "graph" not in row["case"]:
            assert row["warpgroup"] > 0, f"not Hopper's matrix instructions: {row}"
        if half and not {"contiguous", "graph"} & set(row["case"].split()) and target.startswith("sm"):
            assert row["wide_loads"] > 0, f"no 16-byte loads: {row}"


@pytest.mark.parametrize("triton", TRITONS)
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code(target, triton, tmp_path):
    rows = compiled(tmp_path, target, triton)
    check(rows, target)
    marching = [row for row in rows if row["kernel"].startswith("march")]
    assert len(marching) >= 9
    if target != "sm_90":
        return
    for case, (most, elements) in MARCH.items():
        (row,) = [row for row in marching if row["case"].removesuffix(" zeros") == case.removesuffix(" zeros")]
        assert row["loop"] / elements <= 1.1 * most, row


@pytest.mark.full
@pytest.mark.parametrize("triton", TRITONS)
@pytest.mark.parametrize("target", TARGETS[:3])
def test_no_march_spills(target, triton, tmp_path):
    for row in compiled(tmp_path, target, triton, "marches"):
        assert row["stack"] == 0 or not row["kernel"].startswith("march"), row


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code_of_every_configuration(target, tmp_path):
    for row in compiled(tmp_path, target, cases="all"):
        assert row["shared"] <= row["shared_limit"], row
