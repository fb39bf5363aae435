"""nn/gemm.h: the shapes of a model's linear maps, by layout, and the few rows of decoding."""

from ctypes import byref

import numpy as np

from cuda.nn import products
from cuda.nn.benchmarks.case import Bench, Call, Check, Sizes, benchmark

LARGE, SMALL = {"m": 4096, "n": 4096, "k": 4096}, {"m": 256, "n": 256, "k": 128}
FEW, FEW_SMALL = {"m": 8, "n": 4096, "k": 14336}, {"m": 8, "n": 256, "k": 512}


def _gemm(variant: str, large: Sizes, small: Sizes, *, trans_a: bool = False, trans_b: bool = False,
          tf32: bool = False, path: str = "auto", dtypes: tuple[str, ...] = (
              "float32", "float16", "bfloat16")) -> None:
    """C = op(A) op(B), in the type of A and B."""

    @benchmark("gemm", large=large, small=small, function="gemm_forward", variant=variant, dtypes=dtypes)
    def build(at: Bench, m: int, n: int, k: int) -> Call:
        a = at.normal(*((k, m) if trans_a else (m, k)))
        b = at.normal(*((n, k) if trans_b else (k, n)), scale=k**-0.5)
        c, some = at.empty(m, n), at.some(m)
        call, *_ = products.call(a, b, trans_a=trans_a, trans_b=trans_b, out=c, tf32=tf32, path=path)
        scratch = at.workspace(at.device.library.nn_gemm_workspace_size(byref(call)))

        def formula() -> np.ndarray:
            rows = at.wide(a, np.s_[:, some]).T if trans_a else at.wide(a, some)
            return rows @ (at.wide(b).T if trans_b else at.wide(b))              # [some,n]

        loose = 2.0**13 / 64 if tf32 else 1.0          # operands of 10 bits instead of 23
        return Call(at.queue("gemm_forward", byref(call), *scratch), [a, b], [c],
                    [Check("c", c, formula, some, loose=loose)], flops=2 * m * n * k, tf32=tf32,
                    vendor=("gemm", (call, at.dtype)))


_gemm("nt", LARGE, SMALL, trans_b=True)                          # y = x Wᵀ
_gemm("nn", LARGE, SMALL)                                        # dx = dy W
_gemm("tn", LARGE, SMALL, trans_a=True)                          # dW = dyᵀ x
_gemm("few", FEW, FEW_SMALL, trans_b=True)                       # decoding
_gemm("tf32", LARGE, SMALL, trans_b=True, tf32=True, dtypes=("float32",))
_gemm("tiled", {"m": 1024, "n": 1024, "k": 1024}, SMALL, trans_b=True, path="tiled", dtypes=("float32",))
