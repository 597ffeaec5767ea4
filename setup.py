"""Builds the extension module ``trecvit_kernels._native`` with CMake; everything else is in pyproject.toml.

    python setup.py build_ext --inplace

rebuilds what changed in csrc/ and puts the module into the source tree, where an editable install finds it.
The build tree is kept in build/. ``CMAKE_ARGS`` adds options, e.g. ``CMAKE_ARGS="-DTRECVIT_CUDA=OFF"``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """The program from its PyPI package if that is installed, else from PATH."""
    try:
        module = __import__(name)
        directory = getattr(module, "CMAKE_BIN_DIR", None) or module.BIN_DIR
        found = shutil.which(name, path=directory)
    except (ImportError, AttributeError):
        found = None
    found = found or shutil.which(name)
    if found is None:
        raise SystemExit(f"building trecvit-kernels needs {name}: pip install {name}")
    return found


class BuildWithCMake(build_ext):
    def finalize_options(self) -> None:
        if self.build_temp is None:  # one lasting build tree per interpreter, also for editable installs
            self.build_temp = str(ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}")
        super().finalize_options()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        cmake = tool("cmake")
        # Paths of tools are given every time: with build isolation they differ from one build to the next.
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DCMAKE_BUILD_TYPE=Release",
            # Options are those of this call, not what an earlier one left in the build tree.
            *(f"-UTRECVIT_{name}" for name in ("CUDA", "CUDA_ARCHITECTURES", "SANITIZE", "SIMT")),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--target", "_native"], check=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)  # never write into a file that a running process has mapped
        shutil.copy2(build / output.name, output)


setup(ext_modules=[Extension("trecvit_kernels._native", sources=[])], cmdclass={"build_ext": BuildWithCMake})
