"""Builds the native kernels with a C++20 compiler and ninja: the module for this Python, or the test program.

    python csrc/native/build.py                            # make native: nn/backends/native/nn_native.*.so
    python csrc/native/build.py --tests --sanitize thread  # build/native-thread/native_tests, without Python

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
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "nn_native"
FLAGS = ("-std=c++20", "-O3", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-Wall", "-Wextra", "-Wshadow")
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
AVX512_BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
# name: (number in core/types.h, flags).  A level added here is added there and in core/cpu.cpp.
LEVELS: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "x86_64": {
        "generic": (0, ("-O2",)),               # few processors have no more: not worth the time of -O3
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
# Levels that few kernels gain from have only these; the table takes the others from the level below.
ONLY = {"amx": ("attention", "attention_backward", "ceiling", "grouped", "grouped_backward",
                "linear_cross_entropy", "matmul", "packed", "packed_experts")}
SANITIZERS = {"": (), "thread": ("-fsanitize=thread",),
              "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")}


class BuildError(Exception):
    """Why it could not be built."""


@dataclass(frozen=True)
class Options:
    folder: Path                                # of objects
    output: Path                                # what is linked
    tests: bool = False
    sanitize: str = ""
    levels: tuple[str, ...] = ()                # all of the machine's by default


def machine() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name if name in LEVELS else "other")


def compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler found (g++ 11 or clang++ 14 and newer will do)")


def ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found:
        return found
    try:
        import ninja as package
    except ImportError:
        raise BuildError("ninja not found; pip install ninja") from None
    return str(Path(package.BIN_DIR) / "ninja")


def python_flags() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 not found; pip install pybind11") from None
    folders = [pybind11.get_include(), sysconfig.get_path("include")]
    if not (Path(folders[1]) / "Python.h").is_file():
        raise BuildError(f"Python.h is not in {folders[1]}; install Python's headers (python3-dev)")
    return [f"-isystem {folder}" for folder in folders]


def module_path(folder: Path) -> Path:
    return folder / (MODULE + sysconfig.get_config_var("EXT_SUFFIX"))


def rules(options: Options) -> str:
    """build.ninja.  Everything that a result depends on is in its command or among its inputs."""
    flags = [*FLAGS, *SANITIZERS[options.sanitize], f"-I{HERE}"]
    if options.sanitize:
        flags += ["-O1", "-fno-omit-frame-pointer"]
    shared = [] if options.tests else ["-shared"]
    if sys.platform == "darwin" and not options.tests:
        shared += ["-undefined", "dynamic_lookup"]
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join(flags)}",
        "rule compile",
        "  command = $cxx $flags $own -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in $level",
        "rule link",
        f"  command = $cxx {' '.join([*SANITIZERS[options.sanitize], *shared])} $in -o $out -pthread",
        "  description = $out",
    ]
    objects: list[Path] = []

    def compile_one(source: Path, level: str, own: list[str]) -> None:
        made = options.folder / "objects" / level / source.relative_to(HERE).with_suffix(".o")
        objects.append(made)
        lines.extend([f"build {made}: compile {source}", f"  own = {' '.join(own)}", f"  level = {level}"])

    for source in sorted((HERE / "core").glob("*.cpp")):
        compile_one(source, "core", [])
    found = LEVELS[machine()]
    for level in options.levels or found:
        number, own = found[level]
        for source in sorted((HERE / "kernels").glob("*.cpp")):
            if source.stem not in ONLY.get(level, (source.stem,)):
                continue
            # GCC warns of its own intrinsics (bug 105593).
            compile_one(source, level, [*own, f"-DNN_LEVEL={level}", f"-DNN_LEVEL_NUMBER={number}",
                                        "-Wno-maybe-uninitialized"])
    for source in sorted((HERE / ("tests" if options.tests else "module")).glob("*.cpp")):
        compile_one(source, "tests" if options.tests else "module", [] if options.tests else python_flags())
    lines.append(f"build {options.output}: link {' '.join(map(str, objects))}")
    return "\n".join(lines) + "\n"


def build(options: Options, *, quiet: bool = False) -> Path:
    """Brings the output up to date; BuildError says what is missing or what the compiler said."""
    options.folder.mkdir(parents=True, exist_ok=True)
    text, file = rules(options), options.folder / "build.ninja"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    command = [ninja(), "-C", str(options.folder), *(["--quiet"] if quiet else [])]
    done = subprocess.run(command, capture_output=quiet, text=True, check=False)
    if done.returncode:
        raise BuildError("the native kernels could not be built\n" + (done.stdout or "")[:8000])
    return options.output


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
    parser.add_argument("--levels", nargs="+", default=[], help=" ".join(LEVELS[machine()]))
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
