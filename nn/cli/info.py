"""Show what runs here: versions, processor, threads, the backends and which one serves each kernel.

Examples:
  cuda-nn info
  NN_BACKEND=reference cuda-nn info      # with one backend forced
"""

import ctypes
import importlib.metadata
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from nn import __version__
from nn.backends import describe, forced, native
from nn.cli.parser import Parser
from nn.cli.terminal import facts
from nn.train.machine import machine, versions

OPTIONAL = ("matplotlib", "torch", "transformers", "array-api-strict")      # what the extras bring


def run(argv: list[str]) -> int:
    Parser("info", __doc__).parse(argv)
    here, found, kernels = machine(), describe(), defaultdict(list)
    for kernel, backend in found["kernels"].items():
        kernels[backend].append(kernel)
    packages = versions() | {"cuda-nn": __version__} | {name: _optional(name) for name in OPTIONAL}
    processor = f"{here['cpu']}, {here['usable_cores']} of {here['cores']} cores usable"
    facts([*packages.items(), ("", ""), ("system", here["system"]), ("processor", processor),
           ("BLAS", blas()), ("native kernels", native.summary()), *here["environment"].items()])
    print("\nbackends" + (f", {forced()} forced:" if forced() else ":"))
    facts([(f"  {name}", state) for name, state in found["backends"].items()])
    for kernel, place in found["device kernels"].items():
        kernels[f"{place} (cuda, emulated)"].append(kernel)
    for backend, names in kernels.items():
        print(f"\nkernels that {backend} runs:")
        print(textwrap.fill(" ".join(names), 100, initial_indent="  ", subsequent_indent="  "))
    return 0


def blas() -> str:
    """NumPy's BLAS and, where it can be asked, the kernels it chose for this processor and its threads."""
    import numpy as np

    built = np.show_config("dicts")["Build Dependencies"]["blas"]
    name = f"{built['name']} {built['version']}"
    return next((f"{name}, kernels for {core}, {threads} threads" for core, threads in _openblas()), name)


def _openblas() -> Iterator[tuple[str, int]]:
    """(processor it has kernels for, threads) of each OpenBLAS that this process has loaded; Linux only."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    for path in sorted({line.split(maxsplit=5)[5] for line in lines if "openblas" in line and ".so" in line}):
        library = ctypes.CDLL(path)
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            core = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
            if core is not None:
                core.restype = ctypes.c_char_p
                yield core().decode(), getattr(library, f"{prefix}openblas_get_num_threads{suffix}")()
                break


def _optional(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (optional)"
