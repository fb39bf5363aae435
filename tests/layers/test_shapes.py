"""Shapes checked by the letters of their axes."""

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.shapes import Shapes
from nn.tensor import Tensor


def test_sizes_are_bound_by_the_first_that_has_them() -> None:
    shapes = Shapes(D=8)
    shapes.check("q", np.zeros((2, 4, 5, 8)), "B H T D")
    shapes.check("k", Tensor(np.zeros((2, 1, 7, 8))), "B G S D")
    shapes.check("empty", np.zeros((2, 0)), "B E")
    assert {letter: size for letter, (size, _) in shapes.sizes.items()} == {
        "B": 2, "H": 4, "T": 5, "D": 8, "G": 1, "S": 7, "E": 0}


@pytest.mark.parametrize(("shape", "axes", "message"), [
    ((3, 1, 7, 8), "B G S D", "k: shape [3, 1, 7, 8]; expected [B,G,S,D] with B = 2 (as in q)"),
    ((3, 1, 7, 9), "B G S D", "k: shape [3, 1, 7, 9]; expected [B,G,S,D] with B = 2 (as in q), D = 8"),
    ((1, 7, 8), "B G S D", "k: shape [1, 7, 8]; expected [B,G,S,D] with B = 2 (as in q), D = 8"),
    ((3,), "N N", "k: shape [3]; expected [N,N]"),
])
def test_errors_show_both(shape: tuple[int, ...], axes: str, message: str) -> None:
    shapes = Shapes(D=8)
    shapes.check("q", np.zeros((2, 4)), "B H")
    with pytest.raises(InputError) as caught:
        shapes.check("k", np.zeros(shape), axes)
    assert str(caught.value) == message


def test_ids() -> None:
    assert Shapes().ids("ids", [[1, 2]], "B T", 3).tolist() == [[1, 2]]
    assert Shapes().ids("ids", np.zeros((0, 3), np.uint8), "B T", 3).shape == (0, 3)
    for values, message in (([[1, 3]], "ids: 3 at [0, 1] is not in the vocabulary, 0 ... 2"),
                            ([[0], [-1]], "ids: -1 at [1, 0]"), ([[0.0]], "ids: float64 of shape [1, 1]"),
                            ([1], "ids: shape [1]; expected [B,T]"), ([[True]], "ids: bool of shape"),
                            ([[1], [1, 2]], "ids: rows of different lengths")):
        with pytest.raises(InputError) as caught:
            Shapes().ids("ids", values, "B T", 3)
        assert message in str(caught.value)


def test_masks() -> None:
    assert Shapes().mask("mask", None, "B S") is None
    for values in ([[True, False]], [[1, 0]], np.array([[1, 0]], np.uint8)):
        keep = Shapes().mask("mask", values, "B S")
        assert keep is not None
        assert (keep.tolist(), keep.dtype) == ([[True, False]], np.dtype(bool))
    for values, message in (([[0.5]], "mask: float64 values; expected True (or 1)"),
                            ([[2]], "mask: int64 values"),
                            ([[1, 1]], "mask: shape [1, 2]; expected [B,S] with S = 3")):
        with pytest.raises(InputError) as caught:
            Shapes(S=3).mask("mask", values, "B S")
        assert message in str(caught.value)
