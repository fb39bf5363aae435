"""Recorded steps: what a CUDA graph is on a GPU, a list of kernel calls is on the CPU.

    with record(inputs=[x, weight]) as step:
        y, rstd = kernels.rms_norm(x, weight, 1e-6)
        z = kernels.softmax(y)
    x[...] = ...; step.replay()         # z holds the result for the new x, without Python between the kernels

Whatever the calls touch is either among `inputs`, which keep their places, or the result of a recorded call.
A call that cannot be recorded (the reference would run it, or something else made its argument) is an
InputError that names it.  Numbers that change from step to step are given as NumPy float64 arrays of no axes,
which are inputs too.

At the end buffers are planned by lifetime, and a first replay must give the same bits: see
csrc/native/core/record.h."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nn.backends import native, use_backend
from nn.errors import InputError


class Step:
    """A recorded step; see `record`."""

    def __init__(self) -> None:
        self._recording = native.extension().Recording()

    def replay(self) -> None:
        """Run the calls again, on the same places."""
        self._recording.replay()

    @property
    def calls(self) -> int:
        """How many kernels a replay runs."""
        return self._recording.calls

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: `planned` for results that nobody holds, `eager` what was alive at once while recording,
        `outputs` of results that were still held."""
        recording = self._recording
        return {"planned": recording.arena_bytes, "eager": recording.eager_bytes,
                "outputs": recording.output_bytes}


@contextmanager
def record(inputs: Iterable[np.ndarray]) -> Iterator[Step]:
    """Record the kernels called inside the block, in this thread; they run as they are recorded."""
    step = Step()
    for array in inputs:
        step._recording.declare(array)
    try:
        step._recording.begin()
    except RuntimeError as error:
        raise InputError(f"record: {error}") from None
    try:
        with use_backend("native"):
            yield step
    except BaseException as error:
        _end(step, check=False)
        if isinstance(error, RuntimeError) and "cannot be recorded" in str(error):
            raise InputError(str(error)) from None
        raise
    _end(step, check=True)


def _end(step: Step, *, check: bool) -> None:
    try:
        step._recording.end(check)
    except RuntimeError as error:
        raise InputError(f"record: {error}") from None


def number(value: float) -> Any:
    """A number that a recorded step reads anew at every replay: set it with x[...] = value."""
    return np.array(value, np.float64)
