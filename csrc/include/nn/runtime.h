// What a caller needs besides kernels: errors, devices, memory, streams, events, graphs, and counts of them.
#pragma once

#include "types.h"

#define NN_ABI_VERSION 1

NN_API int32_t nn_abi_version(void);                             // NN_ABI_VERSION of the library

// ---- errors ------------------------------------------------------------------------------------------------

NN_API const char* nn_error_string(int32_t status);              // what a code means
NN_API const char* nn_last_error(void);                          // this thread's last failure: argument, value

// ---- devices -----------------------------------------------------------------------------------------------

// What decides a kernel's choices.  `size` is sizeof(nn_device_info) as the caller knows it.
typedef struct nn_device_info {
    int64_t size;
    int64_t memory, free_memory;                                 // bytes
    int64_t l2_bytes, shared_bytes_per_block, shared_bytes_per_sm;   // opt-in maximum per block
    int32_t capability;                                          // 80 for sm_80
    int32_t multiprocessors, registers_per_sm, threads_per_sm;
    int32_t clock_khz, memory_clock_khz, memory_bus_bits;
    char name[256];
} nn_device_info;

NN_API int nn_device_count(int32_t* count);                      // 0 without a driver, which is no error
NN_API int nn_device_query(nn_device_info* info, int32_t device);
NN_API int nn_device_select(int32_t device);                     // for this thread

// ---- memory ------------------------------------------------------------------------------------------------

// Allocating and freeing are never part of a capture.

NN_API int nn_memory_allocate(void** pointer, int64_t bytes);
NN_API int nn_memory_free(void* pointer);
// Host memory must be page-locked for a copy to run beside the host, or to be part of a graph; any other is
// copied before returning.
NN_API int nn_memory_allocate_host(void** pointer, int64_t bytes);
NN_API int nn_memory_free_host(void* pointer);
NN_API int nn_memory_upload(void* device, const void* host, int64_t bytes, nn_stream stream);
NN_API int nn_memory_download(void* host, const void* device, int64_t bytes, nn_stream stream);
NN_API int nn_memory_copy(void* to, const void* from, int64_t bytes, nn_stream stream);     // on the device

// ---- streams, events, graphs -------------------------------------------------------------------------------

NN_API int nn_stream_create(nn_stream* stream);
NN_API int nn_stream_destroy(nn_stream stream);
NN_API int nn_stream_synchronize(nn_stream stream);
NN_API int nn_stream_wait(nn_stream stream, nn_event event);
NN_API int nn_event_create(nn_event* event, int32_t timing);     // timing 0: ordering only, cheaper
NN_API int nn_event_destroy(nn_event event);
NN_API int nn_event_record(nn_event event, nn_stream stream);
NN_API int nn_event_synchronize(nn_event event);
NN_API int nn_event_elapsed(float* milliseconds, nn_event start, nn_event stop);
NN_API int nn_graph_begin(nn_stream stream);                     // what is queued from here on is recorded
NN_API int nn_graph_end(nn_graph* graph, nn_stream stream);      // ... up to here, and can be launched at once
NN_API int nn_graph_launch(nn_graph graph, nn_stream stream);
NN_API int nn_graph_destroy(nn_graph graph);

// ---- counts ------------------------------------------------------------------------------------------------

// Since the library was loaded, over all threads.  `size` is sizeof(nn_counts) as the caller knows it.
typedef struct nn_counts {
    int64_t size;
    int64_t allocations, allocated_bytes, frees;
    int64_t uploads, uploaded_bytes, downloads, downloaded_bytes, copies, copied_bytes;
    int64_t synchronizations, graph_launches;
} nn_counts;

NN_API int nn_count(nn_counts* counts);
