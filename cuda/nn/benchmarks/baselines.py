"""The same work by a vendor's library, on the same memory: matrix products by cuBLAS, some others by CuPy.

    baselines = Baselines(device)
    other = baselines.find(call)          # (name, a function that queues it), or None

cuBLAS is called through ctypes; it comes with a CUDA toolkit, with CuPy's packages, and with PyTorch's.  CuPy
sees our arrays through __cuda_array_interface__, without a copy."""

import ctypes
import glob
import sys
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_void_p
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Call
from cuda.nn.device import Device
from cuda.nn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from cuda.nn.errors import DeviceError

CUBLAS = ("libcublas.so.13", "libcublas.so.12", "libcublas.so")
TYPES = {FLOAT32: 0, FLOAT16: 2, BFLOAT16: 14}             # cudaDataType: CUDA_R_32F, _16F, _16BF
COMPUTE_32F, COMPUTE_32F_TF32 = 68, 77                     # cublasComputeType_t
DEFAULT = -1                                               # cublasGemmAlgo_t
Found = tuple[str, Callable[[], None]]


class Baselines:
    """What of it is installed here; `missing` says what is not."""

    def __init__(self, device: Device, cublas: Any = None, cupy: Any = None) -> None:
        self.device, self.missing = device, []
        self.cublas = cublas or _load_cublas()
        self.cupy = cupy or _load_cupy()
        if self.cublas is None:
            self.missing.append("cuBLAS: none of " + ", ".join(CUBLAS) + " (pip install nvidia-cublas)")
        if self.cupy is None:
            self.missing.append("CuPy: not installed (pip install 'cuda-nn[cuda]')")
        self._handle = c_void_p()

    def find(self, call: Call) -> Found | None:
        """None where nothing installed does the same."""
        if call.vendor is None:
            return None
        name, arguments = call.vendor
        if name == "gemm":
            return ("cuBLAS", self._gemm(*arguments)) if self.cublas is not None else None
        typed = all(x.dtype != BFLOAT16 for x in arguments if isinstance(x, DeviceArray))
        return ("CuPy", self._cupy(name, *arguments)) if self.cupy is not None and typed else None

    def _gemm(self, made: Any, dtype: np.dtype) -> Callable[[], None]:
        """Row-major C = op(A) op(B) is cuBLAS's column-major Cᵀ = op(B)ᵀ op(A)ᵀ, of the same memory."""
        if not self._handle:
            self._check(self.cublas.cublasCreate_v2(byref(self._handle)))
        one, zero, kind = c_float(1.0), c_float(0.0), TYPES[dtype]
        compute = COMPUTE_32F_TF32 if made.compute else COMPUTE_32F
        arguments = (
            self._handle, c_int(made.trans_b), c_int(made.trans_a), c_int(made.n), c_int(made.m),
            c_int(made.k), byref(one), c_void_p(made.b), c_int(kind), c_int(made.ldb), c_void_p(made.a),
            c_int(kind), c_int(made.lda), byref(zero), c_void_p(made.c), c_int(kind), c_int(made.ldc),
            c_int(compute), c_int(DEFAULT))

        def run() -> None:
            self._check(self.cublas.cublasSetStream_v2(self._handle, c_void_p(self.device.stream)))
            self._check(self.cublas.cublasGemmEx(*arguments))

        return run

    def _check(self, status: int) -> None:
        if status:
            raise DeviceError(f"cuBLAS: status {status}")

    def _cupy(self, name: str, out: DeviceArray, *arguments: Any) -> Callable[[], None]:
        cupy, stream = self.cupy, self.cupy.cuda.ExternalStream(self.device.stream)
        y, *given = (cupy.asarray(x) if isinstance(x, DeviceArray) else x for x in (out, *arguments))
        actions: dict[str, Callable[[], Any]] = {
            "add": lambda: cupy.add(*given, out=y), "mul": lambda: cupy.multiply(*given, out=y),
            "sum": lambda: cupy.sum(given[0], axis=given[1], out=y),
            "cumsum": lambda: cupy.cumsum(given[0], axis=1, out=y),
            "argsort": lambda: cupy.copyto(y, cupy.argsort(given[0], axis=1)),
        }

        def run() -> None:
            with stream:
                actions[name]()

        return run


def _load_cublas() -> Any:
    folders = [place for entry in sys.path for place in glob.glob(str(Path(entry) / "nvidia" / "*" / "lib"))]
    for name in (*CUBLAS, *(str(Path(folder) / name) for folder in folders for name in CUBLAS)):
        try:
            if "/" in name:              # it needs libcublasLt, which lies beside it, where no loader looks
                ctypes.CDLL(name.replace("libcublas.", "libcublasLt."), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


def _load_cupy() -> Any:
    try:
        return import_module("cupy")
    except ImportError:
        return None
