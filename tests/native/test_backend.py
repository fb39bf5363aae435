"""Who serves what: levels by name, fallbacks that are counted and said, and life without the extension."""

import logging
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nn.backends import choose, describe, find, kernels, native, reference
from nn.errors import InputError

built = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "nn.backends.native.nn_native", None)
    native.missing.cache_clear()
    native.extension.cache_clear()
    yield
    monkeypatch.undo()
    native.missing.cache_clear()
    native.extension.cache_clear()


@pytest.mark.usefixtures("without_extension")
def test_without_it_the_reference_serves_and_says_so() -> None:
    assert "is not built; with a C++20 compiler: pip install again, or make native" in str(native.missing())
    assert describe()["backends"]["native"] == native.missing()
    assert set(describe()["kernels"].values()) == {"reference"}
    with pytest.raises(InputError, match="NN_BACKEND=native: the extension is not built"):
        find("native")
    with pytest.raises(InputError, match="native: the extension is not built"):
        native.level()


def test_what_is_built_can_be_loaded() -> None:
    """Else all tests here would be skipped in silence."""
    files = list(Path(native.__file__).parent.glob("nn_native.*.so"))
    mine = [file for file in files if file.name == f"nn_native{sysconfig.get_config_var('EXT_SUFFIX')}"]
    assert not mine or native.missing() is None


@built
def test_it_serves_its_types_and_nothing_else() -> None:
    assert describe()["kernels"]["rms_norm"] == "native"
    for dtype in (np.float64, np.float16, np.int16):
        assert choose("silu", np.zeros(3, dtype))[0].name == "reference"


@built
def test_a_fallback_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    x, why = np.ones((4, 6), np.float32), ("rms_norm", "weight: float64 where float32 is taken")
    before = native.fallbacks().get(why, 0)
    with caplog.at_level(logging.INFO):
        results = [kernels.rms_norm(x, np.ones(6), 1e-6) for _ in range(3)]
    assert native.fallbacks()[why] == before + 3
    assert caplog.text.count(f"rms_norm: the reference runs where {why[1]}") == (before == 0)
    assert np.array_equal(results[0][0], reference.rms_norm(x, np.ones(6), 1e-6)[0])


@built
def test_wrong_arguments_get_the_references_errors() -> None:
    x = np.ones((3, 4), np.float32)
    for wrong in (lambda: kernels.rms_norm(x, np.ones(5, np.float32), 1e-6),
                  lambda: kernels.rms_norm(x, x[0]),
                  lambda: kernels.rms_norm(x, x[0], 1e-6, nonsense=1),
                  lambda: kernels.rms_norm(x, x[0], "eps")):
        with pytest.raises((ValueError, TypeError)):
            wrong()
    with pytest.raises(IndexError):
        kernels.cross_entropy(x, np.array([0, 1, 9]))


@built
def test_the_other_byte_order_is_the_references() -> None:
    x, weight = np.ones((3, 4), np.float32), np.arange(4, dtype=np.float32)
    order = ">" if sys.byteorder == "little" else "<"
    expected = weight / np.sqrt(np.float32(1 + 1e-6))
    found, _ = kernels.rms_norm(x, weight.astype(f"{order}f4"), 1e-6)
    assert np.allclose(found, expected, rtol=1e-6)


@built
def test_offsets_that_do_not_begin_with_0_are_the_references() -> None:
    x, up = np.ones((6, 4), np.float32), np.ones((2, 6, 4), np.float32)
    offsets, order = np.array([2, 3, 6]), np.arange(6)
    before = native.fallbacks().get(("gathered_swiglu", "these values"), 0)
    y = kernels.gathered_swiglu(x, up, offsets, order, 1)[0]
    assert native.fallbacks()[("gathered_swiglu", "these values")] == before + 1
    assert np.array_equal(y, reference.gathered_swiglu(x, up, offsets, order, 1)[0])
    assert not y[:2].any()                                   # rows of no expert, in memory just taken
    assert y[2:].all()


@built
def test_what_may_not_be_written_is_not() -> None:
    p, g = np.ones(5, np.float32), np.ones(5, np.float32)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kernels.adamw(p, g, g.copy(), g.copy(), lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0,
                      step=1)


@built
def test_levels() -> None:
    assert native.levels()[0] == "generic"
    assert native.level() in native.levels()
    before = native.level()
    with native.use_level("generic"):
        assert native.level() == "generic"
    assert native.level() == before
    with pytest.raises(InputError, match="avx1024 is not one of generic"), native.use_level("avx1024"):
        pass


@built
@pytest.mark.parametrize(("level", "says"),
                         [("generic", "generic"), ("avx1024", "NN_NATIVE_LEVEL=avx1024: not one of")])
def test_the_environment_chooses_the_level(level: str, says: str) -> None:
    code = "from nn.backends import native; print(native.missing() or native.level())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"NN_NATIVE_LEVEL": level},
                          capture_output=True, text=True, check=True)
    assert done.stdout.startswith(says)
