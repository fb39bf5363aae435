"""Recorded steps: a replay gives the bits of the eager run; what cannot be recorded says so."""

import contextvars
import ctypes
import threading
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from nn.backends import kernels, native, use_backend
from nn.errors import InputError

if native.missing() is not None:
    pytest.skip(str(native.missing()), allow_module_level=True)
from nn.backends.native.recording import Step, number, record

RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def layer(x: np.ndarray, norm: np.ndarray, up: np.ndarray, down: np.ndarray) -> Any:
    """A feed-forward block and its backward for dy = y: several kernels, results that are read late."""
    normed, rstd = kernels.rms_norm(x, norm, 1e-6)
    hidden = kernels.linear(normed, up)
    y = kernels.linear(kernels.swiglu_packed(hidden), down)
    dgated, ddown = kernels.linear_backward(y, kernels.swiglu_packed(hidden), down)
    dnormed, dup = kernels.linear_backward(kernels.swiglu_packed_backward(dgated, hidden), normed, up)
    dx, dnorm = kernels.rms_norm_backward(dnormed, x, norm, rstd, dresidual=y)
    return y, dx, dnorm, dup, ddown


def weights() -> list[np.ndarray]:
    return [draw(48), draw(2 * 80, 48), draw(48, 80)]


def recorded(x: np.ndarray, parameters: list[np.ndarray]) -> tuple[Step, Any]:
    with record(inputs=[x, *parameters]) as step:
        results = layer(x, *parameters)
    return step, results


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_replay_is_the_eager_run(rows: int) -> None:
    x, parameters = draw(rows, 48), weights()
    step, results = recorded(x, parameters)
    for other in (draw(rows, 48), x.copy()):
        x[...] = other
        step.replay()
        with use_backend("native"):
            expected = layer(other, *parameters)
        for result, right in zip(results, expected, strict=True):
            assert result.tobytes() == right.tobytes()
    assert step.calls == 9
    profile = step.profile(2)
    assert [name for name, _, _ in profile][:2] == ["rms_norm", "linear"]
    assert profile[0][1] == (2 * rows * 48 + 48 + rows) * 4
    assert all(seconds > 0 for _, _, seconds in profile)


def test_a_part_of_a_result() -> None:
    """The rows that are read move with the result that they lie in."""
    x = draw(6, 16)
    with record(inputs=[x]) as step:
        part = kernels.softmax(kernels.softmax(x)[2:5])
    x[...] = draw(6, 16)
    step.replay()
    with use_backend("native"):
        expected = kernels.softmax(kernels.softmax(x)[2:5])
    assert part.tobytes() == expected.tobytes()


def test_memory_is_planned_by_lifetime() -> None:
    x, w = draw(64, 96), draw(96)
    with record(inputs=[x, w]) as step:
        y = x
        for _ in range(10):
            y = kernels.softmax(kernels.rms_norm(y, w, 1e-6)[0])
    assert step.calls == 20
    assert step.memory["outputs"] == x.nbytes
    assert step.memory["planned"] < 2.1 * x.nbytes


def test_the_results_are_the_recordings() -> None:
    """Dropping a result while it is recorded frees it, dropping it later does not: replays write there."""
    x = draw(8, 8)
    step, results = recorded(draw(5, 48), weights())
    places = [result.ctypes.data for result in results]
    del results
    fresh = [native.empty((5, 48)) for _ in range(20)]
    assert not {one.ctypes.data for one in fresh} & set(places)
    step.replay()
    with record(inputs=[x]) as step:
        pass
    step.replay()
    assert step.calls == 0


def test_numbers_are_read_at_every_replay() -> None:
    p, g, m, v = (np.ones(50, np.float32) for _ in range(4))
    lr, at = number(0.1), number(1)
    options = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    with record(inputs=[p, g, m, v, lr, at]) as step:
        kernels.adamw(p, g, m, v, lr=lr, step=at, **options)
    q, n, w = (np.ones(50, np.float32) for _ in range(3))
    with use_backend("native"):
        kernels.adamw(q, g, n, w, lr=0.1, step=1, **options)
        assert np.array_equal(p, q)                                  # recorded once, not twice
        kernels.adamw(q, g, n, w, lr=0.02, step=2, **options)
    lr[...], at[...] = 0.02, 2
    step.replay()
    assert np.array_equal(p, q)


def test_other_threads_are_not_recorded() -> None:
    x, y = draw(6, 9), draw(6, 9)
    with record(inputs=[x]) as step:
        kept = kernels.softmax(x)
        other = threading.Thread(target=lambda: [kernels.softmax(y) for _ in range(10)])
        other.start()
        other.join()
    assert step.calls == 1
    assert step.memory["outputs"] == kept.nbytes


class TestEverythingFromBefore:
    """`everything`: weights need not be named, and what NumPy makes meanwhile is found out."""

    def test_weights_are_kept(self) -> None:
        x, parameters = draw(3, 48), weights()
        copies = [parameter.copy() for parameter in parameters]
        with record(everything=True) as step:
            results = layer(x, *parameters)
        del parameters
        rubbish = [draw(2 * 80, 48) for _ in range(5)]
        x[...] = draw(3, 48)
        step.replay()
        with use_backend("native"):
            expected = layer(x, *copies)
        assert [a.tobytes() for a in results] == [b.tobytes() for b in expected]
        del rubbish

    @pytest.mark.parametrize("size", [8, 20_000])
    def test_numpy_in_between(self, size: int) -> None:
        x, other = draw(2, size), draw(2, size)
        with (pytest.raises(InputError, match="softmax cannot be recorded: x is neither the result of"),
              record(everything=True)):
            kernels.softmax(x + 1.0)
        with pytest.raises(InputError, match="neither"), record(everything=True):
            kernels.softmax((kernels.softmax(x) + other)[1:])
        with record(everything=True) as step:
            kept = kernels.softmax((x.T.T)[1:])                      # views are no new memory
            np.sum(other * 2.0)                                      # what no kernel reads does not matter
        assert step.calls == 1
        assert kept.shape == (1, size)


    def test_numpy_in_another_context(self) -> None:
        """NumPy's allocator belongs to the context, not to the thread, which has called kernels before."""
        x = draw(2, 8)
        kernels.softmax(x)

        def between() -> None:
            with record(everything=True):
                kernels.softmax(x + 1.0)

        with pytest.raises(InputError, match="softmax cannot be recorded: x is neither the result of"):
            contextvars.Context().run(between)

    def test_another_allocator(self) -> None:
        def within() -> None:
            foreign_allocator()
            with pytest.raises(InputError, match="another allocator"), record(everything=True):
                pass
            x = draw(2, 8)
            with record([x]) as step:                                # what is named need not be found out
                kernels.softmax(x)
            assert step.calls == 1

        contextvars.Context().run(within)


HANDLER = b"mem_handler"                                             # NumPy's name of such capsules


def foreign_allocator() -> None:
    """In this context NumPy's own functions from now on, in a handler that is not NumPy's."""
    core: Any = import_module("numpy._core._multiarray_umath")
    place = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi))
    capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi))
    api = ctypes.cast(place(core._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    standard = ctypes.cast(api[306], ctypes.POINTER(ctypes.py_object))[0]
    use = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(api[304])
    use(capsule(place(standard, HANDLER), HANDLER, None))


class TestReplaysThatFail:
    def test_a_kernel_declines_what_it_finds(self) -> None:
        table, ids = draw(5, 8), np.array([0, 4, 2])
        with record([table, ids]) as step:
            kept = kernels.embedding(table, ids)
        ids[1] = 5
        with pytest.raises(InputError, match="replay: embedding does not take the values"):
            step.replay()
        ids[1] = 1
        step.replay()
        assert np.array_equal(kept, table[ids])


class TestRefusals:
    def test_something_else_made_an_argument(self) -> None:
        x = draw(4, 8)
        with (pytest.raises(InputError, match="softmax cannot be recorded: x is neither the result of"),
              record(inputs=[x])):
            kernels.softmax(x + 1.0)

    def test_something_else_made_the_result(self) -> None:
        x = draw(4, 8)
        with record([x]) as step:
            assert step.result(kernels.softmax(x)[1:]).shape == (3, 8)
        with pytest.raises(InputError, match="loss: made by something else"), record([x]) as step:
            step.result(kernels.softmax(x) + 1.0, "loss")

    def test_something_else_changed_a_result(self) -> None:
        x, kept = draw(4, 8), []

        def twice() -> None:
            with record(inputs=[x]):
                y = kernels.softmax(x)
                y += 1.0
                kept.append(kernels.softmax(y))
                del y

        with pytest.raises(InputError, match="the replay gave 1 of 1 results otherwise"):
            twice()

    @pytest.mark.parametrize("everything", [False, True])
    @pytest.mark.parametrize("size", [8, 1 << 19])
    @pytest.mark.parametrize("first", [True, False])
    def test_something_else_wrote_what_a_kernel_reads(self, first: bool, size: int, everything: bool) -> None:
        """Before the first read only arrays that are named are watched"""
        x, state = draw(2, size), draw(2, size)

        def wrong() -> Step:
            with record([] if everything else [x, state], everything=everything) as step:
                y = kernels.softmax(x)
                if not first:
                    kernels.softmax(state)
                state[...] = y
                kernels.softmax(state)
            return step

        if everything and first:
            assert wrong().calls == 2
            return
        with pytest.raises(InputError, match="1 of 2 arrays that kernels read were changed by"):
            wrong()

    def test_what_is_written_and_not_read_does_not_matter(self) -> None:
        x, other, grad = draw(4, 8), draw(4, 8), draw(4, 8)
        with record([x, other, grad]) as step:
            kernels.softmax(x)
            other[...] = 1.0
            kernels.accumulate(grad, x)                              # a kernel's own changes are none
            kernels.softmax(grad)
        assert step.calls == 3

    def test_the_reference_would_run(self) -> None:
        x = draw(8, 8)
        with (pytest.raises(InputError, match="cannot be recorded: x: last axis not dense"),
              record(inputs=[x])):
            kernels.rms_norm(x.T, x[0], 1e-6)

    def test_no_native_kernel(self) -> None:
        x = draw(8, 8).astype(np.float64)
        with pytest.raises(InputError, match="gelu: NN_BACKEND=native has no"), record(inputs=[x]):
            kernels.gelu(x)

    def test_a_number_goes_to_python(self) -> None:
        x = draw(8, 8)
        with pytest.raises(InputError, match="it returns a number to Python"), record(inputs=[x]):
            kernels.sum_of_squares(x)

    def test_an_unknown_number(self) -> None:
        x = draw(8, 8)
        with (pytest.raises(InputError, match="eps is read from memory that is not declared"),
              record(inputs=[x])):
            kernels.rms_norm(x, x[0], number(1e-6))

    def test_too_much_is_changed_in_place(self) -> None:
        p = np.zeros((1 << 26) + 1, np.float32)                      # never touched
        with (pytest.raises(InputError, match="param is changed in place.* copies of more than 256 MiB"),
              record([p])):
            kernels.adamw(p, p, p, p, lr=0.1, step=1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)

    def test_two_at_once(self) -> None:
        with pytest.raises(InputError, match="active already"), record(inputs=[]), record(inputs=[]):
            pass
        with record(inputs=[]):                                      # neither is left behind
            pass
