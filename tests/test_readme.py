"""The examples of the README run as they are printed, one after the other."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_examples():
    quick_start, discovery = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(quick_start.splitlines()) <= 15
    scope: dict = {}
    exec(compile(quick_start, "README.md", "exec"), scope)
    assert scope["y"].shape == (8, 64, 128, 128)
    exec(compile(discovery, "README.md", "exec"), scope)
    assert scope["found"].algebra.name == "so(2)"
