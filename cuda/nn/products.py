"""Matrix products of device arrays: what a view's strides mean for nn_gemm, and broadcasting.

    c = gemm(a, b, trans_b=True, bias=bias, activation="gelu")        # a bᵀ + bias, one launch
    y = matmul(x, weight.T)                                           # a transposed view is not copied
    which(call(a, b)).why                                             # the kernel it takes, and why"""

import math
from ctypes import byref, sizeof
from dataclasses import dataclass
from typing import Any

from cuda.nn.array import DeviceArray
from cuda.nn.dtypes import FLOAT32, FLOATING, HALVES
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.layout import broadcast_shapes
from cuda.nn.prototypes.gemm import Gemm, GemmChoice

ACTIVATIONS = {None: 0, "none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4}
PATHS = {"auto": 0, "tiled": 1, "ffma": 2, "skinny": 3, "mma": 4, "wgmma": 5}


@dataclass(frozen=True)
class Operand:
    """A matrix, or a batch of them, as nn_gemm takes it."""

    array: DeviceArray
    rows: int
    columns: int
    batch: int | None          # None: two axes
    transposed: bool           # columns are neighbours of one column, not of one row
    leading: int
    step: int                  # from one matrix to the next

    @property
    def _as_parameter_(self) -> int:
        return int(self.array.pointer)


def operand(x: DeviceArray, *, copy: bool = True) -> Operand:
    """Rows or columns must lie in one piece; a view for which neither holds is copied."""
    if x.ndim not in (2, 3):
        raise DeviceArgumentError(f"a matrix has two axes, a batch of them three; not {list(x.shape)}")
    rows, columns = x.shape[-2:]
    down, along = x.strides[-2:]
    batch, step = (None, 0) if x.ndim == 2 else (x.shape[0], x.strides[0] if x.shape[0] > 1 else 0)
    if step >= 0 and (along == 1 or columns <= 1) and (down >= columns or rows <= 1):
        return Operand(x, rows, columns, batch, False, down if rows > 1 else _eighth(columns), step)
    if step >= 0 and (down == 1 or rows <= 1) and (along >= rows or columns <= 1):
        return Operand(x, rows, columns, batch, True, along if columns > 1 else _eighth(rows), step)
    if not copy:
        raise _scattered(x)
    return operand(x.copy())


def _scattered(out: DeviceArray) -> DeviceArgumentError:
    return DeviceArgumentError(
        f"out: strides {list(out.strides)} of shape {list(out.shape)}; its rows must lie in one piece")


def _eighth(n: int) -> int:
    """The leading dimension of a single row is nowhere used, and should not look unaligned."""
    return -(-n // 8) * 8


def call(a: DeviceArray, b: DeviceArray, *, trans_a: bool = False, trans_b: bool = False,
         out: DeviceArray | None = None, out_dtype: Any = None, alpha: float = 1.0, beta: float = 0.0,
         bias: DeviceArray | None = None, activation: str | None = None, path: str = "auto", splits: int = 0,
         tf32: bool = False) -> tuple[Gemm, DeviceArray, tuple[Any, ...]]:
    """The nn_gemm of gemm(...), its destination, and the arrays that must live until it is queued."""
    _check_places(a, b=b, out=out, bias=bias)
    x, y = operand(_of_type(a, b)), operand(_of_type(b, a))
    m, k = (x.columns, x.rows) if trans_a else (x.rows, x.columns)
    inner, n = (y.columns, y.rows) if trans_b else (y.rows, y.columns)
    if k != inner or (x.batch is not None and y.batch is not None and x.batch != y.batch):
        raise DeviceArgumentError(
            f"a{list(a.shape)}{'ᵀ' * trans_a} b{list(b.shape)}{'ᵀ' * trans_b}: inner sizes {k} and {inner}, "
            f"batches {x.batch or 1} and {y.batch or 1} must agree")
    batch = x.batch if x.batch is not None else y.batch
    shape = (m, n) if batch is None else (batch, m, n)
    if out is None and beta:
        raise DeviceArgumentError(f"beta: {beta} without out, whose numbers it multiplies")
    if out is None:
        out = a.device.empty(shape, out_dtype or x.array.dtype)
    elif out.shape != shape:
        raise DeviceArgumentError(f"out: shape {list(out.shape)}; expected {list(shape)}")
    z = operand(out, copy=False)
    if z.transposed and out.size:              # of a single row too: its elements are not neighbours
        raise _scattered(out)
    if bias is not None:
        bias = bias.contiguous()
        if bias.shape != (n,):
            raise DeviceArgumentError(f"bias: shape {list(bias.shape)}; expected [{n}]")
    made = Gemm(
        size=sizeof(Gemm), c=out.pointer, a=x.array.pointer, b=y.array.pointer,
        bias=None if bias is None else bias.pointer, m=m, n=n, k=k, batch=1 if batch is None else batch,
        lda=x.leading, ldb=y.leading, ldc=z.leading if not z.transposed else max(n, 1), stride_a=x.step,
        stride_b=y.step, stride_c=z.step if batch is None or batch > 1 else m * n, alpha=alpha, beta=beta,
        trans_a=trans_a != x.transposed, trans_b=trans_b != y.transposed, dtype=x.array.code,
        c_dtype=out.code, bias_dtype=0 if bias is None else bias.code,
        activation=_one_of(ACTIVATIONS, "activation", activation), compute=int(tf32),
        path=_one_of(PATHS, "path", path), splits=splits)
    return made, out, (x.array, y.array, bias)


def _check_places(a: DeviceArray, **others: DeviceArray | None) -> None:
    for name, x in others.items():
        if x is not None and x.device is not a.device:
            raise DeviceArgumentError(f"{name}: {x!r} is on another device than {a!r}")


def _one_of(table: dict[Any, int], what: str, name: str | None) -> int:
    if name not in table:
        raise DeviceArgumentError(f"{what}: {name!r}; expected one of {', '.join(map(str, table))}")
    return table[name]


def _of_type(x: DeviceArray, other: DeviceArray) -> DeviceArray:
    """x in the type that both can be multiplied in."""
    if x.dtype not in FLOATING:
        raise DeviceArgumentError(f"a product of {x.dtype}; expected float32, float16 or bfloat16")
    return x if x.dtype == other.dtype else x.astype(FLOAT32)


def gemm(a: DeviceArray, b: DeviceArray, *, trans_a: bool = False, trans_b: bool = False,
         out: DeviceArray | None = None, out_dtype: Any = None, alpha: float = 1.0, beta: float = 0.0,
         bias: DeviceArray | None = None, activation: str | None = None, **options: Any) -> DeviceArray:
    """activation(alpha op(a) op(b) + beta out + bias), rounded once; a and b have 2 axes, or 3 (a batch).
    Options: path, splits, tf32 (False: float32 is multiplied exactly)."""
    if out is None and a.dtype != b.dtype and out_dtype in HALVES:      # float32 gives float32
        return gemm(a, b, trans_a=trans_a, trans_b=trans_b, alpha=alpha, bias=bias, activation=activation,
                    **options).astype(out_dtype)
    made, y, kept = call(a, b, trans_a=trans_a, trans_b=trans_b, out=out, out_dtype=out_dtype, alpha=alpha,
                         beta=beta, bias=bias, activation=activation, **options)
    run(a.device, made)
    del kept
    return y


def run(device: Any, made: Gemm) -> None:
    size = device.library.nn_gemm_workspace_size(byref(made))
    workspace = device.workspace(size) if size > 0 else None
    device.call("gemm_forward", byref(made), workspace, max(size, 0))


def which(device: Any, made: Gemm) -> GemmChoice:
    """The kernel that a call takes, its tile, its splits, and why."""
    choice = GemmChoice(size=sizeof(GemmChoice))
    device.library.nn_gemm_path(byref(choice), byref(made))
    return choice


def matmul(a: DeviceArray, b: DeviceArray, *, out_dtype: Any = None) -> DeviceArray:
    """a[...,I,J] b[...,J,O] -> [...,I,O]; leading axes broadcast; a single axis is a row of a, a column of b.
    Of equal types the result has the same, of different ones float32."""
    shown = f"matmul: shapes {list(a.shape)} and {list(b.shape)}"
    if not (a.ndim and b.ndim):
        raise DeviceArgumentError(f"{shown}; a number has no axis to sum over")
    if a.ndim == 1 or b.ndim == 1:
        row, column = a.ndim == 1, b.ndim == 1
        matrices = a.reshape(1, a.size) if row else a, b.reshape(b.size, 1) if column else b
        y = matmul(*matrices, out_dtype=out_dtype)
        return y.reshape((*y.shape[:-2], *y.shape[-2:-1] * (not row), *y.shape[-1:] * (not column)))
    if a.shape[-1] != b.shape[-2]:
        raise DeviceArgumentError(f"{shown}; {a.shape[-1]} columns, {b.shape[-2]} rows")
    lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], b.shape[-1])
    if b.ndim == 2 and a.is_contiguous:                # all rows of a as one matrix
        y = gemm(a.reshape(math.prod(shape[:-1]), a.shape[-1]), b, out_dtype=out_dtype)
    else:
        y = gemm(_stacked(a, lead), _stacked(b, lead), out_dtype=out_dtype)
    return y.reshape(shape)


def _stacked(x: DeviceArray, lead: tuple[int, ...]) -> DeviceArray:
    """[...,R,C] as [batch,R,C], or [R,C] if it is the same for all"""
    if math.prod(x.shape[:-2]) == 1 and (x.ndim > 2 or lead):
        matrix = x.reshape(x.shape[-2:])
        return matrix if math.prod(lead) != 1 or not lead else matrix.reshape((1, *matrix.shape))
    full = x.broadcast_to((*lead, *x.shape[-2:]))
    return full.reshape((math.prod(lead), *x.shape[-2:])) if lead else full


__all__ = ["Operand", "call", "gemm", "matmul", "operand", "run", "which"]
