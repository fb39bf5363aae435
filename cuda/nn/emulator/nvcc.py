"""nvcc: a .cu file to PTX, or to a program for the emulator.  PTX is cached until a file that it came from
changes.

    ptx = compile_to_ptx(Path("scan.cu"), arch="sm_80", defines={"N": 64})

Line information is always kept: reports name .cu lines."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cuda.nn.emulator import cache, toolchain
from cuda.nn.emulator.build import LIBRARY, runtime_library
from cuda.nn.emulator.errors import EmulatorError

Define = str | int | float | bool | None


def compile_to_ptx(
    source: Path,
    *,
    arch: str,
    defines: Mapping[str, Define] | None = None,
    include_dirs: Iterable[str | Path] = (),
    flags: Sequence[str] = (),
) -> str:
    """The PTX of a .cu file.  EmulatorError with nvcc's own lines where it refuses the file."""
    check_source(source)
    for name, given in (("include_dirs", include_dirs), ("flags", flags)):
        if isinstance(given, str | Path):
            raise EmulatorError(f"{name}: {str(given)!r} is one string; give a list of them")
    options = [
        f"-arch={arch}",
        "-lineinfo",
        *define_flags(defines),
        *(f"-I{Path(d)}" for d in include_dirs),
        *flags,
    ]
    nvcc = toolchain.nvcc()
    toolchain.host_compiler()  # nvcc needs it, too, and would not say what to install
    key = cache.digest([str(source.resolve()), os.getcwd(), str(nvcc), toolchain.version(nvcc), *options])
    kept = cache.root() / "ptx" / f"{key}.json"
    if (found := _still_right(kept)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="cuda-nn-") as folder:
        ptx, dependencies = Path(folder) / "kernels.ptx", Path(folder) / "dependencies"
        _run(
            [nvcc, "-ptx", *options, "-MD", "-MF", dependencies, source, "-o", ptx],
            f"{source}: nvcc refused it",
        )
        text = ptx.read_text(encoding="utf-8")
        _keep(kept, text, _dependencies(dependencies.read_text(errors="replace")))
    return text


def compile_program(
    source: Path,
    output: Path,
    *,
    arch: str,
    defines: Mapping[str, Define] | None = None,
    include_dirs: Iterable[str | Path] = (),
    flags: Sequence[str] = (),
) -> None:
    """A .cu file with a main() to an executable that is linked with the emulator's runtime instead of
    CUDA's."""
    check_source(source)
    number = arch.removeprefix("sm_")
    code = f"-gencode=arch=compute_{number},code=compute_{number}"  # PTX is all that the emulator reads
    library = runtime_library()
    _run(
        [
            toolchain.nvcc(),
            code,
            "-lineinfo",
            *define_flags(defines),
            *(f"-I{Path(d)}" for d in include_dirs),
            *flags,
            "-cudart",
            "none",
            source,
            "-o",
            output,
            "-L",
            library.parent,
            "-Xlinker",
            f"-l:{LIBRARY}",
        ],
        f"{source}: nvcc refused it",
    )


def define_flags(defines: Mapping[str, Define] | None) -> list[str]:
    """-D options; True and None define the name as 1, False leaves it out."""
    values = {name: value for name, value in (defines or {}).items() if value is not False}
    return [
        f"-D{name}" if value is None or value is True else f"-D{name}={value}"
        for name, value in values.items()
    ]


def check_source(source: Path) -> None:
    """EmulatorError unless it is a file."""
    if source.is_dir():
        raise EmulatorError(f"{source}: a folder; give one .cu file")
    if not source.is_file():
        raise EmulatorError(f"{source}: no such file")


def _run(command: Sequence[str | Path], failure: str) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(failure, done.stderr or done.stdout)


# ---- what a kept PTX came from -----------------------------------------------------------------------------


def _still_right(kept: Path) -> str | None:
    """The kept PTX, unless a file that it came from has changed since."""
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        if all(
            cache.digest([Path(path).read_bytes()]) == seen for path, seen in found["dependencies"].items()
        ):
            return str(found["ptx"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _keep(kept: Path, ptx: str, dependencies: Iterable[Path]) -> None:
    files = [
        path for path in dependencies if path.is_file()
    ]  # a #line directive can name one that is not there
    found = {"ptx": ptx, "dependencies": {str(path): cache.digest([path.read_bytes()]) for path in files}}
    cache.make_folder(kept.parent)
    handle, name = tempfile.mkstemp(dir=kept.parent, prefix=".making-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(name, kept)


def _dependencies(rule: str) -> list[Path]:
    """The files of a make rule, without the toolkit's and the system's: those change with nvcc's version,
    which is in the key."""
    words = rule.replace("\\\n", " ").partition(" : ")[2].replace("\\ ", "\0").split()
    paths = [
        Path(path) for path in dict.fromkeys(os.path.realpath(word.replace("\0", " ")) for word in words)
    ]
    theirs = [Path("/usr/include"), *(path.parent for path in paths if path.name == "cuda_runtime.h")]
    return [path for path in paths if not any(folder in path.parents for folder in theirs)]
