"""What is shipped: the sdist, a fresh isolated install of it, the extension's symbols and libraries.

The install compiles the kernels for the lowest instruction set alone: the others are the same sources, and those that
this checkout was built with stay in build/, where the tests of the objects look.
"""

from __future__ import annotations

import filecmp
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import trecvit_kernels

ROOT = Path(__file__).resolve().parent.parent
ISAS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["neon"]}.get(platform.machine(), ["baseline"])

pytestmark = [
    pytest.mark.early,
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with binutils"),
]


def run(command: Sequence[object], cwd: Path, **environment: str) -> str:
    """Standard output; what the command printed is in the failure's message."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Install:
    sdist: Path  # the archive
    source: Path  # where it was unpacked
    python: Path  # of the environment it was installed into
    module: Path  # the installed extension


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The sdist, installed with build isolation into an empty environment, which then gets torch."""
    root = tmp_path_factory.mktemp("package")
    checkout = root / "checkout"
    # Without what earlier builds and installs left behind: the sdist has to follow from the sources alone.
    left_behind = shutil.ignore_patterns(
        ".git",
        ".venv",
        ".*_cache",
        "__pycache__",
        "build",
        "dist",
        "*.egg-info",
        "*.so",
        "golden",
        "demo_output",
    )
    shutil.copytree(ROOT, checkout, ignore=left_behind)
    build_sdist = f"from setuptools import build_meta; build_meta.build_sdist({str(root)!r})"
    run([sys.executable, "-c", build_sdist], cwd=checkout)
    (sdist,) = root.glob("trecvit_kernels-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(root, filter="data")
    source = root / sdist.name.removesuffix(".tar.gz")

    venv.create(root / "env", with_pip=True)
    python = root / "env" / "bin" / "python"
    # No torch is in reach here, neither in the isolated build nor in the environment; as if there were no nvcc either.
    options = ["-DTRECVIT_CUDA=OFF", *(f"-DTRECVIT_COMPILER_HAS_{isa}=OFF" for isa in ISAS[1:])]
    clean = {"PYTHONPATH": "", "CMAKE_ARGS": " ".join(options), "PIP_CONSTRAINT": ""}
    run([python, "-m", "pip", "install", "--no-deps", source], cwd=root, **clean)
    (packages,) = (root / "env" / "lib").glob("python*/site-packages")
    (module,) = packages.glob("trecvit_kernels/_native*.so")
    # The runtime requirements come from the environment of this test, behind the package itself.
    (packages / "runtime.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Install(sdist, source, python, module)


def test_version_is_said_once(fresh: Install) -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    ask = "import importlib.metadata; print(importlib.metadata.version('trecvit-kernels'))"
    assert run([fresh.python, "-c", ask], cwd=fresh.sdist.parent).strip() == trecvit_kernels.__version__


def test_build_requires_no_torch() -> None:
    (requires,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = set(re.findall(r'"([a-z0-9-]+)', requires))
    assert names == {"setuptools", "pybind11", "cmake", "ninja"}


def test_sdist_holds_every_source(fresh: Install) -> None:
    with tarfile.open(fresh.sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh", ".typed"}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "trecvit_kernels")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    wanted |= {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert len(wanted) > 20
    assert wanted <= shipped, sorted(wanted - shipped)
    assert not [name for name in shipped if name.endswith((".so", ".o"))]


def test_install_from_sdist_runs_without_a_compiler(fresh: Install) -> None:
    code = (
        "import torch, trecvit_kernels as tk\n"
        "from trecvit_kernels import _native\n"
        "assert tk.backends.available()['native'].available\n"
        "x = torch.ones(1, 3, 2, 4)\n"
        "tk.ops.gated_lru(x, x, x, torch.ones(4), backend='native')\n"
        "print(tk.__version__, _native.isa(), _native.__file__)\n"
    )
    # An empty PATH: no compiler, no build tool.
    out = run([fresh.python, "-c", code], cwd=fresh.sdist.parent, PATH="", PYTHONPATH="")
    version, isa, file = out.split()
    assert version == trecvit_kernels.__version__
    assert isa == ISAS[0]
    assert Path(file) == fresh.module


def test_command_line_is_installed(fresh: Install) -> None:
    out = run([fresh.python.parent / "trecvit", "info"], cwd=fresh.sdist.parent, PYTHONPATH="")
    assert trecvit_kernels.__version__ in out
    assert re.search(r"CUDA kernels:\s+none: built without nvcc", out)
    assert re.search(r"backend cuda:\s+missing: the compiled extension was built without nvcc", out)


def test_extension_has_no_torch_and_few_libraries(fresh: Install) -> None:
    symbols = run(["nm", "-D", "-C", fresh.module], cwd=fresh.source)
    assert "PyInit__native" in symbols
    assert not re.findall(r".*(?:\bc10\b|\bat::|\btorch\b|_ZN2at|libtorch).*", symbols)
    dynamic = run(["readelf", "-d", fresh.module], cwd=fresh.source)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", dynamic))
    assert "libc" in needed
    assert needed <= {"libc", "libm", "libstdc++", "libgcc_s", "libgomp", "libpthread", "ld-linux-x86-64",
                      "ld-linux-aarch64"}  # fmt: skip
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_extension_exports_only_its_entry_point(fresh: Install) -> None:
    defined = run(["nm", "-D", "--defined-only", fresh.module], cwd=fresh.source)
    strong = [line.split()[-1] for line in defined.splitlines() if line.split()[-2] == "T"]
    assert strong == ["PyInit__native"]


@pytest.fixture(scope="module")
def build_tree() -> Path:
    """Of the extension in this checkout, with every instruction set."""
    from trecvit_kernels import _native

    module = Path(_native.__file__)
    tree = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
    assert filecmp.cmp(module, tree / module.name, shallow=False), f"{module} is not what {tree} made"
    return tree


# A shared inline function (a template of a header, or of the standard library) that is emitted in an object
# with wider instructions can be the copy that the linker keeps for everybody: an older machine dies of it.


def shareable_functions(objects: Sequence[Path], isa: str) -> list[str]:
    """Weak functions and unique objects, unless their name is of the instruction set's namespace."""
    out = run(["nm", "--defined-only", *objects], cwd=objects[0].parent)
    own = f"{len(isa)}{isa}"  # how C++ mangles the namespace
    symbols = [line.split() for line in out.splitlines() if len(line.split()) == 3]
    return [name for _, kind, name in symbols if kind in ("W", "u") and own not in name]


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_emit_nothing_that_another_set_could_share(build_tree: Path, isa: str) -> None:
    objects = sorted(build_tree.glob(f"CMakeFiles/kernels_{isa}.dir/**/*.o"))
    rooms = {path.parent.name for path in (ROOT / "csrc").glob("*/cpu.cpp")}
    assert {path.parent.name for path in objects} == rooms
    assert rooms
    assert shareable_functions(objects, isa) == []


def test_a_shareable_function_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cpp"
    source.write_text(
        "template <class T> __attribute__((noinline)) T shared(T x) { return x * x; }\n"
        "namespace trecvit { namespace avx2 {\n"
        "template <class T> __attribute__((noinline)) T own(T x) { return x + x; }\n"
        "float kernel(float x) { return own(shared(x)); }\n"
        "} }\n"
    )
    run(["c++", "-O3", "-c", source, "-o", tmp_path / "kernel.o"], cwd=tmp_path)
    assert shareable_functions([tmp_path / "kernel.o"], "avx2") == ["_Z6sharedIfET_S0_"]


def test_the_lowest_instruction_set_is_linked_first(build_tree: Path) -> None:
    ninja = (build_tree / "build.ninja").read_text()
    (link,) = re.findall(r"^build _native\S*\.so: (.*?)\|", ninja, re.MULTILINE)
    targets = re.findall(r"CMakeFiles/(\w+)\.dir/", link)
    order = ["host", *(f"kernels_{isa}" for isa in ISAS)]
    assert [target for target in dict.fromkeys(targets) if target != "kernels_cuda"] == order
