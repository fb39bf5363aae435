"""Barriers of a block (bar, barrier) and of a cluster (barrier.cluster).  See csrc/emulator/barrier.cpp.

`bar` is `barrier` with .aligned.  Whether threads stand at the same aligned barrier is checked as they are
released; the runtime tells the two forms apart by the instruction's spelling."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import instruction

_ALL = "0u"  # of the block's threads


def _thread_count(e: Emitter, operands: tuple[Operand, ...]) -> str:
    return e.value(operands[0], "u32") if operands else _ALL


@instruction("bar", "cta? sync")
@instruction("barrier", "cta? sync aligned?")
def sync(e: Emitter, m: SimpleNamespace, barrier: Operand, *threads: Operand) -> str:
    return f"emu::barrier_sync(t, {e.value(barrier, 'u32')}, {_thread_count(e, threads)}, {e.site()});"


@instruction("bar", "cta? arrive")
@instruction("barrier", "cta? arrive aligned?")
def arrive(e: Emitter, m: SimpleNamespace, barrier: Operand, threads: Operand) -> str:
    return f"emu::barrier_arrive(t, {e.value(barrier, 'u32')}, {e.value(threads, 'u32')}, {e.site()});"


def _reduce(e: Emitter, reduction: str, operands: tuple[Operand, ...]) -> str:
    barrier, *threads, predicate = operands
    arguments = f"{e.value(barrier, 'u32')}, {_thread_count(e, tuple(threads))}, {e.value(predicate, 'pred')}"
    return f"emu::barrier_reduce(t, emu::Reduction::{reduction}, {arguments}, {e.site()})"


@instruction("bar", "cta? red popc u32")
@instruction("barrier", "cta? red popc aligned? u32")
def count_true(e: Emitter, m: SimpleNamespace, destination: Operand, *operands: Operand) -> str:
    return e.assign(destination, "u32", _reduce(e, "popc", operands))


@instruction("bar", "cta? red operation:and|or pred")
@instruction("barrier", "cta? red operation:and|or aligned? pred")
def combine_predicates(e: Emitter, m: SimpleNamespace, destination: Operand, *operands: Operand) -> str:
    reduction = {"and": "all", "or": "any"}[m.operation]
    return e.assign(destination, "pred", f"{_reduce(e, reduction, operands)} != 0")


@instruction("barrier", "cluster arrive sem:release|relaxed? aligned?")
def cluster_arrive(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90)
    return f"emu::cluster_arrive(t, {'false' if m.sem == 'relaxed' else 'true'}, {e.site()});"


@instruction("barrier", "cluster wait acquire? aligned?")
def cluster_wait(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90)
    return f"emu::cluster_wait(t, true, {e.site()});"
