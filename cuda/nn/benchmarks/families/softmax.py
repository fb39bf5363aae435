"""nn/softmax.h: one pass over rows that fit a block, two over longer ones."""

from collections.abc import Callable

import numpy as np

from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark

LARGE, SMALL = {"rows": 8192, "cols": 4096}, {"rows": 32, "cols": 512}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _scratch(at: Bench, rows: int, cols: int) -> tuple:
    return at.workspace(at.device.library.nn_softmax_workspace_size(rows, cols, at.code))


def _forward(at: Bench, function: str, formula: Callable[[np.ndarray], np.ndarray], rows: int,
             cols: int) -> Call:
    x, y, some = at.normal(rows, cols, scale=2.0), at.empty(rows, cols), at.some(rows)
    return Call(at.queue(function, y, x, rows, cols, at.code, *_scratch(at, rows, cols)), [x], [y],
                [Check("y", y, lambda: formula(at.wide(x, some)), some)])


@benchmark("softmax", large=LARGE, small=SMALL)
def softmax_forward(at: Bench, rows: int, cols: int) -> Call:
    return _forward(at, "softmax_forward", softmax, rows, cols)


@benchmark("softmax", large={"rows": 64, "cols": 262144}, small={"rows": 2, "cols": 40960},
           function="softmax_forward", variant="long")
def softmax_long(at: Bench, rows: int, cols: int) -> Call:
    return _forward(at, "softmax_forward", softmax, rows, cols)


@benchmark("softmax", large=LARGE, small=SMALL)
def log_softmax_forward(at: Bench, rows: int, cols: int) -> Call:
    return _forward(at, "log_softmax_forward", log_softmax, rows, cols)


@benchmark("softmax", large={"rows": 8192, "cols": 2048, "period": 2048},
           small={"rows": 64, "cols": 256, "period": 32})
def softmax_causal_forward(at: Bench, rows: int, cols: int, period: int) -> Call:
    """Queries are the last `period` of `cols` positions; what a row does not see need not be read."""
    x, y, some, offset = at.normal(rows, cols), at.empty(rows, cols), at.some(rows), cols - period
    seen = np.minimum(np.arange(rows) % period + offset + 1, cols)

    def formula() -> np.ndarray:
        hidden = np.arange(cols) >= seen[some, None]
        return softmax(np.where(hidden, -np.inf, at.wide(x, some)))

    return Call(at.queue("softmax_causal_forward", y, x, rows, cols, period, offset, None, at.code,
                         *_scratch(at, rows, cols)), [int(seen.sum()) * x.itemsize], [y],
                [Check("y", y, formula, some)])


@benchmark("softmax", large=LARGE, small=SMALL)
def softmax_backward(at: Bench, rows: int, cols: int) -> Call:
    dy, dx, some = at.normal(rows, cols), at.empty(rows, cols), at.some(rows)
    y = at.uniform(rows, cols, high=2 / cols)

    def formula() -> np.ndarray:
        d, p = at.wide(dy, some), at.wide(y, some)
        return p * (d - (d * p).sum(axis=1, keepdims=True))

    return Call(at.queue("softmax_backward", dx, dy, y, rows, cols, at.code, *_scratch(at, rows, cols)),
                [dy, y], [dx], [Check("dx", dx, formula, some)])


@benchmark("softmax", large=LARGE, small=SMALL)
def log_softmax_backward(at: Bench, rows: int, cols: int) -> Call:
    dy, dx, some = at.normal(rows, cols), at.empty(rows, cols), at.some(rows)
    y = at.uniform(rows, cols, low=-2 - np.log(cols), high=-np.log(cols))

    def formula() -> np.ndarray:
        d = at.wide(dy, some)
        return d - np.exp(at.wide(y, some)) * d.sum(axis=1, keepdims=True)

    return Call(at.queue("log_softmax_backward", dx, dy, y, rows, cols, at.code, *_scratch(at, rows, cols)),
                [dy, y], [dx], [Check("dx", dx, formula, some)])
