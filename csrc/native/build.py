"""Builds the native kernels with a C++20 compiler and ninja: the module for this Python, or the test program.

    python csrc/native/build.py                            # make native: nn/backends/native/nn_native.*.so
    python csrc/native/build.py --tests --sanitize thread  # build/native-thread/native_tests, without Python
    CXX=aarch64-linux-gnu-g++ python csrc/native/build.py --tests --folder build/arm    # of another machine

Every file in kernels/ is compiled once per level of instructions, everything else for the machine's baseline:
what comes out runs on any processor of its kind (no -march=native), and chooses its level when it starts.
Only the standard library is used: setup.py runs this file where nothing is installed yet."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "nn_native"
FLAGS = ("-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-Wall", "-Wextra", "-Wshadow")
# What no time is lost in is compiled quickly: tests, and everything under a checker.
OPTIMIZED, QUICK = "-O3", "-O1"
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
AVX512_BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
# name: (number in core/types.h, flags).  A level added here is added there and in core/cpu.cpp.
LEVELS: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "x86_64": {
        "generic": (0, ()),
        "avx2": (1, AVX2),
        "avx512": (2, AVX512),
        "avx512_bf16": (3, AVX512_BF16),
        "amx": (4, (*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8")),
    },
    "aarch64": {
        "generic": (0, ()),                     # has NEON
        "neon_bf16": (5, ("-march=armv8.2-a+bf16+i8mm+dotprod",)),
    },
    "other": {"generic": (0, ())},
}
LESS = {"generic": "-O2"}                       # few processors have no more: not worth the time of -O3
# Levels that few kernels gain from have only these; the table takes the others from the level below.
ONLY = {"amx": ("attention", "attention_backward", "ceiling", "grouped", "grouped_backward",
                "linear_cross_entropy", "matmul", "packed", "packed_experts")}
SANITIZERS = {"": (), "thread": ("-fsanitize=thread",),
              "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")}


class BuildError(Exception):
    """Why it could not be built."""


@dataclass(frozen=True)
class Options:
    folder: Path                                # of objects; absolute, as is
    output: Path                                # what is linked
    tests: bool = False
    sanitize: str = ""
    levels: tuple[str, ...] = ()                # all of the machine's by default


def machine() -> str:
    """What the compiler makes code for: another machine than this one where CXX is a cross compiler."""
    asked = subprocess.run([compiler(), "-dumpmachine"], capture_output=True, text=True, check=False)
    if asked.returncode and os.environ.get("CXX"):
        raise BuildError(f"{compiler()} -dumpmachine does not say what it makes code for: "
                         + asked.stderr[:400])
    name = (asked.stdout.strip() or platform.machine()).split("-")[0].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name if name in LEVELS else "other")


def compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler found (g++ 11 or clang++ 14 and newer will do)")


def precompiles() -> bool:
    """Whether the header of all kernels is read once per level: reading intrinsics takes a second.  ccache
    keeps nothing of what includes one; clang wants other options."""
    path = Path(shutil.which(compiler()) or compiler())
    if path.resolve().name == "ccache":
        return False
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return "Free Software Foundation" in said


def ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found:
        return found
    try:
        import ninja as package
    except ImportError:
        raise BuildError("ninja not found; pip install ninja") from None
    return str(Path(package.BIN_DIR) / "ninja")


def python_includes() -> tuple[Path, str, Path]:
    """The folder of pybind11's headers, their version, and the folder of Python's."""
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 not found; pip install pybind11") from None
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").is_file():
        raise BuildError(f"Python.h is not in {python}; install Python's headers (python3-dev)")
    return Path(pybind11.get_include()), pybind11.__version__, python


def python_flags(folder: Path) -> str:
    """With pybind11's headers copied: pip builds in an environment whose path is another each time, which
    would compile the module anew."""
    pybind11, version, python = python_includes()
    copy = folder / f"pybind11-{version}"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            shutil.copytree(pybind11 / "pybind11", Path(made, "include", "pybind11"))
            with suppress(OSError):             # another build was first
                Path(made, "include").rename(copy)
    return f"-isystem {copy.name} -isystem {python}"


def module_path(folder: Path) -> Path:
    return folder / (MODULE + sysconfig.get_config_var("EXT_SUFFIX"))


class Rules:
    """build.ninja.  Everything that a result depends on is in its command or among its inputs.  Paths are
    relative to the folder: moved together with the sources, what is built stays up to date."""

    def __init__(self, options: Options) -> None:
        self.options, self.objects = options, list[str]()
        flags = [*FLAGS, *SANITIZERS[options.sanitize], f"-I{self.relative(HERE)}"]
        if options.sanitize:
            flags.append("-fno-omit-frame-pointer")
        shared = [] if options.tests else ["-shared"]
        if sys.platform == "darwin" and not options.tests:
            shared += ["-undefined", "dynamic_lookup"]
        self.lines = [
            f"cxx = {compiler()}",
            f"flags = {' '.join(flags)}",
            "rule compile",
            "  command = $cxx $flags $own -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in $level",
            "rule precompile",
            "  command = $cxx $flags $own -MD -MF $out.d -x c++-header -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
            "rule link",
            f"  command = $cxx {' '.join([*SANITIZERS[options.sanitize], *shared])} $in -o $out -pthread",
            "  description = $out",
        ]

    def relative(self, path: Path) -> str:
        return os.path.relpath(path.parent.resolve() / path.name, self.options.folder.resolve())

    def compile(self, part: str, level: str, own: Sequence[str], *, only: Collection[str] = (),
                first: str = "") -> None:
        """The files of a folder, or those of these names; `first`: a header that is precompiled for them."""
        quick = self.options.sanitize or part == "tests"
        own = [QUICK if quick else LESS.get(level, OPTIMIZED), *own]
        header = self.precompile(first, level, own) if first else ""
        if header:
            own += ["-Winvalid-pch", "-include", header]
        for source in sorted((HERE / part).glob("*.cpp")):
            if only and source.stem not in only:
                continue
            made = f"objects/{level}/{source.relative_to(HERE).with_suffix('.o')}"
            self.objects.append(made)
            also = f" | {header}.gch" if header else ""
            self.lines += [f"build {made}: compile {self.relative(source)}{also}",
                           f"  own = {' '.join(own)}", f"  level = {level}"]

    def precompile(self, header: str, level: str, own: Sequence[str]) -> str:
        """What is included in the header's place."""
        place = f"objects/{level}/precompiled.h"
        (self.options.folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_if_other(self.options.folder / place, f'#include "{header}"\n')
        self.lines += [f"build {place}.gch: precompile {place}", f"  own = {' '.join(own)}"]
        return place

    def text(self) -> str:
        output = self.relative(self.options.output)
        return "\n".join([*self.lines, f"build {output}: link {' '.join(self.objects)}"]) + "\n"


def rules(options: Options) -> str:
    written, found, kernels = Rules(options), LEVELS[machine()], "kernels/kernel.h" if precompiles() else ""
    written.compile("core", "core", [])
    for level in options.levels or found:
        if level not in found:
            raise BuildError(f"{level} is not a level of {machine()}, which has {' '.join(found)}")
        number, own = found[level]
        # GCC warns of its own intrinsics (bug 105593).
        written.compile("kernels", level, [*own, f"-DNN_LEVEL={level}", f"-DNN_LEVEL_NUMBER={number}",
                                           "-Wno-maybe-uninitialized"],
                        only=ONLY.get(level, ()), first=kernels)
    if options.tests:
        written.compile("tests", "tests", [])
    else:
        written.compile("module", "module", [python_flags(options.folder)])
    return written.text()


def build(options: Options, *, quiet: bool = False) -> Path:
    """Brings the output up to date; BuildError says what is missing or what the compiler said."""
    options.folder.mkdir(parents=True, exist_ok=True)
    write_if_other(options.folder / "build.ninja", rules(options))
    command = [ninja(), "-C", str(options.folder), *(["--quiet"] if quiet else [])]
    done = subprocess.run(command, capture_output=quiet, text=True, check=False)
    if done.returncode:
        raise BuildError("the native kernels could not be built\n" + (done.stdout or "")[:8000])
    return options.output


def write_if_other(file: Path, text: str) -> None:
    """Ninja goes by times."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def default_folder() -> Path:
    """Where the module's objects are kept: a build after a change compiles what changed."""
    return ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"


def build_module(folder: Path | None = None, levels: tuple[str, ...] = (), *, quiet: bool = False) -> Path:
    """The module for this Python, beside nn/backends/native/__init__.py or in `folder`."""
    output = module_path(folder or ROOT / "nn" / "backends" / "native")
    return build(Options(default_folder(), output, levels=levels), quiet=quiet)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="the test program, without Python")
    parser.add_argument("--sanitize", choices=list(SANITIZERS), default="", help="with a checker in it")
    parser.add_argument("--levels", nargs="+", default=[], help="of these alone: " + "; ".join(
        f"{name}: {' '.join(found)}" for name, found in LEVELS.items()))
    parser.add_argument("--folder", type=Path, help="where objects, and test programs, go")
    given = parser.parse_args()
    try:
        if given.tests:
            folder = (given.folder or ROOT / "build" / f"native-{given.sanitize or 'tests'}").absolute()
            print(build(Options(folder, folder / "native_tests", True, given.sanitize, tuple(given.levels))))
        else:
            print(build_module(given.folder, tuple(given.levels)))
    except BuildError as error:
        print(f"cuda-nn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
