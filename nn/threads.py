"""How many threads a run computes with: one number for the native kernels and NumPy's BLAS.

    with computing_threads(2) as count: ...          # 0: NN_THREADS, else the cores this process may use

Left to choose, BLAS has one thread where native kernels are there: they call it from threads of their own,
and what else multiplies is small; two pools on the same cores wait for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from nn.backends import native
from nn.errors import InputError


def usable_cores() -> int:
    """Of this process, by affinity where the system knows it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def computing_threads(count: int = 0) -> Iterator[int]:
    """So many inside the block, in the whole process; yields how many that is."""
    from threadpoolctl import threadpool_limits
    if count < 0:
        raise InputError(f"threads: {count}; give 1 or more, or 0 for all usable cores")
    is_native = native.missing() is None
    chosen = count or (native.threads() if is_native else usable_cores())
    blas = count or (1 if is_native else chosen)
    with threadpool_limits(blas, user_api="blas"), native.limit_threads(chosen):
        yield chosen


def described(count: int) -> str:
    """For a person: "2 threads" of that setting, 0 or more."""
    with computing_threads(count) as chosen:
        return f"{chosen} thread{'s' * (chosen != 1)}"
