"""nn/runtime.h"""

import ctypes
from ctypes import c_char, c_int32, c_int64


class DeviceInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_int64), ("memory", c_int64), ("free_memory", c_int64), ("l2_bytes", c_int64),
        ("shared_bytes_per_block", c_int64), ("shared_bytes_per_sm", c_int64), ("capability", c_int32),
        ("multiprocessors", c_int32), ("registers_per_sm", c_int32), ("threads_per_sm", c_int32),
        ("clock_khz", c_int32), ("memory_clock_khz", c_int32), ("memory_bus_bits", c_int32),
        ("name", c_char * 256),
    ]


class Counts(ctypes.Structure):
    _fields_ = [
        ("size", c_int64), ("allocations", c_int64), ("allocated_bytes", c_int64), ("frees", c_int64),
        ("uploads", c_int64), ("uploaded_bytes", c_int64), ("downloads", c_int64),
        ("downloaded_bytes", c_int64), ("copies", c_int64), ("copied_bytes", c_int64),
        ("synchronizations", c_int64), ("graph_launches", c_int64),
    ]


FUNCTIONS = {
    "nn_abi_version": "-> i32",
    "nn_error_string": "status:i32 -> text",
    "nn_last_error": "-> text",
    "nn_device_count": "count*",
    "nn_device_query": "info* device:i32",
    "nn_device_select": "device:i32",
    "nn_memory_allocate": "pointer* bytes:i64",
    "nn_memory_free": "pointer*",
    "nn_memory_allocate_host": "pointer* bytes:i64",
    "nn_memory_free_host": "pointer*",
    "nn_memory_upload": "device* host* bytes:i64 stream*",
    "nn_memory_download": "host* device* bytes:i64 stream*",
    "nn_memory_copy": "to* from* bytes:i64 stream*",
    "nn_stream_create": "stream*",
    "nn_stream_destroy": "stream*",
    "nn_stream_synchronize": "stream*",
    "nn_stream_wait": "stream* event*",
    "nn_event_create": "event* timing:i32",
    "nn_event_destroy": "event*",
    "nn_event_record": "event* stream*",
    "nn_event_synchronize": "event*",
    "nn_event_elapsed": "milliseconds* start* stop*",
    "nn_graph_begin": "stream*",
    "nn_graph_end": "graph* stream*",
    "nn_graph_launch": "graph* stream*",
    "nn_graph_destroy": "graph*",
    "nn_count": "counts*",
}
