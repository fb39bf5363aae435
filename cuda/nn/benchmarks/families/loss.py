"""nn/loss.h: cross-entropy reads each logit once; linear + cross-entropy is three products in chunks."""

from ctypes import byref, sizeof
from functools import cache

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.prototypes.loss import CrossEntropy, LinearCrossEntropy

LARGE, SMALL = {"rows": 2048, "vocabulary": 128256}, {"rows": 16, "vocabulary": 2048}
IGNORED = -100
BUDGET = 256 << 20        # bytes of logits held at a time


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    top = x.max(axis=1)
    return top + np.log(np.exp(x - top[:, None]).sum(axis=1))


def _targets(at: Bench, rows: int, vocabulary: int) -> DeviceArray:
    """One in eight is ignored."""
    values = at.random.integers(vocabulary, size=rows)
    values[at.random.random(rows) < 0.125] = IGNORED
    return at.put(values)


def _call(at: Bench, logits: DeviceArray, targets: DeviceArray, **pointers: DeviceArray) -> CrossEntropy:
    rows, vocabulary = logits.shape
    return CrossEntropy(size=sizeof(CrossEntropy), logits=logits.pointer, targets=targets.pointer, rows=rows,
                        vocabulary=vocabulary, stride=vocabulary, gradient_stride=vocabulary,
                        ignore_index=IGNORED, target_dtype=targets.code, dtype=at.code,
                        gradient_dtype=at.code, **{name: x.pointer for name, x in pointers.items()})


@benchmark("loss", large=LARGE, small=SMALL)
def cross_entropy_forward(at: Bench, rows: int, vocabulary: int) -> Call:
    logits, targets, some = at.normal(rows, vocabulary), _targets(at, rows, vocabulary), at.some(rows)
    loss, lse = at.empty(rows, dtype=np.float32), at.empty(rows, dtype=np.float32)
    call = _call(at, logits, targets, loss=loss, lse=lse)

    def formula() -> np.ndarray:
        x, t = at.wide(logits, some), at.values(targets)[some]
        return np.where(t == IGNORED, 0, log_sum_exp(x) - x[np.arange(len(t)), np.maximum(t, 0)])

    return Call(at.queue("cross_entropy_forward", byref(call)), [logits, targets], [loss, lse],
                [Check("loss", loss, formula, some)])


@benchmark("loss", large=LARGE, small=SMALL)
def cross_entropy_backward(at: Bench, rows: int, vocabulary: int) -> Call:
    """With the log-sum-exp that the forward left."""
    logits, targets, some = at.normal(rows, vocabulary), _targets(at, rows, vocabulary), at.some(rows)
    dloss, dlogits = at.normal(rows, dtype=np.float32), at.empty(rows, vocabulary)
    loss, lse = at.empty(rows, dtype=np.float32), at.empty(rows, dtype=np.float32)
    forward = _call(at, logits, targets, loss=loss, lse=lse)
    at.device.call("cross_entropy_forward", byref(forward))
    call = _call(at, logits, targets, lse=lse, dloss=dloss, dlogits=dlogits)

    def formula() -> np.ndarray:
        t, x = at.values(targets)[some], at.wide(logits, some)
        p = np.exp(x - log_sum_exp(x)[:, None])
        p[np.arange(len(t)), np.maximum(t, 0)] -= 1
        return np.where(t[:, None] == IGNORED, 0, p * at.wide(dloss, some)[:, None])

    counts = int(np.count_nonzero(at.values(targets) != IGNORED))         # other rows need not be read
    return Call(at.queue("cross_entropy_backward", byref(call)),
                [counts * vocabulary * logits.itemsize, targets, 4 * counts, 4 * counts], [dlogits],
                [Check("dlogits", dlogits, formula, some)])


# ---- means over tokens ----


@benchmark("loss", large={"rows": 1 << 20}, small={"rows": 4096}, dtypes=("float32",))
def mean_loss_forward(at: Bench, rows: int) -> Call:
    loss, targets = at.uniform(rows), _targets(at, rows, 1000)
    mean, total, count = at.empty(1), at.empty(1), at.empty(1, dtype=np.int64)

    def counted() -> np.ndarray:
        return np.array([np.count_nonzero(at.values(targets) != IGNORED)])

    return Call(at.queue("mean_loss_forward", mean, total, count, loss, targets, None, rows, IGNORED,
                         targets.code), [loss, targets], [mean, total, count],
                [Check("count", count, counted),
                 Check("mean", mean, lambda: at.wide(loss).sum() / counted()),
                 Check("sum", total, lambda: at.wide(loss).sum(keepdims=True))])


@benchmark("loss", large={"rows": 1 << 20}, small={"rows": 4096}, dtypes=("float32",))
def mean_loss_backward(at: Bench, rows: int) -> Call:
    dmean, targets, dloss = at.normal(1), _targets(at, rows, 1000), at.empty(rows)
    count = at.put(np.array([np.count_nonzero(at.values(targets) != IGNORED)]))
    return Call(at.queue("mean_loss_backward", dloss, dmean, targets, count, rows, IGNORED, targets.code),
                [dmean, targets, count], [dloss],
                [Check("dloss", dloss, lambda: np.where(at.values(targets) == IGNORED, 0,
                                                        at.wide(dmean) / at.wide(count)))])


# ---- linear + cross-entropy ----


@benchmark("loss", large={"rows": 4096, "width": 2048, "vocabulary": 32768},
           small={"rows": 64, "width": 64, "vocabulary": 512})
def linear_cross_entropy_forward(at: Bench, rows: int, width: int, vocabulary: int) -> Call:
    x, weight = at.normal(rows, width), at.normal(vocabulary, width, scale=width**-0.5)
    targets, loss = at.integers(vocabulary, rows), at.empty(rows, dtype=np.float32)
    dx, dweight = at.empty(rows, width), at.empty(vocabulary, width, dtype=np.float32)
    library, some, columns = at.device.library, at.some(rows, 8), at.some(vocabulary, 8)
    call = LinearCrossEntropy(
        size=sizeof(LinearCrossEntropy), loss=loss.pointer, dx=dx.pointer, dweight=dweight.pointer,
        x=x.pointer, weight=weight.pointer, targets=targets.pointer, rows=rows, width=width,
        vocabulary=vocabulary, ignore_index=IGNORED, target_dtype=targets.code, dtype=at.code,
        chunk=library.nn_linear_cross_entropy_chunk(rows, vocabulary, at.code, BUDGET))

    @cache
    def logits() -> np.ndarray:
        return at.wide(x, some) @ at.wide(weight).T                              # [some,V]

    def losses() -> np.ndarray:
        return log_sum_exp(logits()) - logits()[np.arange(len(some)), at.values(targets)[some]]

    def d_x() -> np.ndarray:
        p = np.exp(logits() - log_sum_exp(logits())[:, None])
        p[np.arange(len(some)), at.values(targets)[some]] -= 1
        return p @ at.wide(weight)

    def d_weight() -> np.ndarray:
        """For some of the vocabulary; the rows' lse follow from their losses, which are compared above."""
        own = (at.wide(x) * at.wide(weight, at.values(targets))).sum(axis=1)
        p = np.exp(at.wide(x) @ at.wide(weight, columns).T - (loss.numpy().astype(np.float64) + own)[:, None])
        return (p - (at.values(targets)[:, None] == columns)).T @ at.wide(x)

    size = library.nn_linear_cross_entropy_workspace_size(byref(call))
    return Call(at.queue("linear_cross_entropy_forward", byref(call), *at.workspace(size)),
                [x, weight, targets], [loss, dx, dweight],
                [Check("loss", loss, losses, some), Check("dx", dx, d_x, some, loose=2),
                 Check("dweight", dweight, d_weight, columns, loose=1 if at.dtype.itemsize == 4 else 1024)],
                flops=6 * rows * width * vocabulary)
