"""nn/rope.h"""

from ctypes import Structure, c_int32, c_int64, c_void_p

FUNCTIONS = {
    "nn_rope_frequencies": "inverse* dim:i64 theta:f64 factor:f64 scaling:i32 stream*",
    "nn_rope_table": "cos* sin* inverse* start:i64 positions:i64 half:i64 factor:f64 stream*",
    "nn_rope_forward": "call* stream*",
}


class RopeArray(Structure):
    """One array of heads, with strides in elements."""

    _fields_ = (("y", c_void_p), ("x", c_void_p), ("heads", c_int64),
                ("y_batch", c_int64), ("y_head", c_int64), ("y_position", c_int64),
                ("x_batch", c_int64), ("x_head", c_int64), ("x_position", c_int64))


class Rope(Structure):
    """A call of nn_rope_forward."""

    _fields_ = (("size", c_int64), ("q", RopeArray), ("k", RopeArray), ("cos", c_void_p), ("sin", c_void_p),
                ("positions", c_void_p), ("batch", c_int64), ("length", c_int64), ("width", c_int64),
                ("half", c_int64), ("table_rows", c_int64), ("table_batch", c_int64), ("position_stride",
                                                                                       c_int64),
                ("position_dtype", c_int32), ("interleaved", c_int32), ("inverse", c_int32), ("dtype",
                                                                                              c_int32))
