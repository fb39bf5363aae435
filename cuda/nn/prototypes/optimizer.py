"""nn/optimizer.h"""

from ctypes import Structure, c_double, c_int32, c_int64, c_void_p

FUNCTIONS = {
    "nn_chunk_elements": "-> i64",
    "nn_adamw_forward": "tensors* chunks* chunk_count:i64 lr* step* scale* skip* beta1:f64 beta2:f64 "
                        "eps:f64 stream*",
    "nn_gradient_norm_forward": "norm* scale* skip* skipped* tensors* chunks* chunk_count:i64 input_scale* "
                                "max_norm:f64 workspace* workspace_bytes:i64 stream*",
    "nn_gradient_norm_workspace_size": "chunk_count:i64 -> i64",
    "nn_zero_gradients": "tensors* chunks* chunk_count:i64 stream*",
    "nn_counter_increment": "counter* skip* stream*",
    "nn_sum_of_squares": "total* x* count:i64 dtype:i32 workspace* workspace_bytes:i64 stream*",
    "nn_sum_of_squares_workspace_size": "count:i64 -> i64",
    "nn_embedding_forward": "out* table* index* count:i64 rows:i64 width:i64 dtype:i32 "
                            "index_dtype:i32 stream*",
    "nn_scatter_add_forward": "out* source* index* count:i64 rows:i64 width:i64 accumulate:i32 dtype:i32 "
                              "index_dtype:i32 workspace* workspace_bytes:i64 stream*",
    "nn_scatter_add_workspace_size": "count:i64 rows:i64 -> i64",
}


class Tensor(Structure):
    """nn_tensor"""

    _fields_ = (("param", c_void_p), ("master", c_void_p), ("grad", c_void_p), ("m", c_void_p),
                ("v", c_void_p),
                ("count", c_int64), ("lr_scale", c_double), ("weight_decay", c_double), ("param_dtype",
                                                                                         c_int32),
                ("grad_dtype", c_int32))


class Chunk(Structure):
    """nn_chunk"""

    _fields_ = (("tensor", c_int32), ("index", c_int32))
