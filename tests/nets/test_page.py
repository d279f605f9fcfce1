"""The examples of docs/networks.md run as they are printed, one after the other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_examples():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/networks.md", "exec"), scope)
