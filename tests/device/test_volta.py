"""The build for Volta, as far as it goes without clang and CUDA 12: its toolkit, its rules, its refusals."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda.nn import build, volta
from cuda.nn.emulator import toolchain
from cuda.nn.errors import DeviceError

FILES = (
    "cuda_nvcc/bin/ptxas", "cuda_nvcc/nvvm/libdevice/libdevice.10.bc", "cuda_nvcc/include/crt/a.h",
    "cuda_runtime/include/cuda_runtime.h", "cuda_runtime/lib/libcudart_static.a",
    "cuda_cccl/include/nv/target",
)
LAID_OUT = (
    "bin/ptxas", "include/crt/a.h", "include/cuda_runtime.h", "include/nv/target", "lib64/libcudart_static.a",
    "include/curand_mtgp32_kernel.h", "nvvm/libdevice/libdevice.10.bc",
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip would have installed."""
    for name in FILES:
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    fatbinary = tmp_path / "fatbinary"
    fatbinary.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fatbinary.chmod(0o755)
    find = toolchain.find
    monkeypatch.setattr(toolchain, "find", lambda tool: fatbinary if tool == "fatbinary" else find(tool))
    return tmp_path / "nvidia"


def test_the_toolkit_is_what_clang_expects(packages: Path, tmp_path: Path) -> None:
    for _ in range(2):                                           # again over the first
        home = volta.toolkit(tmp_path / "toolkit")
    assert [name for name in LAID_OUT if not (home / name).is_file()] == []


def test_fatbinary_is_spoken_to_in_words_of_cuda_13(packages: Path, tmp_path: Path) -> None:
    home = volta.toolkit(tmp_path / "toolkit")
    for words, spoken in (
        (["-64", "--create", "a file"], ["-64", "--create", "a file"]),
        (["--image=profile=sm_70,file=a.o"], ["--image3=kind=elf,sm=70,file=a.o"]),
        (["-64", "--image=profile=compute_70,file=a.s"], ["-64", "--image3=kind=ptx,sm=70,file=a.s"]),
    ):
        command = [home / "bin" / "fatbinary", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == spoken


def test_everything_is_compiled_for_sm_70_and_linked_with_its_runtime(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volta, "clang", lambda: "clang++-19")
    rules = volta.ninja_rules(tmp_path, [])
    kernels = [path for path in build.sources() if path.suffix == ".cu"]
    others = [path for path in kernels if path.stem.endswith("_sm90a")]
    assert others
    assert (rules.count(": launchers "), rules.count(": cuda ")) == (len(others), len(kernels) - len(others))
    assert "--cuda-host-only" in rules
    assert "--offload-arch=sm_70 -include device/clang.cuh" in rules
    assert f"cudart = {tmp_path}/toolkit/lib64/libcudart_static.a" in rules


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volta.sys, "path", [str(tmp_path)])
    with pytest.raises(DeviceError, match=r"nvidia/cuda_nvcc of CUDA 12 .*: pip install 'cuda-nn\[volta\]'"):
        volta.toolkit(tmp_path / "toolkit")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match="clang not found; Debian, Ubuntu: apt install clang-19"):
        volta.clang()
    assert os.listdir(tmp_path) == []
