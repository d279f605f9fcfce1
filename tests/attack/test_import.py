"""`import lconv_fast` is silent, takes little beside `import torch`, and brings in nothing that can wait."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LATE = (
    "triton",
    "scipy",
    "matplotlib",
    "sklearn",
    "skimage",
    "safetensors",
    "typer",
    "rich",
    "torch.utils.flop_counter",
)
COUNT = """
layer, x = lconv_fast.LConv1d(2, 3, "translation"), torch.ones(1, 2, 5)
with FlopCounterMode(display=False) as counter:
    layer(x)
assert counter.get_total_flops() == 2 * 2 * 3 * 2 * 5, counter.get_flop_counts()
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_import_is_silent_and_brings_in_nothing_else():
    """No module beside PyTorch's own and the standard library's. Where bytecode is kept, that takes a twentieth of a
    second beside PyTorch."""
    code = f"""
import sys, torch
before = set(sys.modules)
import lconv_fast
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
assert new <= {{"lconv_fast", "torch"}}, new
print(*[name for name in {LATE!r} if name in sys.modules and name not in before])
from torch.utils.flop_counter import FlopCounterMode
{COUNT}"""
    assert not run(code).split()


def test_flops_are_counted_where_the_counter_came_first():
    run(f"import torch; from torch.utils.flop_counter import FlopCounterMode; import lconv_fast\n{COUNT}")


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.4, 1.0])
def test_the_command_can_be_interrupted_while_it_imports(delay):
    code = "import sys, lconv_fast_command as c; sys.argv[1:] = ['info']; print('on', flush=True); c.main()"
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout.readline() == "on\n"
    time.sleep(delay)
    command.send_signal(signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 130 or (command.returncode == 0 and delay == 1.0)  # it may be through by then
    assert "Traceback" not in said and len(said.splitlines()) <= 1
