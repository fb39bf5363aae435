"""Where nvcc, ptxas, cuobjdump and the host compiler are: on PATH, under $CUDA_HOME, or in pinned PyPI
packages.

    toolchain.nvcc()              # Path, or EmulatorError saying what to install
    toolchain.cuobjdump()         # Path, or None: it is optional

A tool is looked for in $CUDA_HOME/bin, on PATH, in /usr/local/cuda/bin and in site-packages/nvidia/cu*/bin,
in that order."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from cuda.nn.emulator.errors import EmulatorError

PACKAGES = "pip install 'cuda-nn[toolchain]'"


def nvcc() -> Path:
    """NVIDIA's compiler.  EmulatorError where there is none."""
    return _required("nvcc", "it compiles .cu files")


def ptxas() -> Path:
    """NVIDIA's assembler, which comes with nvcc.  EmulatorError where there is none."""
    return _required("ptxas", "it assembles PTX, and tells registers and spills")


def cuobjdump() -> Path | None:
    """NVIDIA's disassembler, if it can run: it needs nvdisasm beside it or on PATH."""
    found = find("cuobjdump")
    return found if found and find("nvdisasm") else None


def cuda_include() -> Path:
    """The folder of CUDA's headers, from which the stand-in runtime takes its types.  EmulatorError where
    there is none."""
    for folder in _folders():
        for include in (folder.parent / "include", folder.resolve().parent / "include"):
            if (include / "cuda_runtime_api.h").is_file():
                return include
    raise EmulatorError(
        "cuda_runtime_api.h not found beside nvcc, in $CUDA_HOME/include, /usr/local/cuda/include or "
        "Python's "
        f"packages, and the emulator's runtime is built with it. Install the CUDA toolkit 13, or its parts: "
        f"{PACKAGES}"
    )


def host_compiler() -> str:
    """The C++17 compiler for translated kernels: $CXX, g++, c++ or clang++.  EmulatorError where there is
    none."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise EmulatorError(
        "no C++ compiler found, and translated kernels are compiled by one; install g++ "
        "(Debian, Ubuntu: apt install g++), or set CXX to a C++17 compiler"
    )


def find(tool: str) -> Path | None:
    """The first executable of that name, or None."""
    for folder in _folders():
        if os.access(path := folder / tool, os.X_OK) and path.is_file():
            return path
    return None


@lru_cache
def version(tool: Path) -> str:
    """The last line that says a version, e.g. "Build cuda_13.0.r13.0/compiler.36424714_0"."""
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise EmulatorError(f"{tool} --version failed with status {done.returncode}", done.stderr)
    return lines[-1]


@lru_cache
def compiler_version(command: str) -> str:
    """What identifies a host compiler: the first line of its --version."""
    done = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [command])[0]


def _required(tool: str, purpose: str) -> Path:
    if found := find(tool):
        return found
    raise EmulatorError(
        f"{tool} not found ({purpose}): it is neither on PATH nor in $CUDA_HOME/bin, /usr/local/cuda/bin "
        f"or Python's packages. Install the CUDA toolkit 13, or the compiler alone: {PACKAGES}"
    )


def _folders() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home) / "bin"
    yield from map(Path, os.get_exec_path())
    yield Path("/usr/local/cuda/bin")
    for place in sys.path:  # PyPI: nvidia-cuda-nvcc and its sisters
        yield from sorted(Path(place or ".").glob("nvidia/cu[0-9]*/bin"), reverse=True)
