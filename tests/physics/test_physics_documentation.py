"""docs/physics.md runs as it is printed; the examples run (full)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples" / "physics").glob("*.py"))


def test_page():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "physics.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 5
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/physics.md", "exec"), scope)
    assert scope["divergence"].shape == (2, 3, 48, 48)


@pytest.mark.full
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(example), str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": path})
    assert list(tmp_path.glob("*.png"))
