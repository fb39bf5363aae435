"""Builds the kernel library for Volta (sm_70), which nvcc dropped with CUDA 13: by clang's CUDA front end,
with the assembler, headers and runtime of CUDA 12.

    apt install clang-19 && pip install 'cuda-nn[volta]'
    python -m cuda.nn.volta                                  # build/volta/libcuda_nn.so
    CUDA_NN_BUILD=build/volta cuda-nn train --device cuda

Where a whole CUDA 12 toolkit is installed, none of this is needed: CUDA_HOME=... python -m cuda.nn.build.

Not yet run on hardware: what is checked is that everything compiles, is assembled for sm_70, and loads."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda.nn import build
from cuda.nn.emulator import toolchain
from cuda.nn.errors import DeviceError

CLANGS = ("clang++-19", "clang++-20", "clang++-21", "clang++-18", "clang++")
PARTS = ("cuda_nvcc", "cuda_runtime", "cuda_cccl")        # folders of NVIDIA's packages for CUDA 12
# clang 19 speaks to CUDA 12's fatbinary, which is in no package; that of CUDA 13 has other words for it.
FATBINARY = """#!/bin/sh
for word; do
    shift
    case $word in
        --image=profile=compute_*) kind=ptx; rest=${{word#*compute_}};;
        --image=profile=sm_*) kind=elf; rest=${{word#*profile=sm_}};;
        *) kind=;;
    esac
    [ -z "$kind" ] || word="--image3=kind=$kind,sm=${{rest%%,*}},${{rest#*,}}"
    set -- "$@" "$word"
done
exec {fatbinary} "$@"
"""
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-cuda-version", "-Wno-pass-failed")


def toolkit(folder: Path) -> Path:
    """A folder laid out as clang expects a CUDA toolkit, of links into the packages."""
    parts = [_part(name) for name in PARTS]
    fatbinary = toolchain.find("fatbinary")
    if fatbinary is None:
        raise DeviceError(f"fatbinary not found, which comes with nvcc 13: {toolchain.PACKAGES}")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("include", "bin"):
        (folder / name).mkdir(parents=True)
    for part in parts:
        for entry in sorted((part / "include").iterdir()):
            if not (folder / "include" / entry.name).exists():
                (folder / "include" / entry.name).symlink_to(entry)
    # clang's wrapper includes this header of cuRAND, and needs nothing of it.
    (folder / "include" / "curand_mtgp32_kernel.h").touch()
    (folder / "nvvm").symlink_to(parts[0] / "nvvm")
    (folder / "lib64").symlink_to(parts[1] / "lib")
    (folder / "bin" / "ptxas").symlink_to(parts[0] / "bin" / "ptxas")
    (folder / "bin" / "fatbinary").write_text(FATBINARY.format(fatbinary=fatbinary))
    (folder / "bin" / "fatbinary").chmod(0o755)
    return folder


def _part(name: str) -> Path:
    for place in sys.path:
        if (found := Path(place or ".") / "nvidia" / name).is_dir():
            return found.absolute()
    raise DeviceError(f"nvidia/{name} of CUDA 12 is no Python package here: pip install 'cuda-nn[volta]'")


def clang() -> str:
    for name in CLANGS:
        if found := shutil.which(name):
            return found
    raise DeviceError("clang not found; Debian, Ubuntu: apt install clang-19")


def ninja_rules(folder: Path, only: Sequence[str]) -> str:
    csrc, home = build.source_folder(), folder / "toolkit"
    includes = f"-I{csrc} -I{csrc / 'include'} -isystem {home / 'include'}"
    exports = csrc / "library" / "exports.map"
    lines = [
        f"clang = {clang()} {' '.join(FLAGS)} {includes}",
        "rule cpp",
        "  command = $clang -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule cuda",
        f"  command = $clang -x cuda --cuda-path={home} --offload-arch=sm_70 -include device/clang.cuh "
        "-MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        # kernels for another architecture alone: their launchers, which others call into, and no device code
        "rule launchers",
        f"  command = $clang -Wno-unknown-attributes -x cuda --cuda-path={home} --cuda-host-only "
        "-include device/clang.cuh -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        f"  command = {clang()} -shared -Wl,--version-script={exports} $in $cudart -o $out",
        "  description = $out",
    ]
    objects = []
    for source in build.sources(only):
        made = folder / "objects" / source.relative_to(csrc).with_suffix(".o")
        objects.append(str(made))
        lines.append(f"build {made}: {rule_of(source)} {source}")
    lines += [f"build {folder / build.LIBRARY}: link {' '.join(objects)} | {exports}",
              f"  cudart = {home}/lib64/libcudart_static.a -ldl -lrt -pthread"]
    return "\n".join(lines) + "\n"


def rule_of(source: Path) -> str:
    if source.suffix != ".cu":
        return "cpp"
    return "cuda" if build.targets_of(source, ["70"]) == ["70"] else "launchers"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda.nn.volta", description="Build for Volta (sm_70).")
    parser.add_argument("--folder", type=Path, help="where to; build/volta")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAMILY", help="kernel families; or all")
    given = parser.parse_args(argv)
    folder = (given.folder or build.default_folder().parent / "volta").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        toolkit(folder / "toolkit")
        build.write_if_other(folder / "build.ninja", ninja_rules(folder, given.only))
        build.finish(*build.run_ninja(folder, progress=True))
        print(folder)
    except DeviceError as error:
        print(f"cuda-nn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
