"""The benchmarks, one module per header of csrc/include/nn; load() registers all of them."""

import importlib
import pkgutil

from cuda.nn.benchmarks.case import REGISTRY, Benchmark

# Functions of the C ABI that have no benchmark, and why.
HOST = "works on the host: sizes, choices, tables of what a call would do"
WITHOUT = {
    "_workspace_size": HOST, "_path": HOST, "nn_array_layout_merge": HOST, "nn_chunk_elements": HOST,
    "nn_linear_cross_entropy_chunk": HOST,
}


def load() -> dict[str, Benchmark]:
    """{name: benchmark} of every family, in the order of the families' names."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return REGISTRY


def reason_without(function: str) -> str | None:
    """Why a function of the C ABI (nn_...) has no benchmark; None if it should have one."""
    return next((why for name, why in WITHOUT.items() if function.endswith(name)), None)
