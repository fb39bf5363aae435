"""nn/optimizer.h: many tensors in one launch, the gradients' norm, embeddings and their gradient."""

from dataclasses import dataclass

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks.case import Bench, Call, Check, benchmark
from cuda.nn.prototypes.optimizer import Chunk, Tensor

TENSORS, TENSORS_SMALL = {"tensors": 8, "count": 2 << 20}, {"tensors": 3, "count": 20000}
TABLE = {"count": 16384, "rows": 128256, "width": 4096}
TABLE_SMALL = {"count": 128, "rows": 512, "width": 128}
LR, DECAY, BETA1, BETA2, EPS, STEP = 1e-2, 0.1, 0.9, 0.95, 1e-8, 10
SEEN = 4096


@dataclass(frozen=True)
class Plan:
    """Parameters, gradients and moments, and the tables that say where they are."""

    params: list[DeviceArray]
    masters: list[DeviceArray]       # the float32 parameters; the same where those are float32
    grads: list[DeviceArray]
    first: list[DeviceArray]
    second: list[DeviceArray]
    tensors: DeviceArray             # nn_tensor[]
    chunks: DeviceArray              # nn_chunk[]
    chunk_count: int


def _plan(at: Bench, tensors: int, count: int) -> Plan:
    params = [at.normal(count, scale=0.02) for _ in range(tensors)]
    separate = at.dtype.itemsize < 4
    masters = [at.put(at.values(p).astype(np.float32)) if separate else p for p in params]
    grads = [at.normal(count, scale=1e-2) for _ in range(tensors)]
    first = [at.normal(count, dtype=np.float32, scale=1e-2) for _ in range(tensors)]
    second = [at.uniform(count, dtype=np.float32, high=1e-3) for _ in range(tensors)]
    rows = (Tensor * tensors)(*(
        Tensor(p.pointer, master.pointer if separate else None, g.pointer, m.pointer, v.pointer, count, 1.0,
               DECAY, at.code, at.code)
        for p, master, g, m, v in zip(params, masters, grads, first, second, strict=True)))
    each = -(-count // at.device.library.nn_chunk_elements())
    pieces = (Chunk * (tensors * each))(*(Chunk(i, j) for i in range(tensors) for j in range(each)))
    return Plan(params, masters, grads, first, second, at.put(np.frombuffer(bytes(rows), np.uint8).copy()),
                at.put(np.frombuffer(bytes(pieces), np.uint8).copy()), tensors * each)


@benchmark("optimizer", large=TENSORS, small=TENSORS_SMALL)
def adamw_forward(at: Bench, tensors: int, count: int) -> Call:
    plan, some = _plan(at, tensors, count), at.some(count, SEEN)
    lr, step = at.put(np.array([LR])), at.put(np.array([STEP]))
    master, grad, first, second = (of[-1] for of in (plan.masters, plan.grads, plan.first, plan.second))

    def m() -> np.ndarray:
        return BETA1 * at.wide(first, some) + (1 - BETA1) * at.wide(grad, some)

    def v() -> np.ndarray:
        return BETA2 * at.wide(second, some) + (1 - BETA2) * at.wide(grad, some)**2

    def p() -> np.ndarray:
        root = np.sqrt(v() / (1 - BETA2**STEP)) + EPS
        return at.wide(master, some) * (1 - LR * DECAY) - LR * m() / (1 - BETA1**STEP) / root

    kept = [*plan.masters, *plan.first, *plan.second]
    halves = [p for p in plan.params if p.dtype.itemsize < 4]
    return Call(at.queue("adamw_forward", plan.tensors, plan.chunks, plan.chunk_count, lr, step, None, None,
                         BETA1, BETA2, EPS), [*plan.grads, *kept], [*kept, *halves],
                [Check("m", first, m, some), Check("v", second, v, some), Check("master", master, p, some),
                 Check("param", plan.params[-1], p, some)])


@benchmark("optimizer", large=TENSORS, small=TENSORS_SMALL)
def gradient_norm_forward(at: Bench, tensors: int, count: int) -> Call:
    plan, skip = _plan(at, tensors, count), at.empty(1, dtype=np.int32)
    norm, scale = at.empty(1, dtype=np.float32), at.empty(1, dtype=np.float32)
    scratch = at.workspace(at.device.library.nn_gradient_norm_workspace_size(plan.chunk_count))

    def formula() -> np.ndarray:
        return np.sqrt(sum((at.wide(g)**2).sum(keepdims=True) for g in plan.grads))

    return Call(at.queue("gradient_norm_forward", norm, scale, skip, None, plan.tensors, plan.chunks,
                         plan.chunk_count, None, 1.0, *scratch), [*plan.grads], [norm, scale, skip],
                [Check("norm", norm, formula),
                 Check("scale", scale, lambda: np.minimum(1, 1 / (formula() + 1e-6))),
                 Check("skip", skip, lambda: np.zeros(1, np.int32))])


@benchmark("optimizer", large=TENSORS, small=TENSORS_SMALL)
def zero_gradients(at: Bench, tensors: int, count: int) -> Call:
    plan = _plan(at, tensors, count)
    return Call(at.queue("zero_gradients", plan.tensors, plan.chunks, plan.chunk_count), [], [*plan.grads],
                [Check(f"grad {i}", g, lambda: np.zeros(count)) for i, g in enumerate(plan.grads)])


@benchmark("optimizer", large={"n": 1}, small={"n": 1}, dtypes=("float32",))
def counter_increment(at: Bench, n: int) -> Call:
    """A launch that does next to nothing: what any launch costs."""
    counter = at.put(np.arange(7, 7 + n))
    return Call(at.queue("counter_increment", counter, None), [8], [8],
                [Check("counter", counter, lambda: np.arange(7, 7 + n) + (np.arange(n) == 0))])


@benchmark("optimizer", large={"n": 1 << 25}, small={"n": 1 << 16})
def sum_of_squares(at: Bench, n: int) -> Call:
    x, total = at.normal(n), at.empty(1, dtype=np.float64)
    scratch = at.workspace(at.device.library.nn_sum_of_squares_workspace_size(n))
    return Call(at.queue("sum_of_squares", total, x, n, at.code, *scratch), [x], [total],
                [Check("total", total, lambda: (at.wide(x)**2).sum(keepdims=True))])


# ---- embeddings ----


@benchmark("optimizer", large=TABLE, small=TABLE_SMALL)
def embedding_forward(at: Bench, count: int, rows: int, width: int) -> Call:
    """Each row that is named is read once, however often it is."""
    table, index, out, some = at.normal(rows, width), at.integers(rows, count), at.empty(count, width), \
        at.some(count)
    named = len(np.unique(at.values(index)))
    return Call(at.queue("embedding_forward", out, table, index, count, rows, width, at.code, index.code),
                [named * width * out.itemsize, index], [out],
                [Check("out", out, lambda: at.wide(table, at.values(index)[some]), some)])


@benchmark("optimizer", large=TABLE | {"rows": 32768}, small=TABLE_SMALL)
def scatter_add_forward(at: Bench, count: int, rows: int, width: int) -> Call:
    """Added to what is there, as gradients are: rows that are named are read and written once."""
    source, index = at.normal(count, width), at.integers(rows, count)
    out = at.normal(rows, width, dtype=np.float32)
    named = np.unique(at.values(index))
    some = np.unique(np.concatenate([named[at.some(len(named), 8)], [0, rows - 1]]))
    scratch = at.workspace(at.device.library.nn_scatter_add_workspace_size(count, rows))

    def formula() -> np.ndarray:
        return at.wide(out, some) + np.stack([at.wide(source, at.values(index) == row).sum(axis=0)
                                              for row in some])

    touched = len(named) * width * out.itemsize
    return Call(at.queue("scatter_add_forward", out, source, index, count, rows, width, 1, at.code,
                         index.code, *scratch), [source, index, touched], [touched],
                [Check("out", out, formula, some)])
