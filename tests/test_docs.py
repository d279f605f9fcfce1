"""The documents: their examples run as they are printed, their links lead somewhere, every public name has an entry."""

import importlib
import re
from pathlib import Path

import pytest

import lconv_fast as lc

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# What a page's blocks must have made when all have run, beside their own assertions.
OUTCOMES = {
    "README.md": lambda scope: scope["y"].shape == (8, 64, 128, 128) and scope["rotation"].matrix.grad is not None,
    "discovery.md": lambda scope: scope["found"].algebra.name == "so(2)",
    "physics.md": lambda scope: scope["divergence"].shape == (2, 3, 48, 48),
}


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # limits.md shows what goes through it
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
def test_examples(page, tmp_path, monkeypatch):
    """A page's blocks, one after the other, in one scope and an empty folder."""
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks_of(page):
        exec(compile(block, page.name, "exec"), scope)
    assert OUTCOMES.get(page.name, lambda scope: True)(scope)


def test_every_python_block_is_run():
    """None is indented, or marked in another way that `blocks_of` would pass over."""
    for page in PAGES:
        marked = re.findall(r"^\s*(?:```|~~~)\s*\{?\.?py", page.read_text(), flags=re.MULTILINE)
        assert len(marked) == len(blocks_of(page)), page.name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "examples/README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


@pytest.mark.parametrize("package", ["", "generators", "convert", "discovery", "physics", "nets", "sharding"])
def test_every_public_name_has_an_entry(package):
    text = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    documented = {path: resolve(path) for path in re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)}
    module = importlib.import_module(".".join(["lconv_fast", package]).rstrip("."))
    pages = {page.stem for page in (ROOT / "docs/api").glob("*.md")}
    for name in module.__all__:
        value = getattr(lc, name) if not package else getattr(module, name)
        found = any(value is other for other in documented.values())
        assert found or (not package and name in pages) or name == "functional", f"{module.__name__}.{name}"


def resolve(path: str):
    """The object of a dotted path that begins with a module's."""
    parts = path.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for name in parts[k:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)
