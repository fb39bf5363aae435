"""Lower triangular matrices in halves, [[A, 0], [X, B]]: what is done to one of size 2h is done to A and B, a
stack of two of size h, and to X, by products.  Sizes are powers of two; arrays, not tensors."""

import math

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.tensor import Array


def product(a: Array, b: Array) -> Array:
    """a[...,I,K] b[...,K,J]"""
    return kernels.matmul(a, b)


def transposed(x: Array) -> Array:
    """[...,I,J] -> [...,J,I]"""
    return namespace(x).matrix_transpose(x)


def lower(size: int, like: Array, strict: bool = False) -> Array:
    """[C,C] in the type of `like`: 1 on and below the diagonal (strict: below it), 0 elsewhere"""
    xp = namespace(like)
    place = xp.arange(size)
    kept = place[:, None] > place[None, :] if strict else place[:, None] >= place[None, :]
    return xp.astype(kept, like.dtype)


def halved(x: Array) -> Array:
    """Rows [...,C,D] -> [...,2,C/2,D]"""
    return namespace(x).reshape(x, (*x.shape[:-2], 2, x.shape[-2] // 2, x.shape[-1]))


def diagonal_halves(x: Array) -> Array:
    """A and B of [...,C,C]: [...,2,C/2,C/2]"""
    h = x.shape[-1] // 2
    return namespace(x).stack([x[..., :h, :h], x[..., h:, h:]], axis=-3)


def assembled(halves: Array, below: Array) -> Array:
    """[...,C,C] from A and B [...,2,C/2,C/2] and X [...,C/2,C/2]"""
    xp, first, second = namespace(below), halves[..., 0, :, :], halves[..., 1, :, :]
    top = xp.concat([first, xp.zeros_like(first)], axis=-1)
    return xp.concat([top, xp.concat([below, second], axis=-1)], axis=-2)


def unit_lower_inverse(a: Array) -> Array:
    """(I + a)⁻¹ of strictly lower triangular a[...,C,C]:  [[A⁻¹, 0], [−B⁻¹ X A⁻¹, B⁻¹]]"""
    size, xp = a.shape[-1], namespace(a)
    if size <= 2:
        return lower(size, a) - lower(size, a, strict=True) - a         # I − a, as a² = 0
    if a.ndim > 3:                                                      # halves add an axis; devices have 8
        flat = xp.reshape(a, (math.prod(a.shape[:-2]), size, size))
        return xp.reshape(unit_lower_inverse(flat), a.shape)
    halves, h = unit_lower_inverse(diagonal_halves(a)), size // 2
    below = product(halves[..., 1, :, :], product(a[..., h:, :h], halves[..., 0, :, :]))
    return assembled(halves, -below)


def inverse_flops(size: int) -> int:
    """Of unit_lower_inverse: Σ 2 C s² over halves of s = 2, 4, ..., C/2"""
    return 2 * size * (size * size - 4) // 3 if size > 2 else 0
