"""Each build has a folder of its own: nothing of the one before, whose environment is gone, can fail it."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import lconv_fast

ROOT = Path(__file__).parents[2]
# Stands for cmake: notes where it is told to build, and that nothing is there yet.
CMAKE = """#!{python}
import os, sys
if "-B" in sys.argv:
    folder = sys.argv[sys.argv.index("-B") + 1]
    with open({log!r}, "a") as log:
        log.write(folder + " " + " ".join(os.listdir(folder)) + "\\n")
    open(folder + "/CMakeCache.txt", "w").write("CMAKE_MAKE_PROGRAM=/gone/ninja")
"""


def copy_of_the_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "lconv_fast").mkdir(parents=True)
    for name in (
        "setup.py",
        "lconv_fast_command.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CMakeLists.txt",
        "MANIFEST.in",
        "csrc",
        "bench",
    ):
        (tree / name).symlink_to(ROOT / name)
    for path in (ROOT / "lconv_fast").glob("*.py"):
        (tree / "lconv_fast" / path.name).symlink_to(path)
    return tree


def test_every_build_is_fresh(tmp_path):
    tree, log, tools = copy_of_the_tree(tmp_path), tmp_path / "log", tmp_path / "tools"
    tools.mkdir()
    (tools / "cmake").write_text(CMAKE.format(python=sys.executable, log=str(log)))
    (tools / "cmake").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext"], cwd=tree, env=environment, check=True, capture_output=True
        )
    first, second = log.read_text().splitlines()
    assert first != second and first.endswith(" ") and second.endswith(" ")
    assert not Path(first.strip()).exists() and not (tree / "build").exists()


def test_the_source_distribution_has_what_a_build_needs(tmp_path):
    tree = copy_of_the_tree(tmp_path)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    assert archive.name == f"lconv_fast-{lconv_fast.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[-1] for name in file.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp")}
    assert (
        sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "lconv_fast_command.py", "bench/__init__.py"}
        <= names
    )
