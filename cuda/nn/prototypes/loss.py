"""nn/loss.h"""

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

FUNCTIONS = {
    "nn_cross_entropy_forward": "call* stream*",
    "nn_cross_entropy_backward": "call* stream*",
    "nn_mean_loss_forward": "mean* sum* count* loss* targets* tokens* rows:i64 ignore_index:i64 "
                            "target_dtype:i32 stream*",
    "nn_mean_loss_backward": "dloss* dmean* targets* count* rows:i64 ignore_index:i64 target_dtype:i32 "
                             "stream*",
    "nn_linear_cross_entropy_forward": "call* workspace* workspace_bytes:i64 stream*",
    "nn_linear_cross_entropy_workspace_size": "call* -> i64",
    "nn_linear_cross_entropy_chunk": "rows:i64 vocabulary:i64 dtype:i32 budget:i64 -> i64",
}


class CrossEntropy(Structure):
    """nn_cross_entropy"""

    _fields_ = (("size", c_int64), ("loss", c_void_p), ("lse", c_void_p), ("dlogits", c_void_p),
                ("dloss", c_void_p), ("logits", c_void_p), ("targets", c_void_p), ("rows", c_int64),
                ("vocabulary", c_int64), ("stride", c_int64), ("gradient_stride", c_int64),
                ("ignore_index", c_int64), ("label_smoothing", c_float), ("z_loss", c_float), ("softcap",
                                                                                               c_float),
                ("target_dtype", c_int32), ("dtype", c_int32), ("gradient_dtype", c_int32))


class LinearCrossEntropy(Structure):
    """nn_linear_cross_entropy"""

    _fields_ = (("size", c_int64), ("loss", c_void_p), ("dx", c_void_p), ("dweight", c_void_p),
                ("x", c_void_p),
                ("weight", c_void_p), ("targets", c_void_p), ("dloss", c_void_p), ("rows", c_int64),
                ("width", c_int64), ("vocabulary", c_int64), ("chunk", c_int64), ("ignore_index", c_int64),
                ("label_smoothing", c_float), ("z_loss", c_float), ("softcap", c_float), ("target_dtype",
                                                                                          c_int32),
                ("dtype", c_int32), ("accumulate", c_int32), ("compute", c_int32))
