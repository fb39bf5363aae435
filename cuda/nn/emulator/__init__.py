"""Run and check CUDA kernels on a machine without a GPU.

    from cuda.nn import emulator
    module = emulator.compile("scan.cu", arch="sm_80", defines={"N": 64}, mode="check")
    module.launch("block_scan", grid=(4, 1, 1), block=(128, 1, 1), args=[x, out, np.int32(n)])
    module.reports                        # findings: kind, message, kernel, file, line, ...

nvcc's PTX is translated to C++, compiled, and run on fibers.  docs/4-emulator.md has the tutorial."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuda.nn.emulator.buffers import Buffer as Buffer
    from cuda.nn.emulator.counters import KernelCounters as KernelCounters
    from cuda.nn.emulator.errors import EmulatorError as EmulatorError
    from cuda.nn.emulator.errors import LaunchError as LaunchError
    from cuda.nn.emulator.module import Module as Module
    from cuda.nn.emulator.module import compile as compile
    from cuda.nn.emulator.module import compile_ptx as compile_ptx
    from cuda.nn.emulator.report import KINDS as KINDS
    from cuda.nn.emulator.report import Report as Report
    from cuda.nn.emulator.resources import Resources as Resources

# Imported at first use: the translator runs as a command of its own, which needs no NumPy and should start at
# once.
_PLACES = {
    "compile": "module",
    "compile_ptx": "module",
    "Module": "module",
    "Buffer": "buffers",
    "Report": "report",
    "KINDS": "report",
    "KernelCounters": "counters",
    "Resources": "resources",
    "EmulatorError": "errors",
    "LaunchError": "errors",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
