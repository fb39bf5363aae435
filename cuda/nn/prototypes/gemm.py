"""nn/gemm.h"""

from ctypes import Structure, c_char, c_float, c_int32, c_int64, c_void_p


class Gemm(Structure):
    _fields_ = [
        ("size", c_int64),
        ("c", c_void_p),
        ("a", c_void_p), ("b", c_void_p),
        ("bias", c_void_p),
        ("alpha_device", c_void_p), ("beta_device", c_void_p),
        ("m", c_int64), ("n", c_int64), ("k", c_int64), ("batch", c_int64),
        ("lda", c_int64), ("ldb", c_int64), ("ldc", c_int64),
        ("stride_a", c_int64), ("stride_b", c_int64), ("stride_c", c_int64),
        ("alpha", c_float), ("beta", c_float),
        ("trans_a", c_int32), ("trans_b", c_int32),
        ("dtype", c_int32), ("c_dtype", c_int32), ("bias_dtype", c_int32),
        ("activation", c_int32), ("compute", c_int32),
        ("path", c_int32),
        ("splits", c_int32),
    ]


class GemmChoice(Structure):
    _fields_ = [
        ("size", c_int64),
        ("workspace_bytes", c_int64),
        ("path", c_int32), ("tile_m", c_int32), ("tile_n", c_int32), ("splits", c_int32),
        ("why", c_char * 256),
    ]


FUNCTIONS = {
    "nn_gemm_forward": "call* workspace* workspace_bytes:i64 stream*",
    "nn_gemm_workspace_size": "call* -> i64",
    "nn_gemm_path": "choice* call*",
}
