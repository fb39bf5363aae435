"""nn/elementwise.h"""

_FORWARD = "y* x* n:i64 dtype:i32 stream*"
_BACKWARD = "dx* dy* x* n:i64 dtype:i32 stream*"

FUNCTIONS = {
    "nn_silu_forward": _FORWARD,
    "nn_silu_backward": _BACKWARD,
    "nn_gelu_forward": _FORWARD,
    "nn_gelu_backward": _BACKWARD,
    "nn_gelu_tanh_forward": _FORWARD,
    "nn_gelu_tanh_backward": _BACKWARD,
    "nn_sigmoid_forward": _FORWARD,
    "nn_sigmoid_backward": "dx* dy* y* n:i64 dtype:i32 stream*",
    "nn_relu_forward": _FORWARD,
    "nn_relu_backward": _BACKWARD,
    "nn_add_forward": "y* a* b* n:i64 dtype:i32 stream*",
    "nn_mul_forward": "y* a* b* n:i64 dtype:i32 stream*",
    "nn_scale_forward": "y* x* n:i64 alpha:f32 beta:f32 dtype:i32 stream*",
    "nn_cast_forward": "y* x* n:i64 y_dtype:i32 x_dtype:i32 stream*",
    "nn_fill_forward": "y* n:i64 value:f32 dtype:i32 stream*",
    "nn_swiglu_forward": "y* gate* up* n:i64 dtype:i32 stream*",
    "nn_swiglu_backward": "dgate* dup* dy* gate* up* n:i64 dtype:i32 stream*",
    "nn_swiglu_packed_forward": "y* x* rows:i64 cols:i64 dtype:i32 stream*",
    "nn_swiglu_packed_backward": "dx* dy* x* rows:i64 cols:i64 dtype:i32 stream*",
}
