"""nn/array.h"""

import ctypes
from ctypes import c_int64

AXES = 8


class ArrayLayout(ctypes.Structure):
    _fields_ = [("size", c_int64), ("ndim", c_int64), ("shape", c_int64 * AXES),
                ("strides", c_int64 * AXES * 4)]


FUNCTIONS = {
    "nn_array_layout_merge": "layout* operands:i32",
    "nn_array_unary": "y* x* layout* op:i32 y_dtype:i32 x_dtype:i32 stream*",
    "nn_array_binary": "y* a* b* layout* op:i32 y_dtype:i32 a_dtype:i32 b_dtype:i32 scalar:f64 stream*",
    "nn_array_where": ("y* condition* a* b* layout* y_dtype:i32 a_dtype:i32 b_dtype:i32 a_scalar:f64 "
                       "b_scalar:f64 stream*"),
    "nn_array_fill": "y* layout* dtype:i32 value:f64 stream*",
    "nn_array_arange": "y* start:f64 step:f64 count:i64 dtype:i32 stream*",
    "nn_array_reduce": ("y* x* layout* reduced:i64 op:i32 y_dtype:i32 x_dtype:i32 workspace* "
                        "workspace_bytes:i64 stream*"),
    "nn_array_reduce_workspace_size": "layout* reduced:i64 op:i32 -> i64",
    "nn_array_gather": "y* x* index* layout* length:i64 stride:i64 dtype:i32 index_dtype:i32 stream*",
    "nn_array_scatter": ("y* x* index* layout* length:i64 stride:i64 indices:i64 dtype:i32 index_dtype:i32 "
                         "workspace* workspace_bytes:i64 stream*"),
    "nn_array_cumulative_sum": ("y* x* rows:i64 n:i64 y_dtype:i32 x_dtype:i32 workspace* workspace_bytes:i64 "
                                "stream*"),
    "nn_array_cumulative_sum_workspace_size": "rows:i64 n:i64 -> i64",
    "nn_array_argsort": ("order* x* rows:i64 n:i64 descending:i32 dtype:i32 workspace* workspace_bytes:i64 "
                         "stream*"),
    "nn_array_argsort_workspace_size": "rows:i64 n:i64 dtype:i32 -> i64",
    "nn_array_searchsorted": "place* sorted* values* n:i64 m:i64 right:i32 dtype:i32 stream*",
}
