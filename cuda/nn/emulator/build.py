"""Builds what runs kernels: the runtime library (csrc/emulator), and a translated module from PTX.  Both are
cached.

    runtime_library()                 # .../libcudart.so.13: fibers, checker, and the stand-in CUDA runtime
    translated_module(ptx, "check")   # .../module.so: the kernels of one PTX text, for the modes check and
    count

A program under `cuda-nn emulate` asks for its kernels by a command, which prints the path of the module:

    python -m cuda.nn.emulator.build --fatbin FILE --arch sm_80 --mode check

Status 0: done; 2: it cannot be translated (stderr says why); 3: there is no PTX that the device could run."""

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda.nn.emulator import cache, toolchain
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.names import plain_name
from cuda.nn.emulator.options import MODES

LIBRARY = "libcudart.so.13"
NO_PTX = 3  # the command's status, as csrc/emulator/cudart/translation.cpp reads it
# No contraction: PTX says itself where a multiplication and an addition are one rounding.  No strict
# aliasing: registers are untyped.
COMMON = ("-std=c++17", "-fPIC", "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off")
# Inline functions stay each library's own: a module with hooks must not get the runtime's copies without.
RUNTIME_FLAGS = (*COMMON, "-fvisibility-inlines-hidden", "-fno-semantic-interposition", "-pthread")
MODULE_FLAGS = (*COMMON, "-fvisibility=hidden", "-fno-plt", "-w")
# With hooks a kernel's time is the hooks', which are in the runtime library: -Og runs as fast and compiles in
# 55 % of the time.
LEVELS = {True: "-Og", False: "-O1"}
LINK_FLAGS = ("-shared", "-Wl,--no-undefined", "-Wl,-Bsymbolic-functions", f"-Wl,-soname,{LIBRARY}")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def source_folder() -> Path:
    """csrc/emulator: in a checkout beside `cuda`, in an installed package within it."""
    here = Path(__file__).resolve().parent
    for folder in (here / "csrc", here.parents[2] / "csrc" / "emulator"):
        if (folder / "device.h").is_file():
            return folder
    raise EmulatorError(f"the emulator's C++ sources are missing from {here / 'csrc'}; reinstall cuda-nn")


# ---- the runtime library -----------------------------------------------------------------------------------


def runtime_library() -> Path:
    """The path of the runtime library, built where it is not there.  About a minute, once per machine
    and version."""
    return _runtime_library(str(cache.root()))


@functools.cache
def _runtime_library(root: str) -> Path:
    folder = source_folder()
    sources = sorted((*folder.glob("*.cpp"), *folder.glob("cudart/*.cpp")))
    script = folder / "cudart" / "libcudart.map"
    cuda = (toolchain.cuda_include() / "cuda_runtime_api.h").read_bytes()
    keys = [cache.digest([_source_key(source, _runtime_flags(source)), cuda]) for source in sources]

    def link(made: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(_object, sources, keys))
        _compile(
            [
                *LINK_FLAGS,
                f"-Wl,--version-script={script}",
                *map(str, objects),
                "-pthread",
                "-ldl",
                "-o",
                str(made / LIBRARY),
            ],
            "the emulator's runtime library",
        )
        cache.tidy("objects")
        cache.tidy("modules")

    key = cache.digest([*keys, script.read_bytes(), " ".join(LINK_FLAGS)])
    if not cache.has("runtime", key):
        print(
            f"cuda-nn: building the emulator's runtime library in {cache.root()}: a minute or two, once",
            file=sys.stderr,
            flush=True,
        )
    return cache.entry("runtime", key, link) / LIBRARY


def _object(source: Path, key: str) -> Path:
    def make(made: Path) -> None:
        _compile(
            [
                *_runtime_flags(source),
                *_native(),
                "-I",
                str(source_folder()),
                "-isystem",
                str(toolchain.cuda_include()),
                "-c",
                str(source),
                "-o",
                str(made / "object.o"),
            ],
            f"{source.name} of the emulator",
        )

    return cache.entry("objects", key, make) / "object.o"


def _runtime_flags(source: Path) -> list[str]:
    """The stand-in for the CUDA runtime has nothing hot in it: compiled quickly.  The rest is."""
    return [*RUNTIME_FLAGS, "-O1" if source.parent.name == "cudart" else "-O3"]


def _source_key(source: Path, flags: Iterable[str]) -> str:
    """Changes with the source, any header it includes, the compiler, its flags and the processor."""
    reached = sorted(_reached(source, str(source_folder())))
    return cache.digest([*map(_contents, reached), *flags, *_machine()])


def _reached(source: Path, folder: str) -> set[Path]:
    """A source and the project's own headers that it reaches."""
    found: set[Path] = set()
    left = [source]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _included(path, Path(folder))
    return found


@functools.cache
def _included(path: Path, folder: Path) -> tuple[Path, ...]:
    """The project's own headers that a file names."""
    named = INCLUDE.findall(_contents(path).decode())
    places = ([(near / name).resolve() for near in (path.parent, folder)] for name in named)
    return tuple(next(filter(Path.is_file, two)) for two in places if any(map(Path.is_file, two)))


@functools.cache
def _contents(path: Path) -> bytes:
    return path.read_bytes()


# ---- translated modules ------------------------------------------------------------------------------------


def translated_module(ptx: str, mode: str, *, partial: bool = False) -> Path:
    """The shared library made of a PTX text, for a mode: check and count share one.

    EmulatorError for what cannot be translated; with `partial` such kernels are left out, and refused.txt
    beside it names them."""
    hooks = mode != "fast"
    library = runtime_library()
    key = cache.digest([ptx, str(hooks), str(partial), translator_key()])

    def make(made: Path) -> None:
        from cuda.nn.emulator.translate import (
            translate,  # late: the table of instructions takes a while to import
        )

        (made / "kernels.ptx").write_text(ptx, encoding="utf-8")
        translation = translate(ptx, partial=partial)
        (made / "module.cpp").write_text(translation.cpp, encoding="utf-8")
        refused = [
            f"{plain_name(name)}: {why}" for name, reasons in translation.refused.items() for why in reasons
        ]
        (made / "refused.txt").write_text("".join(f"{line}\n" for line in refused), encoding="utf-8")
        _compile(
            [
                *_module_flags(hooks),
                "-I",
                str(_precompiled(hooks)),
                "-I",
                str(source_folder()),
                "-shared",
                str(made / "module.cpp"),
                "-L",
                str(library.parent),
                f"-l:{LIBRARY}",
                "-o",
                str(made / "module.so"),
            ],
            "the translated kernels",
        )

    return cache.entry("modules", key, make) / "module.so"


def _module_flags(hooks: bool) -> list[str]:
    return [*MODULE_FLAGS, LEVELS[hooks], f"-DEMU_HOOKS={int(hooks)}", *_native()]


def _precompiled(hooks: bool) -> Path:
    """A folder with device.h precompiled, which g++ prefers to the text: 0.2 s less for every module, of
    about 0.5 s."""
    header = source_folder() / "device.h"

    def make(made: Path) -> None:
        _compile(
            [*_module_flags(hooks), "-x", "c++-header", str(header), "-o", str(made / "device.h.gch")],
            "device.h",
        )

    return cache.entry("headers", _source_key(header, _module_flags(hooks)), make)


@functools.cache
def translator_key() -> str:
    """Changes with everything but the PTX that decides what a translated module is."""
    here = Path(__file__).parent
    files = (path for part in ("ptx", "translate") for path in sorted((here / part).rglob("*.py")))
    flags = [flag for hooks in LEVELS for flag in _module_flags(hooks)]
    return cache.digest(
        [_source_key(source_folder() / "device.h", flags), *(path.read_bytes() for path in files)]
    )


# ---- the host compiler -------------------------------------------------------------------------------------


def _compile(arguments: Sequence[str], what: str) -> None:
    """Run the host compiler.  Our own C++ failing is a defect or a foreign compiler: its first lines are
    passed on."""
    command = [*toolchain.host_compiler().split(), *arguments]
    # An emulated program's preloaded library is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise EmulatorError(
            f"{what} could not be compiled by {command[0]} (status {done.returncode})",
            "\n".join((done.stderr or done.stdout).splitlines()[:40]),
        )


def _native() -> list[str]:
    """This processor's instructions: caches are per machine."""
    return ["-mcpu=native"] if platform.machine() == "aarch64" else ["-march=native"]


@functools.cache
def _machine() -> tuple[str, ...]:
    """What the compiler's output depends on besides the source: the compiler, and for -march=native the
    processor."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return (toolchain.compiler_version(toolchain.host_compiler()), features)


# ---- the command -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """See the top of the file.  Status 2 and one message where there is no PTX, or it cannot be
    translated."""
    import argparse

    from cuda.nn.emulator import fatbin

    parser = argparse.ArgumentParser(
        prog="python -m cuda.nn.emulator.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--fatbin", type=Path, required=True, help="file with what __cudaRegisterFatBinary was given"
    )
    parser.add_argument("--arch", default="sm_80", help="profile whose PTX is wanted (default sm_80)")
    parser.add_argument("--mode", choices=MODES, default="check")
    given = parser.parse_args(argv)
    try:
        ptx = fatbin.choose(fatbin.entries(given.fatbin.read_bytes()), given.arch)
        module = translated_module(ptx, given.mode, partial=True)
        refused = (module.parent / "refused.txt").read_text(encoding="utf-8")
    except (EmulatorError, OSError) as error:
        print(f"cuda-nn emulator: {error}", file=sys.stderr)
        return NO_PTX if isinstance(error, fatbin.NoPtxError) else 2
    for line in refused.splitlines():
        print(f"cuda-nn emulator: this kernel cannot be launched: {line}", file=sys.stderr)
    print(module)
    return 0


if __name__ == "__main__":
    sys.exit(main())
