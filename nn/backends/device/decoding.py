"""Protocol functions of a decoding step: every place and length is read on the device."""

from typing import Any

from cuda.nn.array import DeviceArray
from nn.backends.device.attention import DECODE_QUERIES, attention_forward
from nn.backends.device.attention import cache_append as append
from nn.backends.device.attention import decode_attention as decode
from nn.backends.device.rotary import rope_qk


def rope_at(x: DeviceArray, cos: Any, sin: Any, positions: Any, *, interleaved: bool = False) -> DeviceArray:
    """x[B,H,T,D] turned by rows positions[b] + t of the tables cos, sin [P,r/2]."""
    turned = rope_qk(x, None, cos, sin, positions=positions, interleaved=interleaved)[0]
    assert turned is not None
    return turned


def decode_attention(q: DeviceArray, k: DeviceArray, v: DeviceArray, lengths: Any, *, scale: float,
                     window: int = 0) -> DeviceArray:
    """o[B,H,T,Dv] of the last T of lengths[b] positions in caches k[B,G,S,D], v[B,G,S,Dv]."""
    if q.shape[2] <= DECODE_QUERIES:
        return decode(q, k, v, lengths, scale=scale, window=window)[0]
    return attention_forward(q, k, v, scale=scale, window=window, key_lengths=lengths)[0]


def cache_append(k_cache: DeviceArray, v_cache: DeviceArray, k: DeviceArray, v: DeviceArray,
                 lengths: Any) -> None:
    """cache[b, :, lengths[b] + t] = new[b, :, t], as far as there is room."""
    keys, values = (x if x.strides[-1] == 1 else x.contiguous() for x in (k_cache, v_cache))
    append(keys, values, k, v, lengths)
    for given, changed in ((k_cache, keys), (v_cache, values)):
        if changed is not given:
            given[...] = changed
