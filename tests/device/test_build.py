"""How the kernel library is built: what is compiled for which device, again when, and what failures say."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from cuda.nn import build, machine_code
from cuda.nn.build import EMULATED, LIBRARY, Options
from cuda.nn.emulator import fatbin, resources, toolchain
from cuda.nn.errors import DeviceError, NoDeviceError
from cuda.nn.library import Library

ROOT = Path(__file__).parents[2]
NVCC = """#!{python}
import pathlib, re, sys
words = sys.argv[1:]
if "--list-gpu-code" in words:
    print("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", sep="\\n")
elif "--version" in words:
    print((pathlib.Path(__file__).parent / "version").read_text())
else:
    source, out = pathlib.Path(words[words.index("-c") + 1]), pathlib.Path(words[words.index("-o") + 1])
    text = source.read_text()
    if "error" in text:
        print(*(f"{{source}}({{n}}): error: wrong" for n in range(100)), sep="\\n")
        sys.exit(2)
    out.write_text(" ".join(words))
    headers = re.findall('#include "(.*)"', text)
    csrc = next(word[2:] for word in words if word.startswith("-I"))
    needed = " ".join(f"{{csrc}}/{{header}}" for header in headers)
    pathlib.Path(f"{{out}}.d").write_text(f"{{out}} : {{source}} {{needed}}")
    with open(pathlib.Path(__file__).parent / "log", "a") as log:
        print(source.name, file=log)
"""
LINKER = '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho linked > "$2"\n'


class Toolkit:
    """A stand-in for nvcc and the linker, and sources of one line each."""

    def __init__(self, place: Path) -> None:
        self.place, self.csrc = place, place / "csrc"
        self.write("toolkit/bin/nvcc", NVCC.format(python=sys.executable)).chmod(0o755)
        self.write("toolkit/bin/g++", LINKER).chmod(0o755)
        self.write("toolkit/bin/version", "Build 1")
        for name in ("include/cuda_runtime_api.h", "lib64/libcudart.so.13", "lib64/libcudart_static.a"):
            self.write(f"toolkit/{name}", "")
        self.write("csrc/include/nn.h", "")
        self.write("csrc/library/error.cpp", "")
        self.write("csrc/library/exports.map", "")
        self.write("csrc/device/shared.cuh", "")
        self.write("csrc/kernels/norm.cu", '#include "device/shared.cuh"\n')
        self.write("csrc/kernels/gemm/tiled.cu", "")
        self.write("csrc/kernels/gemm/wgmma_sm90a.cu", "")

    def write(self, name: str, text: str) -> Path:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def compiled(self) -> set[str]:
        """Since the last time."""
        log = self.place / "toolkit" / "bin" / "log"
        found = set(log.read_text().split()) if log.exists() else set()
        log.unlink(missing_ok=True)
        return found


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toolkit]:
    found = Toolkit(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("CXX", str(tmp_path / "toolkit" / "bin" / "g++"))
    monkeypatch.setenv("CUDA_NN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_NN_BUILD", raising=False)
    monkeypatch.setattr(build, "checkout", lambda: tmp_path)
    toolchain.version.cache_clear()
    build.accepted.cache_clear()
    yield found
    toolchain.version.cache_clear()
    build.accepted.cache_clear()


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path / "build" / "cuda")


# ---- what is compiled for what -----------------------------------------------------------------------------


def test_one_pass_of_the_front_end_serves_several_targets() -> None:
    assert build.generate(["75", "80", "86", "89"], ptx_only=False) == (
        "-gencode=arch=compute_75,code=[sm_75,compute_75] "
        "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89,compute_80]"
    )
    assert build.generate(["86"], ptx_only=True) == "-gencode=arch=compute_80,code=[compute_80]"
    assert build.generate(["90a"], ptx_only=True) == "-gencode=arch=compute_90a,code=[compute_90a]"


ALONE = re.compile(r"wgmma|_sm90a")         # what files for sm_90a alone are made of


def test_no_source_asks_for_a_target_that_shares_the_pass_of_another() -> None:
    passes = {f"{target}0" for target in build.TARGETS if build.FRONT_ENDS.get(target, target) == target}
    assert passes >= {"750", "800", "1200"}
    assert "900" not in passes
    for path in sorted(build.source_folder().rglob("*.[ch]u*")):
        if "emulator" not in path.parts and not ALONE.search(path.name):
            asked = set(re.findall(r"__CUDA_ARCH__\s*[<>=!]=?\s*(\d+)", path.read_text()))
            assert asked <= passes, path


@pytest.mark.parametrize(("name", "targets", "expected"), [
    ("tiled.cu", ["80"], ["80"]),
    ("tiled.cu", ["80", "90", "90a"], ["80", "90"]),
    ("tiled.cu", ["90a"], ["90a"]),
    ("wgmma_sm90a.cu", ["75", "80", "90"], ["90a"]),
    ("error.cpp", ["80"], []),
])
def test_files_for_sm90a_are_for_that_alone(name: str, targets: list[str], expected: list[str]) -> None:
    assert build.targets_of(Path(name), targets) == expected


def test_targets_that_the_compiler_dropped_are_named(toolkit: Toolkit) -> None:
    kept, said = build.available(build.TARGETS)
    assert kept == ("75", "80", "86", "89", "90", "90a", "100", "120")
    assert said == "left out: sm_70, which nvcc (Build 1) does not know"
    with pytest.raises(DeviceError, match="sm_70: nvcc .* compiles for none of these"):
        build.available(["70"])
    with pytest.raises(DeviceError, match="--targets 81: not one of 70 75"):
        build.available(["80", "81"])


def test_a_family_is_a_file_or_a_folder(toolkit: Toolkit) -> None:
    names = [path.name for path in build.sources(["gemm"])]
    assert names == ["error.cpp", "tiled.cu", "wgmma_sm90a.cu"]
    with pytest.raises(DeviceError, match="no kernel family gem in "):
        build.sources(["gem"])


@pytest.mark.slow
def test_a_family_for_every_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `make cuda` makes of one file, by the real compiler: an image per architecture, the newest's
    PTX, everything compressed; and a library that says on a machine without a GPU that there is none."""
    monkeypatch.delenv("CUDA_NN_BUILD", raising=False)
    folder = build.build(Options(tmp_path / "build", only=("rope",)))           # one file
    (unit,) = machine_code.containers(folder / LIBRARY)
    numbers = {int(target) for target in build.accepted() if target != "90a"}
    code = [image for image in unit if image.kind == fatbin.ELF]
    assert {image.arch for image in code} == numbers
    assert {image.arch for image in unit if image.kind == fatbin.PTX} == {75, 80, max(numbers)}
    assert all(image.compression for image in unit)
    assert all(image.image().startswith(b"\x7fELF") for image in code)
    if not Path("/dev/nvidiactl").exists():
        library, count = Library(folder / LIBRARY), ctypes.c_int32(-1)
        library.nn_device_count(ctypes.byref(count))
        assert count.value == 0


@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_100", "sm_120"])
def test_a_tensor_core_kernel_is_assembled_where_no_gate_looks(arch: str) -> None:
    """tests/device/test_static.py reads all kernels for sm_75, sm_80 and sm_90; here one file for others."""
    units = machine_code.containers(build.emulated_library())
    texts = [fatbin.choose(unit, "sm_80") for unit in units if any(image.arch == 80 for image in unit)]
    (ptx,) = (text for text in texts if "gemm_mma" in text and ".tf32" in text)
    found = resources.read_resources(ptx, arch)
    assert found
    assert {name: one for name, one in found.items() if one.spills or one.stack_bytes} == {}


# ---- what is compiled again --------------------------------------------------------------------------------


def test_only_what_changed_is_compiled_again(toolkit: Toolkit, options: Options) -> None:
    build.build(options)
    assert toolkit.compiled() == {"error.cpp", "norm.cu", "tiled.cu", "wgmma_sm90a.cu"}
    assert {(options.folder / name).read_text() for name in (LIBRARY, EMULATED)} == {"linked\n"}
    build.build(options)
    assert toolkit.compiled() == set()
    touch(toolkit.csrc / "device" / "shared.cuh")
    build.build(options)
    assert toolkit.compiled() == {"norm.cu"}
    toolkit.write("csrc/kernels/new.cu", "")
    build.build(options)
    assert toolkit.compiled() == {"new.cu"}


def touch(path: Path) -> None:
    os.utime(path)


def test_other_flags_or_another_compiler_compile_all_again(
    toolkit: Toolkit, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(options)
    toolkit.compiled()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DMORE"))
    build.build(options)
    assert len(toolkit.compiled()) == 4
    touch(toolkit.write("toolkit/bin/version", "Build 2"))
    toolchain.version.cache_clear()
    build.build(options)
    assert len(toolkit.compiled()) == 4


# ---- which library is used ---------------------------------------------------------------------------------


def test_a_build_in_the_checkout_is_used_while_it_is_up_to_date(toolkit: Toolkit, options: Options) -> None:
    build.build(options)
    assert build.gpu_library() == options.folder / LIBRARY
    assert build.emulated_library() == options.folder / EMULATED
    touch(toolkit.csrc / "kernels" / "norm.cu")
    found = build.emulated_library()
    assert found.parent != options.folder
    assert toolkit.place / "cache" in found.parents
    toolkit.compiled()
    assert build.emulated_library() == found
    assert toolkit.compiled() == set()


def test_a_partial_build_is_used_only_where_it_is_named(
    toolkit: Toolkit, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(Options(options.folder, ("80",), ("gemm",)))
    assert build.emulated_library().parent != options.folder
    monkeypatch.setenv("CUDA_NN_BUILD", str(options.folder))
    toolkit.compiled()
    assert build.emulated_library() == options.folder / EMULATED
    assert build.gpu_library() == options.folder / LIBRARY
    assert toolkit.compiled() == set()


def test_the_emulated_device_builds_its_library_and_says_so_once(
    toolkit: Toolkit, capsys: pytest.CaptureFixture[str]
) -> None:
    build.note.cache_clear()
    for _ in range(2):
        assert build.emulated_library().is_file()
    assert capsys.readouterr().err.count("building the kernel library for the emulated device in ") == 1
    objects = list((toolkit.place / "cache").rglob("tiled.o"))
    assert "code=[compute_75]" in objects[0].read_text()
    assert "sm_75" not in objects[0].read_text()
    assert "compress-all" not in objects[0].read_text()


def test_what_is_not_there_is_an_error_with_the_way_out(
    toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoDeviceError, match=rf"no {LIBRARY} in .*; build it: python -m cuda\.nn\.build"):
        build.gpu_library()
    monkeypatch.setenv("CUDA_NN_BUILD", str(toolkit.place / "nowhere"))
    for find in (build.gpu_library, build.emulated_library):
        with pytest.raises(NoDeviceError, match="is not there, and CUDA_NN_BUILD names its folder; "):
            find()


# ---- failures ----------------------------------------------------------------------------------------------


def test_what_the_compiler_refuses_is_shown_from_its_first_line(toolkit: Toolkit, options: Options) -> None:
    toolkit.write("csrc/kernels/norm.cu", "error")
    with pytest.raises(DeviceError, match="the kernel library could not be built:\n") as caught:
        build.build(options)
    lines = str(caught.value).splitlines()
    assert any(line.endswith("norm.cu(0): error: wrong") for line in lines[:5])
    assert len(lines) == build.SHOWN_LINES + 2
    assert re.fullmatch(r"\.\.\. and \d+ more lines", lines[-1])


def test_without_ninja(toolkit: Toolkit, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "ninja" else name)
    with pytest.raises(DeviceError, match="ninja not found, .* pip install ninja"):
        build.build(options)


def test_without_nvcc(toolkit: Toolkit, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find", lambda tool: None)
    with pytest.raises(DeviceError, match="nvcc not found .* pip install 'cuda-nn\\[toolchain\\]'"):
        build.build(options)


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command(toolkit: Toolkit, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--targets", "70", "80", "--only", "norm"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{toolkit.place / 'build' / 'cuda'}\n"
    assert "left out: sm_70" in err
    assert re.search(r"^\[\d/4, .* s\] .*norm\.cu$", err, re.MULTILINE)
    assert build.main(["--only", "nothing"]) == 1
    assert "cuda-nn: no kernel family nothing" in capsys.readouterr().err


def test_an_empty_cuda_path_builds_nothing_for_gpus(
    toolkit: Toolkit, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build.note.cache_clear()
    monkeypatch.setenv("CUDA_PATH", "")
    assert build.main([]) == 0
    assert f'CUDA_PATH="": no {LIBRARY} is built' in capsys.readouterr().err
    assert (options.folder / EMULATED).is_file()
    assert not (options.folder / LIBRARY).exists()


# ---- the wheel ---------------------------------------------------------------------------------------------

OLD = int(version("setuptools").partition(".")[0]) < 77
needs_setuptools = pytest.mark.skipif(OLD, reason="wheels are built with setuptools 77 or newer")
WHEEL = "from setuptools import build_meta; build_meta.build_wheel(__import__('sys').argv[1])"


def wheel(place: Path, **environment: str) -> Path:
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nn", "cuda", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(source / "csrc" / "kernels")
    (source / "csrc" / "kernels").mkdir()
    shutil.copy(ROOT / "csrc" / "device" / "number.cuh", source / "csrc" / "kernels" / "one.cu")
    environment |= {"CUDA_NN_BUILD_NATIVE": "0"}                      # tests/native/test_build.py
    done = subprocess.run([sys.executable, "-c", WHEEL, place], cwd=source, env=os.environ | environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(place.glob("*.whl"))


def unpacked(wheel: Path, place: Path, code: str, **environment: str) -> str:
    """What a program says that runs on the unpacked wheel."""
    shutil.unpack_archive(wheel, place, "zip")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{code}"], cwd=place,
                          env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_setuptools
def test_a_wheel_without_a_library_carries_the_sources(tmp_path: Path) -> None:
    found = wheel(tmp_path, CUDA_NN_BUILD_CUDA="0")
    assert found.name.endswith("-py3-none-any.whl")
    code = ("from cuda.nn import build\nprint(build.source_folder(), build.default_folder(), sep='\\n')\n"
            "print(*(path.name for path in build.sources()))")
    sources, folder, names = unpacked(
        found, tmp_path / "there", code, CUDA_NN_BUILD="", CUDA_NN_CACHE=str(tmp_path / "cache")).splitlines()
    assert Path(sources) == tmp_path / "there" / "cuda" / "nn" / "csrc"
    assert tmp_path / "cache" in Path(folder).parents
    assert {"error.cpp", "runtime.cpp", "one.cu"} <= set(names.split())


@needs_setuptools
@pytest.mark.slow
def test_a_wheel_with_the_library_in_it(tmp_path: Path) -> None:
    found = wheel(tmp_path, CUDA_NN_BUILD_CUDA="1", CUDA_PATH=str(toolchain.nvcc().parents[1]))
    assert re.search(r"-py3-none-linux_\w+\.whl$", found.name)
    code = "from cuda.nn import build\nprint(build.gpu_library(), build.emulated_library(), sep='\\n')"
    libraries = unpacked(found, tmp_path / "there", code, CUDA_NN_BUILD="").splitlines()
    place = tmp_path / "there" / "cuda" / "nn" / "lib"
    assert libraries == [str(place / LIBRARY), str(place / EMULATED)]


# ---- the namespace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [("cuda.nn.device", "cuda.pathfinder"),
                                             ("cuda.pathfinder", "cuda.nn.device")])
def test_nvidias_packages_live_beside_ours(first: str, then: str) -> None:
    """CuPy brings cuda.pathfinder along, which is installed here by itself."""
    files = "cuda.pathfinder.__file__, cuda.nn.__file__, cuda.__file__"
    code = f"import {first}, {then}; print({files}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs, ours, neither = done.stdout.splitlines()
    assert "site-packages" in theirs
    assert Path(ours) == ROOT / "cuda" / "nn" / "__init__.py"
    assert neither == "None"                             # no package of either side's
