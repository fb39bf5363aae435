"""Storage types by name, and widening and narrowing between them."""

from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

from nn.dtypes import DType, is_floating, is_half, narrow, widen
from nn.errors import InputError

BF16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [BF16, np.dtype(np.float16)]


@pytest.mark.parametrize(("name", "itemsize"), [("float64", 8), ("float32", 4),
                                                ("bfloat16", 2), ("float16", 2)])
def test_names_and_sizes(name: str, itemsize: int) -> None:
    kind = DType(name)
    assert kind == name
    assert kind.itemsize == kind.numpy.itemsize == itemsize
    assert kind.numpy.name == name
    assert DType.of(name) is DType.of(kind) is DType.of(kind.numpy) is DType.of(kind.numpy.type) is kind


@pytest.mark.parametrize("wrong", ["float8", "int64", np.int32, np.dtype(bool)])
def test_other_types_are_refused_with_the_list(wrong: Any) -> None:
    with pytest.raises(InputError,
                       match="is not a storage type; choose one of float64, float32, bfloat16, float16"):
        DType.of(wrong)


def test_half_precision() -> None:
    assert [is_half(kind.numpy) for kind in DType] == [False, False, True, True]
    assert not is_half(array_api_strict.float32)


def test_floating_point_arrays() -> None:
    assert all(is_floating(np.zeros(1, kind.numpy)) for kind in DType)
    assert not any(is_floating(np.zeros(1, kind)) for kind in (np.int64, np.uint8, bool))
    assert is_floating(array_api_strict.asarray([1.0]))
    assert not is_floating(array_api_strict.asarray([1]))


@pytest.mark.parametrize("half", HALVES)
def test_widen(half: np.dtype) -> None:
    array = np.array([1.5, -0.25]).astype(half)
    assert widen(array).dtype == np.float32
    assert widen(array).tolist() == [1.5, -0.25]
    for kind in (np.float32, np.float64):
        same = np.ones(2, kind)
        assert widen(same) is same


def test_narrow_rounds_to_nearest_ties_to_even() -> None:
    values = np.array([3.14159274, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 65504.0], np.float32)
    assert narrow(values, BF16).view(np.uint16).tolist() == [0x4049, 0x3F80, 0x3F82, 0x4780]
    halfway = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11])
    assert narrow(halfway, np.dtype(np.float16)).tolist() == [1.0, 1 + 2.0**-9]
    same = np.ones(2, BF16)
    assert narrow(same, BF16) is same


@pytest.mark.parametrize("half", HALVES)
def test_scalars_that_numpy_makes_of_sums(half: np.dtype) -> None:
    total = np.sum(np.ones(3, np.float32))
    assert narrow(total, half).dtype == half
    assert narrow(total, half).shape == ()
    assert widen(np.max(np.ones(3, half))).dtype == np.float32
