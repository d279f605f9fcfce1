"""The blocks of docs/generators.md run as they are printed, one after the other."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "generators.md"


def test_blocks():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 11
    scope: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), scope)
