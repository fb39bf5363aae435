"""Builds the kernel library from csrc with nvcc and ninja: once for GPUs, once for the emulated device.

    python -m cuda.nn.build                        # build/cuda/libcuda_nn.so and libcuda_nn_emulated.so
    python -m cuda.nn.build --targets 80 --only gemm

Both are linked from the same objects; they differ in the CUDA runtime alone: inside (static), or the shared
libcudart for which the emulator stands in."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda.nn.emulator import toolchain
from cuda.nn.errors import DeviceError

LIBRARY, EMULATED = "libcuda_nn.so", "libcuda_nn_emulated.so"
TARGETS = ("75", "80", "90a")
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")


@dataclass(frozen=True)
class Options:
    folder: Path
    targets: tuple[str, ...] = TARGETS
    only: tuple[str, ...] = ()          # families; all of them by default
    ptx_only: bool = False              # no machine code: enough for the emulated device


def source_folder() -> Path:
    return Path(__file__).resolve().parents[2] / "csrc"


def default_folder() -> Path:
    return Path(os.environ.get("CUDA_NN_BUILD") or Path(__file__).resolve().parents[2] / "build" / "cuda")


def sources(only: Iterable[str] = ()) -> list[Path]:
    """The library's own files, and the kernels of these families."""
    csrc, wanted = source_folder(), set(only)
    kernels = [path for path in sorted((csrc / "kernels").rglob("*.cu")) if not wanted or family(path) in wanted]
    return [*sorted((csrc / "library").glob("*.cpp")), *kernels]


def family(source: Path) -> str:
    """kernels/norm.cu and kernels/gemm/tiled.cu belong to norm and gemm."""
    return source.relative_to(source_folder() / "kernels").parts[0].removesuffix(".cu")


def build(options: Options) -> Path:
    """Bring the two libraries up to date; their folder."""
    options.folder.mkdir(parents=True, exist_ok=True)
    rules = ninja_rules(options)
    file = options.folder / "build.ninja"
    if not file.exists() or file.read_text() != rules:
        file.write_text(rules)
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja is None:
        raise DeviceError("ninja not found, and it drives the build; pip install ninja")
    done = subprocess.run([ninja, "-C", str(options.folder), "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"the kernel library could not be built:\n{done.stdout}{done.stderr}")
    return options.folder


def generate(target: str, ptx_only: bool) -> str:
    codes = [f"compute_{target}"] if ptx_only else [f"sm_{target}", f"compute_{target}"]
    return f"-gencode=arch=compute_{target},code=[{','.join(codes)}]"


def targets_of(source: Path, targets: Iterable[str]) -> list[str]:
    """A file called *_sm90a.cu is for that architecture alone."""
    _, found, only = source.stem.rpartition("_sm")
    return [target for target in targets if not found or target == only]


def ninja_rules(options: Options) -> str:
    nvcc, csrc = toolchain.nvcc(), source_folder()
    includes = f"-I{csrc} -I{csrc / 'include'}"
    lines = [
        f"nvcc = {nvcc}",
        f"flags = {' '.join(FLAGS)} {includes}",
        "rule compile",
        "  command = $nvcc $flags $codes -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        "  command = $nvcc -shared -cudart $cudart $in -o $out",
        "  description = $out",
    ]
    objects = []
    for source in sources(options.only):
        codes = " ".join(generate(t, options.ptx_only) for t in targets_of(source, options.targets))
        if source.suffix == ".cu" and not codes:
            continue
        made = options.folder / "objects" / source.relative_to(csrc).with_suffix(".o")
        objects.append(str(made))
        lines += [f"build {made}: compile {source}", f"  codes = {codes if source.suffix == '.cu' else ''}"]
    for name, cudart in ((LIBRARY, "static"), (EMULATED, "shared")):
        lines += [f"build {options.folder / name}: link {' '.join(objects)}", f"  cudart = {cudart}"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda.nn.build", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--ptx-only", action="store_true")
    given = parser.parse_args(argv)
    print(build(Options(given.folder.resolve(), tuple(given.targets), tuple(given.only), given.ptx_only)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
