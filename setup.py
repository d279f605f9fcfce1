"""Builds lconv_fast._C with CMake, and lists the packages. Everything else stands in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class FreshBuild(build):
    """Builds in a folder of its own: what CMake remembers of one build (the ninja and the Python of an environment that
    pip removes afterwards), and modules that the tree no longer has, must not reach the next."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.folder = tempfile.TemporaryDirectory(prefix="lconv_fast-build-")
        self.build_base = self.folder.name


class CMakeBuild(build_ext):
    """Serves `pip install .`, `pip install -e .` and wheels alike: setuptools says where the module belongs."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            *os.environ.get("LCONV_CMAKE_ARGS", "").split(),
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)


setup(
    packages=[*find_packages(include=["lconv_fast*"]), "lconv_fast_bench"],
    py_modules=["lconv_fast_command"],
    ext_modules=[Extension("lconv_fast._C", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)
