"""Checking shapes by the letters of their axes, so that an error shows who disagrees with whom.

    shapes = Shapes()
    shapes.check("q", q, "B H T D")              # [2,4,5,8]
    shapes.check("k", k, "B G S D")              # k: shape [3,2,5,8]; expected [B,G,S,D] with B = 2 (as in q)
    keep = shapes.mask("mask", mask, "B S")
    ids = shapes.ids("ids", ids, "B T", vocab_size=256)"""

from typing import Any

import numpy as np

from nn.backends.array_api import on_device
from nn.errors import InputError
from nn.tensor import Array, Tensor


class Shapes:
    """Sizes of axes, as the arrays checked so far have them, or as they are given: Shapes(D=8)."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = {letter: (size, "") for letter, size in sizes.items()}       # {letter: (size, whose)}

    def check(self, name: str, array: Any, axes: str) -> None:
        """InputError unless the array has these axes, and sizes of the letters that are known already."""
        shape, letters = tuple(int(size) for size in array.shape), axes.split()
        known = {letter: self.sizes[letter] for letter in letters if letter in self.sizes}
        fits = len(shape) == len(letters)
        wrong = [letter for letter, size in zip(letters, shape, strict=False)
                 if self.sizes.get(letter, (size,))[0] != size]
        if wrong or not fits:
            why = ", ".join(f"{letter} = {size}{whose and f' (as in {whose})'}" for letter, (size, whose)
                            in known.items() if letter in wrong or not fits)
            raise InputError(f"{name}: shape {list(shape)}; expected [{','.join(letters)}]"
                             f"{why and ' with '}{why}")
        for letter, size in zip(letters, shape, strict=True):
            self.sizes.setdefault(letter, (size, name))

    def ids(self, name: str, values: Any, axes: str, vocab_size: int) -> Array:
        """Integers 0 ... vocab_size − 1 from whatever has the array interface (NumPy, PyTorch, lists), those
        of a device unread.  InputError names the argument, and the place of an id that is none."""
        ids = values if on_device(values) else _as_array(name, values)
        if ids.dtype.kind not in "iu":
            raise InputError(f"{name}: {ids.dtype} of shape {list(ids.shape)}; expected integers "
                             f"[{','.join(axes.split())}]")
        self.check(name, ids, axes)
        if not on_device(ids) and ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            place = tuple(int(i) for i in np.argwhere((ids < 0) | (ids >= vocab_size))[0])
            raise InputError(f"{name}: {ids[place]} at {list(place)} is not in the vocabulary, 0 ... "
                             f"{vocab_size - 1}")
        return ids

    def mask(self, name: str, values: Any, axes: str) -> np.ndarray | None:
        """Booleans, True keeps, from booleans or from ones and zeros; None stays None."""
        if values is None:
            return None
        keep = _as_array(name, values)
        if keep.dtype.kind not in "biu" or (keep.size and not 0 <= keep.min() <= keep.max() <= 1):
            raise InputError(f"{name}: {keep.dtype} values; expected True (or 1) for tokens and False (or 0) "
                             "for padding")
        self.check(name, keep, axes)
        return keep.astype(bool)


def _as_array(name: str, values: Any) -> np.ndarray:
    values = values.data if isinstance(values, Tensor) else values
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError(f"{name}: rows of different lengths; pad them, and give a mask") from None
