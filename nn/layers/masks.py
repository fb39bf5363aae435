"""Padding masks as nn/layers/protocol.py defines them: [B,S] booleans, the last column the newest token's."""

from nn import ops
from nn.backends.array_api import beside
from nn.errors import InputError
from nn.tensor import Array, Tensor


def newest(mask: Array | None, length: int) -> Array | None:
    """[B,T], the columns of the `length` newest tokens (of the keys held, for attention).
    InputError if there are fewer."""
    if mask is None:
        return None
    if mask.ndim != 2 or mask.shape[1] < length:
        raise InputError(f"mask: shape {list(mask.shape)}; expected [batch, {length} or more columns], "
                         "the last one for the newest token")
    return mask[:, mask.shape[1] - length :]


def masked(x: Tensor, mask: Array | None) -> Tensor:
    """x[B,T,...] with zeros at padding: what a convolution or a recurrence may take in."""
    keep = newest(mask, x.shape[1])
    if keep is None:
        return x
    shape = (*keep.shape, *[1] * (x.ndim - 2))
    return ops.where(beside(keep, x.data).reshape(shape), x, 0.0)
