"""nn/norm.h: rows read once; the weight's gradient in two stages."""

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark

LARGE, SMALL = {"rows": 8192, "cols": 4096}, {"rows": 64, "cols": 512}
WEIGHTS = 64              # columns of a weight's gradient that are compared, over all rows
EPS = 1e-6


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=1, keepdims=True)


@benchmark("norm", large=LARGE, small=SMALL)
def rms_norm_forward(at: Bench, rows: int, cols: int) -> Call:
    x, w, y, some = at.normal(rows, cols), at.normal(cols), at.empty(rows, cols), at.some(rows)
    rstd = at.empty(rows, dtype=np.float32)

    def scale() -> np.ndarray:
        return 1 / np.sqrt(_mean(at.wide(x, some)**2) + EPS)

    return Call(at.queue("rms_norm_forward", y, rstd, x, w, rows, cols, EPS, at.code), [x, w], [y, rstd],
                [Check("y", y, lambda: at.wide(x, some) * scale() * at.wide(w), some),
                 Check("rstd", rstd, lambda: scale()[:, 0], some)])


@benchmark("norm", large=LARGE, small=SMALL)
def rms_norm_residual_forward(at: Bench, rows: int, cols: int) -> Call:
    x, residual, w, some = at.normal(rows, cols), at.normal(rows, cols), at.normal(cols), at.some(rows)
    y, total, rstd = at.empty(rows, cols), at.empty(rows, cols), at.empty(rows, dtype=np.float32)

    def added() -> np.ndarray:
        return at.wide(x, some) + at.wide(residual, some)

    def normed() -> np.ndarray:
        return added() / np.sqrt(_mean(added()**2) + EPS) * at.wide(w)

    return Call(at.queue("rms_norm_residual_forward", y, total, rstd, x, residual, w, rows, cols, EPS,
                         at.code), [x, residual, w], [y, total, rstd],
                [Check("sum", total, added, some), Check("y", y, normed, some, loose=2)])


@benchmark("norm", large=LARGE, small=SMALL)
def rms_norm_backward(at: Bench, rows: int, cols: int) -> Call:
    dy, x, w, some = at.normal(rows, cols), at.normal(rows, cols), at.normal(cols), at.some(rows)
    rstd = at.put((1 / np.sqrt((at.values(x).astype(np.float32)**2).mean(axis=1) + EPS)).astype(np.float32))
    dx, dw, columns = at.empty(rows, cols), at.empty(cols, dtype=np.float32), at.some(cols, WEIGHTS)
    scratch = at.workspace(at.device.library.nn_rms_norm_workspace_size(rows, cols))

    def d_x() -> np.ndarray:
        r = at.wide(rstd, some)[:, None]
        n, a = at.wide(x, some) * r, at.wide(dy, some) * at.wide(w)
        return r * (a - n * _mean(a * n))

    def d_w() -> np.ndarray:
        part = at.wide(x, np.s_[:, columns]) * at.wide(rstd)[:, None]
        return (at.wide(dy, np.s_[:, columns]) * part).sum(axis=0)

    return Call(at.queue("rms_norm_backward", dx, dw, dy, x, w, rstd, None, rows, cols, at.code, *scratch),
                [dy, x, w, rstd], [dx, dw], [Check("dx", dx, d_x, some), Check("dweight", dw, d_w, columns)])


@benchmark("norm", large=LARGE, small=SMALL)
def layer_norm_forward(at: Bench, rows: int, cols: int) -> Call:
    x, w, b, some = at.normal(rows, cols), at.normal(cols), at.normal(cols), at.some(rows)
    y, mean, rstd = at.empty(rows, cols), at.empty(rows, dtype=np.float32), at.empty(rows, dtype=np.float32)

    def formula() -> np.ndarray:
        centred = at.wide(x, some) - _mean(at.wide(x, some))
        return centred / np.sqrt(_mean(centred**2) + EPS) * at.wide(w) + at.wide(b)

    return Call(at.queue("layer_norm_forward", y, mean, rstd, x, w, b, rows, cols, EPS, at.code), [x, w, b],
                [y, mean, rstd], [Check("y", y, formula, some)])


def _statistics(at: Bench, x: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """mean[rows], rstd[rows] as the forward leaves them"""
    wide = at.values(x).astype(np.float32)
    mean = wide.mean(axis=1)
    return at.put(mean), at.put((1 / np.sqrt(((wide - mean[:, None])**2).mean(axis=1) + EPS)).astype("f4"))


@benchmark("norm", large=LARGE, small=SMALL)
def layer_norm_backward(at: Bench, rows: int, cols: int) -> Call:
    dy, x, w, some = at.normal(rows, cols), at.normal(rows, cols), at.normal(cols), at.some(rows)
    mean, rstd = _statistics(at, x)
    dx, dw, db = at.empty(rows, cols), at.empty(cols, dtype=np.float32), at.empty(cols, dtype=np.float32)
    columns = at.some(cols, WEIGHTS)
    scratch = at.workspace(at.device.library.nn_layer_norm_workspace_size(rows, cols))

    def normed(where: object) -> np.ndarray:
        row = where[0] if isinstance(where, tuple) else where
        return (at.wide(x, where) - at.wide(mean, row)[:, None]) * at.wide(rstd, row)[:, None]

    def d_x() -> np.ndarray:
        n, a = normed(some), at.wide(dy, some) * at.wide(w)
        return at.wide(rstd, some)[:, None] * (a - _mean(a) - n * _mean(a * n))

    def d_w() -> np.ndarray:
        return (at.wide(dy, np.s_[:, columns]) * normed(np.s_[:, columns])).sum(axis=0)

    return Call(at.queue("layer_norm_backward", dx, dw, db, dy, x, w, mean, rstd, rows, cols, at.code,
                         *scratch), [dy, x, w, mean, rstd], [dx, dw, db],
                [Check("dx", dx, d_x, some), Check("dweight", dw, d_w, columns),
                 Check("dbias", db, lambda: at.wide(dy, np.s_[:, columns]).sum(axis=0), columns)])
