"""Builds the kernel library from csrc with nvcc and ninja: once for GPUs, once for the emulated device.

    python -m cuda.nn.build                        # build/cuda/libcuda_nn.so and libcuda_nn_emulated.so
    python -m cuda.nn.build --targets 80 --only gemm

Both are linked from the same objects; they differ in the CUDA runtime alone: inside (static), or the shared
libcudart for which the emulator stands in.  With CUDA_PATH="" in the environment none for GPUs is built.

Libraries are looked for in $CUDA_NN_BUILD, and used as they are there; in build/cuda of a checkout; inside an
installed package; in the cache folder.  The emulated device builds its own there when no other is up to
date."""

import argparse
import contextlib
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda.nn.emulator import cache, toolchain
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.errors import DeviceError, NoDeviceError

LIBRARY, EMULATED = "libcuda_nn.so", "libcuda_nn_emulated.so"
COMMAND = "python -m cuda.nn.build"
TARGETS = ("70", "75", "80", "86", "89", "90", "90a", "100", "120")
EMULATED_TARGETS = ("75", "80")             # whose PTX emulated architectures run, beside that of *_sm90a.cu
# Machine code of these comes from the PTX of another: a pass of the front end less, and the same PTX, because
# no source asks whether it is compiled for them (tests/device/test_build.py).  CUDA's headers do ask for
# sm_90, to widen a bfloat16 by an instruction of its own; without it 20 of 369 kernels need fewer registers
# there, 5 more.
FRONT_ENDS = {"86": "80", "89": "80", "90": "80", "100": "80"}
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# nvcc compresses PTX alone.  Machine code with line information carries its PTX once more: a sixth remains.
SHIPPED = ("-Xfatbin=-compress-all",)
UNSHIPPED = ("--compress-mode=none",)       # the emulator reads it at every start
SHOWN_LINES = 40                            # of what a compiler says when it fails


@dataclass(frozen=True)
class Options:
    folder: Path
    targets: tuple[str, ...] = TARGETS
    only: tuple[str, ...] = ()          # families; all of them by default
    ptx_only: bool = False              # no machine code: enough for the emulated device
    libraries: tuple[str, ...] = (LIBRARY, EMULATED)

    def record(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if key != "folder"})


# ---- sources and where things are --------------------------------------------------------------------------


def checkout() -> Path | None:
    """The folder of a checkout, if this file is in one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "csrc" / "include" / "nn.h").is_file() else None


def source_folder() -> Path:
    """csrc: in a checkout beside `cuda`, in an installed package within it."""
    folder = (checkout() or Path(__file__).resolve().parent) / "csrc"
    if not (folder / "include" / "nn.h").is_file():
        raise DeviceError(f"the kernel library's sources are missing from {folder}; reinstall cuda-nn")
    return folder


def default_folder() -> Path:
    """Where a build goes, unless told otherwise."""
    if given := os.environ.get("CUDA_NN_BUILD"):
        return Path(given).absolute()
    root = checkout()
    return root / "build" / "cuda" if root else cache_folder("full")


def cache_folder(kind: str) -> Path:
    """One folder per kind of build, per place of the sources."""
    return cache.root() / "kernels" / cache.digest([str(source_folder()), kind])


def package_folder() -> Path:
    """Libraries that setup.py has put into the package."""
    return Path(__file__).resolve().parent / "lib"


def sources(only: Iterable[str] = ()) -> list[Path]:
    """The library's own files, and the kernels of these families."""
    csrc, wanted = source_folder(), set(only)
    kernels = sorted((csrc / "kernels").rglob("*.cu"))
    if missing := wanted - set(map(family, kernels)):
        raise DeviceError(f"no kernel family {', '.join(sorted(missing))} in {csrc / 'kernels'}")
    kernels = [path for path in kernels if not wanted or family(path) in wanted]
    return [*sorted((csrc / "library").glob("*.cpp")), *kernels]


def family(source: Path) -> str:
    """kernels/norm.cu and kernels/gemm/tiled.cu belong to norm and gemm."""
    return source.relative_to(source_folder() / "kernels").parts[0].removesuffix(".cu")


# ---- architectures -----------------------------------------------------------------------------------------


@functools.cache
def accepted() -> frozenset[str]:
    """The targets that this nvcc compiles for."""
    done = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=False)
    known = {line.removeprefix("sm_") for line in done.stdout.split()}
    # The list names no 90a, which came with CUDA 12, as sm_89 did.
    return frozenset(t for t in TARGETS if t in known or (t == "90a" and {"89", "90"} <= known))


def available(targets: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Those that nvcc accepts, and one line that names the others."""
    if unknown := [t for t in targets if t not in TARGETS]:
        raise DeviceError(f"--targets {' '.join(unknown)}: not one of {' '.join(TARGETS)}")
    kept = tuple(t for t in targets if t in accepted())
    dropped = ", ".join(f"sm_{t}" for t in targets if t not in accepted())
    if not kept:
        raise DeviceError(f"{dropped}: {compiler()} compiles for none of these")
    return kept, f"left out: {dropped}, which {compiler()} does not know" if dropped else ""


def compiler() -> str:
    """nvcc (Build cuda_13.0.r13.0/compiler.36424714_0)"""
    return f"nvcc ({toolchain.version(nvcc())})"


def targets_of(source: Path, targets: Iterable[str]) -> list[str]:
    """A file called *_sm90a.cu is for that architecture alone, and in every library, because others call into
    it; all other files leave that architecture to sm_90, whose code it runs."""
    if source.suffix != ".cu":
        return []
    if source.stem.endswith("_sm90a"):
        return ["90a"]
    found = list(targets)
    return [t for t in found if t != "90a" or "90" not in found]


def generate(targets: Iterable[str], ptx_only: bool) -> str:
    """One -gencode per pass of the front end: machine code for all that it serves, and its PTX."""
    passes: dict[str, list[str]] = {}
    for target in targets:
        passes.setdefault(FRONT_ENDS.get(target, target), []).append(f"sm_{target}")
    return " ".join(
        f"-gencode=arch=compute_{front},code=[{','.join([*([] if ptx_only else codes), f'compute_{front}'])}]"
        for front, codes in passes.items()
    )


# ---- the build ---------------------------------------------------------------------------------------------


def build(options: Options, *, progress: bool = False) -> Path:
    """Bring the libraries up to date; their folder.  `progress`: a line on stderr per file."""
    targets, dropped = available(options.targets)
    if dropped and progress:
        print(dropped, file=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    write_if_other(options.folder / "options.json", options.record())
    write_if_other(options.folder / "compiler", compiler())
    write_if_other(options.folder / "build.ninja", ninja_rules(options, targets))
    finish(*run_ninja(options.folder, progress))
    return options.folder


def finish(status: int, said: str) -> None:
    """DeviceError with the first lines of what the compilers said, where they failed."""
    if status:
        lines = said.splitlines()
        more = f"\n... and {len(lines) - SHOWN_LINES} more lines" if len(lines) > SHOWN_LINES else ""
        raise DeviceError("the kernel library could not be built:\n" + "\n".join(lines[:SHOWN_LINES]) + more)


def run_ninja(folder: Path, progress: bool) -> tuple[int, str]:
    """Its status, and what the compilers said."""
    environment = os.environ | {"NINJA_STATUS": "[%f/%t, %e s] "}
    command = [ninja(), "-C", str(folder), *([] if progress else ["--quiet"])]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", env=environment) as running:
        assert running.stdout
        for line in running.stdout:
            if progress and line.startswith("["):
                print(line, end="", file=sys.stderr, flush=True)
            elif not line.startswith("ninja: Entering"):
                said.append(line)
    return running.returncode, "".join(said)


def nvcc() -> Path:
    try:
        return toolchain.nvcc()
    except EmulatorError as error:
        raise DeviceError(str(error)) from None


def ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found is None:
        raise DeviceError("ninja not found, and it drives the build of the kernel library; pip install ninja")
    return found


def write_if_other(file: Path, text: str) -> None:
    """Ninja goes by times."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def ninja_rules(options: Options, targets: Sequence[str]) -> str:
    """build.ninja.  Everything that a result depends on is in its command or among its inputs."""
    csrc = source_folder()
    exports = csrc / "library" / "exports.map"
    flags = [*FLAGS, *(UNSHIPPED if options.ptx_only else SHIPPED), f"-I{csrc}", f"-I{csrc / 'include'}"]
    lines = [
        f"nvcc = {nvcc()}",
        f"flags = {' '.join(flags)}",
        "rule compile",
        "  command = $nvcc $flags $codes -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        f"  command = {toolchain.host_compiler()} -shared -Wl,--version-script={exports} $in $cudart -o $out",
        "  description = $out",
    ]
    objects = []
    for source in sources(options.only):
        made = options.folder / "objects" / source.relative_to(csrc).with_suffix(".o")
        objects.append(str(made))
        lines += [f"build {made}: compile {source} | {options.folder / 'compiler'}",
                  f"  codes = {generate(targets_of(source, targets), options.ptx_only)}"]
    for name in options.libraries:
        lines += [f"build {options.folder / name}: link {' '.join(objects)} | {exports}",
                  f"  cudart = {' '.join(cudart(shared=name == EMULATED))}"]
    return "\n".join(lines) + "\n"


def cudart(*, shared: bool) -> list[str]:
    """The CUDA runtime, for the linker.  By file name: PyPI's packages lack libcudart.so."""
    include = toolchain.cuda_include()
    for folder in (include.parent / "lib64", include.parent / "lib", include.resolve().parent / "lib"):
        found = sorted(folder.glob("libcudart.so.*" if shared else "libcudart_static.a"))
        if found:
            return [str(found[0])] if shared else [str(found[0]), "-ldl", "-lrt", "-pthread"]
    name = "libcudart.so" if shared else "libcudart_static.a"
    raise DeviceError(f"{name} not found beside {include}; install the CUDA toolkit, or its parts: "
                      f"{toolchain.PACKAGES}")


# ---- what is built -----------------------------------------------------------------------------------------


def gpu_library() -> Path:
    """The library for GPUs.  NoDeviceError where none is built."""
    if given := os.environ.get("CUDA_NN_BUILD"):
        return existing(Path(given).absolute() / LIBRARY)
    folders = places()
    for folder in folders:
        if (folder / LIBRARY).is_file():
            if not up_to_date(folder):
                note(f"{folder / LIBRARY} is older than its sources; make cuda")
            return folder / LIBRARY
    raise NoDeviceError(f"no {LIBRARY} in {' or '.join(map(str, folders))}; build it: {COMMAND}")


def emulated_library() -> Path:
    """The library for the emulated device: one that is up to date, or built now."""
    if given := os.environ.get("CUDA_NN_BUILD"):
        return existing(Path(given).absolute() / EMULATED)
    for folder in places():
        if (folder / EMULATED).is_file() and up_to_date(folder):
            return folder / EMULATED
    return emulated_in_cache()


def existing(path: Path) -> Path:
    if not path.is_file():
        raise NoDeviceError(f"{path} is not there, and CUDA_NN_BUILD names its folder; build it: {COMMAND}")
    return path


def places() -> list[Path]:
    root = checkout()
    return [root / "build" / "cuda"] if root else [package_folder(), cache_folder("full")]


def up_to_date(folder: Path) -> bool:
    """Whether a build of everything in this folder would change nothing; so, too, where nobody could tell."""
    if folder == package_folder():
        return True
    try:
        found = json.loads((folder / "options.json").read_text())
        options = Options(folder, tuple(found["targets"]), tuple(found["only"]), found["ptx_only"],
                          tuple(found["libraries"]))
        rules = ninja_rules(options, available(options.targets)[0])
        done = subprocess.run([ninja(), "-C", str(folder), "-n"], capture_output=True, text=True, check=False)
    except DeviceError:
        return True                              # no nvcc or ninja: used as it is
    except (OSError, ValueError, KeyError):
        return False
    same = (folder / "build.ninja").read_text() == rules
    return same and not options.only and "no work to do" in done.stdout


def emulated_in_cache() -> Path:
    """PTX alone, compiled where it changed since the last time."""
    folder = cache_folder("emulated")
    options = Options(folder, EMULATED_TARGETS, ptx_only=True)
    cache.make_folder(folder)
    with locked(folder / "lock"):
        os.utime(folder)
        if not ((folder / EMULATED).is_file() and up_to_date(folder)):
            note(f"building the kernel library for the emulated device in {folder}: a few minutes the first "
                 "time, then what has changed")
            build(options)
            cache.tidy("kernels")
    return folder / EMULATED


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def note(text: str) -> None:
    """On stderr, once per process."""
    print(f"cuda-nn: {text}", file=sys.stderr, flush=True)


# ---- the command -------------------------------------------------------------------------------------------


def gpu_wanted() -> bool:
    """CUDA_PATH="" forbids it; a variable that is not set does not."""
    return os.environ.get("CUDA_PATH") != ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda.nn.build", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to; build/cuda, or $CUDA_NN_BUILD")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help=" ".join(TARGETS))
    parser.add_argument("--only", nargs="+", default=[], metavar="FAMILY", help="kernel families; or all")
    parser.add_argument("--ptx-only", action="store_true", help="no machine code: enough for emulation")
    given = parser.parse_args(argv)
    try:
        folder = (given.folder or default_folder()).absolute()
        options = Options(folder, tuple(given.targets), tuple(given.only), given.ptx_only)
        if not gpu_wanted():
            note(f'CUDA_PATH="": no {LIBRARY} is built, only {EMULATED}')
            options = Options(folder, EMULATED_TARGETS, tuple(given.only), True, (EMULATED,))
        print(build(options, progress=True))
    except (DeviceError, EmulatorError) as error:
        print(f"cuda-nn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
