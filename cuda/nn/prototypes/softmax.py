"""nn/softmax.h"""

_FORWARD = "y* x* rows:i64 cols:i64 dtype:i32 workspace* workspace_bytes:i64 stream*"
_BACKWARD = "dx* dy* y* rows:i64 cols:i64 dtype:i32 workspace* workspace_bytes:i64 stream*"

FUNCTIONS = {
    "nn_softmax_workspace_size": "rows:i64 cols:i64 dtype:i32 -> i64",
    "nn_softmax_forward": _FORWARD,
    "nn_softmax_causal_forward": "y* x* rows:i64 cols:i64 period:i64 offset:i64 device_offset* dtype:i32 "
                                 "workspace* workspace_bytes:i64 stream*",
    "nn_softmax_backward": _BACKWARD,
    "nn_log_softmax_forward": _FORWARD,
    "nn_log_softmax_backward": _BACKWARD,
}
