"""pip in fresh environments: twice, over itself, editable after a wheel and a wheel after editable, and from the source
distribution. Each ends with a layer that runs outside of the tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import lconv_fast

ROOT = Path(__file__).parents[2]
TREE = ("setup.py", "pyproject.toml", "MANIFEST.in", "CMakeLists.txt", "README.md", "LICENSE", "lconv_fast_command.py",
        "lconv_fast", "csrc", "bench")  # fmt: skip
RUN = """
import sys, torch, lconv_fast
y = lconv_fast.LConv2d(3, 4, padding_mode="circular")(torch.randn(2, 3, 8, 9))
y.sum().backward()
assert y.shape == (2, 4, 8, 9)
print(lconv_fast.__version__, lconv_fast.__file__)
"""
PIP = ("--no-build-isolation", "--no-deps")
STEPS = {
    "twice": [("install", "."), ("install", ".")],
    "over itself": [("install", "."), ("install", ".", "--force-reinstall")],
    "editable after a wheel": [("install", "."), ("install", "-e", ".")],
    "a wheel after editable": [("install", "-e", "."), ("install", ".")],
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """What this environment has, without the library itself."""
    folder = tmp_path_factory.mktemp("packages")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("lconv_fast", "__editable__", "pip")) and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


class Environment:
    def __init__(self, folder: Path, packages: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.bin = folder / "bin"
        (place,) = folder.glob("lib/python*/site-packages")
        # Python 3.11 brings a setuptools that is too old to build this.
        for old in [*place.glob("*setuptools*"), *place.glob("_distutils_hack"), *place.glob("pkg_resources")]:
            shutil.rmtree(old)
        (place / "shared.pth").write_text(f"{packages}\n")
        tools = Path(sys.executable).parent
        # One set of kernels, and the tools of this environment.
        self.variables = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{self.bin}:{tools}:{os.environ['PATH']}",
            "LCONV_CMAKE_ARGS": "-DLCONV_KERNEL_SETS=avx2",
        }

    def __call__(self, *command: str, cwd: Path) -> str:
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]], cwd=cwd, env=self.variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def pip(self, *arguments: str, cwd: Path) -> None:
        self("python", "-m", "pip", "--disable-pip-version-check", "-q", *arguments, *PIP, cwd=cwd)

    def runs_from(self, elsewhere: Path) -> Path:
        """Where the library lies that an import finds."""
        assert self("lconv-fast", "--version", cwd=elsewhere).strip() == f"lconv-fast {lconv_fast.__version__}"
        version, place = self("python", "-c", RUN, cwd=elsewhere).split()
        assert version == lconv_fast.__version__
        return Path(place).parent.parent


@pytest.fixture
def environment(tmp_path, packages):
    return Environment(tmp_path / "environment", packages)


@pytest.mark.full
@pytest.mark.parametrize("case", STEPS)
def test_install(case, tree, environment, tmp_path):
    for step in STEPS[case]:
        environment.pip(*step, cwd=tree)
    editable = "-e" in STEPS[case][-1]
    assert (environment.runs_from(tmp_path) == tree) == editable
    assert not (tree / "build").exists()


@pytest.mark.full
def test_install_from_the_source_distribution(tree, environment, tmp_path):
    environment("python", "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist"), cwd=tree)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    shutil.rmtree(tree)
    environment.pip("wheel", str(archive), "-w", str(tmp_path / "wheels"), cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("lconv_fast-*.whl")
    environment.pip("install", str(wheel), cwd=tmp_path)
    assert environment.bin.parent in environment.runs_from(tmp_path).parents
