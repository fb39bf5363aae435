"""nn/array.h: the generic operations behind DeviceArray."""

from typing import Any

import numpy as np

from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.layout import dense_strides, layout
from cuda.nn.operations import Op
from cuda.nn.reductions import Reduction

MATRIX, MATRIX_SMALL = {"rows": 8192, "cols": 4096}, {"rows": 128, "cols": 256}
SORTED, SORTED_SMALL = {"rows": 64, "cols": 131072}, {"rows": 4, "cols": 4096}


def _copy(at: Bench, rows: int, cols: int, transposed: bool) -> Call:
    x = at.normal(*((cols, rows) if transposed else (rows, cols)))
    y, some = at.empty(rows, cols), at.some(rows)
    made = layout((rows, cols), (cols, 1), (1, rows) if transposed else (cols, 1))
    return Call(at.queue("array_unary", y, x, made, Op.COPY if transposed else Op.EXP, at.code, at.code), [x],
                [y], [Check("y", y, lambda: at.wide(x, np.s_[:, some]).T if transposed
                            else np.exp(at.wide(x, some)), some)])


@benchmark("array", large=MATRIX, small=MATRIX_SMALL, function="array_unary", variant="exp")
def unary_exp(at: Bench, rows: int, cols: int) -> Call:
    return _copy(at, rows, cols, transposed=False)


@benchmark("array", large=MATRIX, small=MATRIX_SMALL, function="array_unary", variant="transposed")
def unary_transposed(at: Bench, rows: int, cols: int) -> Call:
    return _copy(at, rows, cols, transposed=True)


@benchmark("array", large=MATRIX, small=MATRIX_SMALL)
def array_binary(at: Bench, rows: int, cols: int) -> Call:
    """A matrix plus a row."""
    a, b, y, some = at.normal(rows, cols), at.normal(cols), at.empty(rows, cols), at.some(rows)
    made = layout((rows, cols), (cols, 1), (cols, 1), (0, 1))
    return Call(at.queue("array_binary", y, a, b, made, Op.ADD, at.code, at.code, at.code, 0.0), [a, b], [y],
                [Check("y", y, lambda: at.wide(a, some) + at.wide(b), some)])


@benchmark("array", large=MATRIX, small=MATRIX_SMALL)
def array_where(at: Bench, rows: int, cols: int) -> Call:
    condition, a, y = at.integers(2, rows, cols, dtype=np.bool_), at.normal(rows, cols), at.empty(rows, cols)
    some, dense = at.some(rows), dense_strides((rows, cols))
    made = layout((rows, cols), dense, dense, dense, (0, 0))
    return Call(at.queue("array_where", y, condition, a, None, made, at.code, at.code, at.code, 0.0, -1.5),
                [condition, a], [y],
                [Check("y", y, lambda: np.where(at.values(condition)[some], at.wide(a, some), -1.5), some)])


@benchmark("array", large=MATRIX, small=MATRIX_SMALL)
def array_fill(at: Bench, rows: int, cols: int) -> Call:
    y = at.empty(rows, cols)
    return Call(at.queue("array_fill", y, layout((rows, cols), (cols, 1)), at.code, 2.5), [], [y],
                [Check("y", y, lambda: np.full((rows, cols), 2.5))])


@benchmark("array", large={"n": 1 << 25}, small={"n": 1 << 14}, dtypes=("float32",))
def array_arange(at: Bench, n: int) -> Call:
    y = at.empty(n, dtype=np.int64)
    return Call(at.queue("array_arange", y, 3.0, 2.0, n, y.code), [], [y],
                [Check("y", y, lambda: 3 + 2 * np.arange(n))])


# ---- reductions ----


def _reduce(variant: str, op: Reduction, along_rows: bool) -> None:
    """Over the columns of a matrix, or over its rows: what lies closer together."""

    @benchmark("array", large=MATRIX, small=MATRIX_SMALL, function="array_reduce", variant=variant)
    def build(at: Bench, rows: int, cols: int) -> Call:
        x, kept = at.normal(rows, cols), cols if along_rows else rows
        y = at.empty(kept, dtype=np.int64 if op == Reduction.ARGMAX else None)
        some, axis = at.some(kept), 0 if along_rows else 1
        made = (layout((cols, rows), (1, 0), (1, cols)) if along_rows
                else layout((rows, cols), (1, 0), (cols, 1)))
        scratch = at.workspace(at.device.library.nn_array_reduce_workspace_size(made, 1, op))

        def formula() -> np.ndarray:
            wide = at.wide(x, np.s_[:, some] if along_rows else some)
            return wide.argmax(axis=axis) if op == Reduction.ARGMAX else wide.sum(axis=axis)

        return Call(at.queue("array_reduce", y, x, made, 1, op, y.code, at.code, *scratch), [x], [y],
                    [Check("y", y, formula, some)],
                    vendor=("sum", (y, x, axis)) if op == Reduction.SUM else None)


_reduce("sum", Reduction.SUM, along_rows=False)
_reduce("sum_rows", Reduction.SUM, along_rows=True)
_reduce("argmax", Reduction.ARGMAX, along_rows=False)


# ---- along an axis ----


def _rows_by_index(at: Bench, function: str, rows: int, cols: int, *, into: bool) -> Call:
    """Half of a matrix's rows, in another order, taken out or put in."""
    count = rows // 2
    index = at.put(at.random.permutation(rows)[:count].copy())
    x = at.normal(count if into else rows, cols)
    y = at.device.zeros((rows, cols), at.dtype) if into else at.empty(count, cols)
    places = at.values(index)
    if into:
        made = layout((count, cols), (0, 1), (cols, 1), (1, 0))
        some = at.some(count)
        extra: tuple[Any, ...] = (rows, cols, count, at.code, index.code, *at.workspace(8 * rows))
        check = Check("y", y, lambda: at.wide(x, some), places[some])
    else:
        made = layout((count, cols), (cols, 1), (0, 1), (1, 0))
        some = at.some(count)
        extra = (rows, cols, at.code, index.code)
        check = Check("y", y, lambda: at.wide(x, places[some]), some)
    return Call(at.queue(function, y, x, index, made, *extra), [count * cols * x.itemsize, index],
                [count * cols * x.itemsize], [check])


@benchmark("array", large=MATRIX, small=MATRIX_SMALL)
def array_gather(at: Bench, rows: int, cols: int) -> Call:
    return _rows_by_index(at, "array_gather", rows, cols, into=False)


@benchmark("array", large=MATRIX, small=MATRIX_SMALL)
def array_scatter(at: Bench, rows: int, cols: int) -> Call:
    return _rows_by_index(at, "array_scatter", rows, cols, into=True)


@benchmark("array", large=SORTED, small=SORTED_SMALL, dtypes=("float32",))
def array_cumulative_sum(at: Bench, rows: int, cols: int) -> Call:
    x, y, some = at.uniform(rows, cols), at.empty(rows, cols), at.some(rows, 4)
    scratch = at.workspace(at.device.library.nn_array_cumulative_sum_workspace_size(rows, cols))
    return Call(at.queue("array_cumulative_sum", y, x, rows, cols, y.code, x.code, *scratch), [x], [y],
                [Check("y", y, lambda: at.wide(x, some).cumsum(axis=1), some)], vendor=("cumsum", (y, x)))


@benchmark("array", large=SORTED, small=SORTED_SMALL)
def array_argsort(at: Bench, rows: int, cols: int) -> Call:
    x, order, some = at.normal(rows, cols), at.empty(rows, cols, dtype=np.int64), at.some(rows, 4)
    scratch = at.workspace(at.device.library.nn_array_argsort_workspace_size(rows, cols, at.code))
    return Call(at.queue("array_argsort", order, x, rows, cols, 0, at.code, *scratch), [x], [order],
                [Check("order", order, lambda: np.argsort(at.wide(x, some), axis=1, kind="stable"), some)],
                vendor=("argsort", (order, x)))


@benchmark("array", large={"n": 1 << 20, "m": 1 << 20}, small={"n": 4096, "m": 2048}, dtypes=("float32",))
def array_searchsorted(at: Bench, n: int, m: int) -> Call:
    line = at.put(np.sort(at.random.standard_normal(n, np.float32)))
    values, place, some = at.normal(m), at.empty(m, dtype=np.int64), at.some(m, 4096)
    return Call(at.queue("array_searchsorted", place, line, values, n, m, 0, at.code), [line, values],
                [place], [Check("place", place, lambda: np.searchsorted(
                    at.values(line), at.values(values)[some]), some)])
