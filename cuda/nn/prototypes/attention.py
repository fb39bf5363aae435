"""nn/attention.h"""

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p, sizeof
from typing import Any

FUNCTIONS = {
    "nn_attention_forward": "call* stream*",
    "nn_attention_forward_path": "call* path*",
    "nn_attention_decode": "call* cache* workspace* workspace_bytes:i64 stream*",
    "nn_attention_decode_workspace_size": "batch:i64 heads:i64 queries:i64 capacity:i64 "
                                          "value_width:i64 -> i64",
    "nn_cache_append": "cache* k* v* positions* queries:i64 k_batch_stride:i64 k_head_stride:i64 "
                       "k_position_stride:i64 v_batch_stride:i64 v_head_stride:i64 "
                       "v_position_stride:i64 stream*",
}

DECODE_SPLIT = 256


class Sized(Structure):
    """A structure that begins with its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=sizeof(type(self)), **fields)


class Attention(Sized):
    """nn_attention"""

    _fields_ = [
        ("size", c_int64), ("o", c_void_p), ("lse", c_void_p), ("q", c_void_p), ("k", c_void_p),
        ("v", c_void_p),
        *((name, c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "width",
                                       "value_width")),
        *((name, c_int64 * 3) for name in ("o_strides", "q_strides", "k_strides", "v_strides")),
        ("lse_strides", c_int64 * 2), ("mask", c_void_p), ("mask_strides", c_int64 * 4),
        ("cu_queries", c_void_p), ("cu_keys", c_void_p), ("key_lengths", c_void_p),
        ("window", c_int64), ("scale", c_float), ("softcap", c_float), ("causal", c_int32),
        ("dtype", c_int32),
    ]


class Cache(Sized):
    """nn_cache"""

    _fields_ = [
        ("size", c_int64), ("k", c_void_p), ("v", c_void_p),
        *((name, c_int64) for name in ("batch", "groups", "capacity", "width", "value_width")),
        ("k_strides", c_int64 * 3), ("v_strides", c_int64 * 3), ("block_table", c_void_p),
        ("page", c_int64), ("max_pages", c_int64), ("pages", c_int64), ("dtype", c_int32),
    ]


class Decode(Sized):
    """nn_decode"""

    _fields_ = [
        ("size", c_int64), ("o", c_void_p), ("lse", c_void_p), ("q", c_void_p), ("lengths", c_void_p),
        ("heads", c_int64), ("queries", c_int64), ("o_strides", c_int64 * 3), ("q_strides", c_int64 * 3),
        ("window", c_int64), ("scale", c_float), ("softcap", c_float), ("causal", c_int32),
    ]
