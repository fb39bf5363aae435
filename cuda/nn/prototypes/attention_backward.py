"""nn/attention_backward.h"""

from ctypes import c_int64, c_void_p

from cuda.nn.prototypes.attention import Sized

FUNCTIONS = {
    "nn_attention_backward": "attention* gradients* workspace* workspace_bytes:i64 stream*",
    "nn_attention_backward_workspace_size": "batch:i64 heads:i64 groups:i64 queries:i64 keys:i64 width:i64 "
                                            "value_width:i64 -> i64",
    "nn_attention_backward_path": "attention* gradients* path*",
}


class AttentionGradients(Sized):
    """nn_attention_gradients"""

    _fields_ = (
        ("size", c_int64), ("d_o", c_void_p), ("dq", c_void_p), ("dk", c_void_p), ("dv", c_void_p),
        *((name, c_int64 * 3) for name in ("d_o_strides", "dq_strides", "dk_strides", "dv_strides")),
    )
