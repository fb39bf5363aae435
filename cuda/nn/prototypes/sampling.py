"""nn/sampling.h"""

from ctypes import Structure, c_double, c_int32, c_int64, c_void_p

FUNCTIONS = {
    "nn_sample_forward": "call* workspace* workspace_bytes:i64 stream*",
    "nn_sample_workspace_size": "batch:i64 vocabulary:i64 temperature:f64 -> i64",
    "nn_random_bits": "out* key* words* count:i64 stream*",
}


class Sample(Structure):
    """nn_sample"""

    _fields_ = (("size", c_int64), ("tokens", c_void_p), ("flags", c_void_p), ("logits", c_void_p),
                ("history", c_void_p), ("lengths", c_void_p), ("keys", c_void_p), ("rows", c_void_p),
                ("steps", c_void_p), ("batch", c_int64), ("vocabulary", c_int64), ("stride", c_int64),
                ("history_stride", c_int64), ("key_stride", c_int64), ("step_stride", c_int64), ("top_k",
                                                                                                 c_int64),
                ("temperature", c_double), ("top_p", c_double), ("min_p", c_double),
                ("repetition_penalty", c_double), ("dtype", c_int32))
