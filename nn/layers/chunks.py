"""Sequences cut into chunks of C tokens, the last one filled up with zeros, and put together again; the state
that they go on from."""

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.tensor import Array, Tensor

CHUNK = 64      # tokens handled together unless a block says otherwise


def to_chunks(x: Tensor, size: int) -> Tensor:
    """[B,H,T,...] -> [B,H,n,C,...]"""
    batch, heads, length, *rest = x.shape
    if missing := -length % size:
        xp = namespace(x.data)
        x = ops.concat([x, Tensor(xp.zeros((batch, heads, missing, *rest), dtype=x.dtype))], axis=2)
    return x.reshape(batch, heads, (length + missing) // size, size, *rest)


def from_chunks(x: Tensor, length: int) -> Tensor:
    """[B,H,n,C,...] -> [B,H,T,...]: the first `length` tokens"""
    batch, heads, count, size, *rest = x.shape
    x = x.reshape(batch, heads, count * size, *rest)
    return x if length == count * size else x[:, :, :length]


def state_before(s: Array | Tensor, k: Tensor, v: Tensor) -> Tensor:
    """s as a tensor; InputError unless it is [Dk,Dv] for each row and head of k[B,H,T,Dk], v[B,H,T,Dv]"""
    expected = (*k.shape[:2], k.shape[-1], v.shape[-1])
    if tuple(s.shape) != expected:
        raise InputError(f"state: shape {list(s.shape)}; expected [B,H,Dk,Dv] = {list(expected)}; "
                         "init_state() takes the batch size, reorder() repeats rows")
    return s if isinstance(s, Tensor) else Tensor(s)
