"""Recorded steps: what a CUDA graph is on a GPU, a list of kernel calls is on the CPU.

    with record(inputs=[x, weight]) as step:
        y, rstd = kernels.rms_norm(x, weight, 1e-6)
        z = kernels.softmax(y)
        step.result(z)
    x[...] = ...; step.replay()         # z holds the result for the new x, without Python between the kernels

Whatever the calls touch is either among `inputs`, which keep their places, or the result of a recorded call;
of a model, whose weights are many, `everything` that was there before.
A call that cannot be recorded (the reference would run it, or something else made its argument) is an
InputError that names it.  Numbers that change from step to step are given as NumPy float64 arrays of no axes,
which are inputs too.

At the end buffers are planned by lifetime, and a first replay must give the same bits; arrays that kernels
read, and none changes, must hold what they held: a NumPy operation that writes into them, or into a result,
between two kernels is an InputError.  Not found, and the caller's care: what it writes before a kernel first
reads it (with `everything`; arrays in `inputs` are watched from the start), and into arrays that kernels
change, too.  See csrc/native/core/record.h."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nn.backends import native, use_backend
from nn.errors import InputError


class AlreadyRecording(InputError):
    """One recording at a time: another is active, of this thread or another."""


class DeclinedError(InputError):
    """A recorded kernel does not take what it finds at a replay."""


class Places:
    """Where a model's parameters lie when a step is recorded.  A replay reads what lies there: where one has
    been given another array (Parameter.load, load_state_dict) the step must be recorded anew."""

    def __init__(self, parameters: Iterable[Any]) -> None:
        self._held = [(p, p.data, p.requires_grad) for p in parameters if p.allocated]

    def unchanged(self) -> bool:
        """Whether every parameter has the array it had, and is trained if it was"""
        return all(p.data is data and p.requires_grad == trained for p, data, trained in self._held)


class Step:
    """A recorded step; see `record`."""

    def __init__(self) -> None:
        self._recording = native.extension().Recording()

    def replay(self, run: Callable[[Any], Any] = lambda recording: recording.replay()) -> Any:
        """Run the calls again, on the same places.  DeclinedError if a kernel does not take what lies there
        now, an index out of range say; results are those of no step then.

        run: what replays the extension's Recording, and more behind it, and what that gives is returned."""
        try:
            return run(self._recording)
        except RuntimeError as error:
            raise DeclinedError(f"replay: {error}") from None

    def result(self, array: np.ndarray, what: str = "the result") -> np.ndarray:
        """The array, which every replay writes anew.  InputError, inside the block, if no recorded kernel
        made it: it would stay as it is."""
        if not self._recording.is_result(array):
            raise InputError(f"{what}: made by something else than a native kernel, which is not recorded")
        return array

    def profile(self, rounds: int = 20) -> list[tuple[str, int, float]]:
        """(kernel, bytes of its arrays, mean seconds) of every call, over so many replays."""
        found: list[tuple[str, int, float]] = self._recording.profile(rounds)
        return found

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
def record(inputs: Iterable[np.ndarray] = (), *, everything: bool = False) -> Iterator[Step]:
    """Record the kernels called inside the block, in this thread; they run as they are recorded.

    everything: whatever was there before the block is an input, and is kept; only what NumPy makes inside it
    is not."""
    step = Step()
    for array in inputs:
        step._recording.declare(array)
    try:
        step._recording.begin(everything)
    except RuntimeError as error:
        raise AlreadyRecording(f"record: {error}") from None
    except ValueError as error:
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
