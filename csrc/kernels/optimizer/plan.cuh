// Walking a plan: one block per chunk, four elements at a time.
#pragma once

#include "device/arguments.h"
#include "device/launch.h"
#include "device/number.cuh"
#include "device/pack.cuh"
#include "nn/optimizer.h"

namespace nn {

constexpr int PLAN_THREADS = 256;
constexpr int64_t CHUNK = 8192;                                  // elements

// What a block works on: read from the plan by one thread, for all.
struct Work {
    nn_tensor tensor;
    int64_t start, stop;             // elements
};

__device__ __forceinline__ void find_work(Work& work, const nn_tensor* tensors, const nn_chunk* chunks) {
    const nn_chunk chunk = chunks[blockIdx.x];
    work.tensor = tensors[chunk.tensor];
    work.start = CHUNK * chunk.index, work.stop = min(work.start + CHUNK, work.tensor.count);
}

// Four floats, or four elements of 2 bytes, whichever dtype says: a branch that all threads take alike.
__device__ __forceinline__ void load_four(float (&x)[4], const void* from, int64_t i, int32_t dtype) {
    if (dtype == NN_FLOAT32) {
        unpack(x, load_global<4>(static_cast<const float*>(from) + i));
    } else if (dtype == NN_FLOAT16) {
        unpack(x, load_global<4>(static_cast<const half*>(from) + i));
    } else {
        unpack(x, load_global<4>(static_cast<const bfloat16*>(from) + i));
    }
}

__device__ __forceinline__ void store_four(void* to, int64_t i, const float (&x)[4], int32_t dtype) {
    if (dtype == NN_FLOAT32) {
        store_global(static_cast<float*>(to) + i, packed<float>(x));
    } else if (dtype == NN_FLOAT16) {
        store_global(static_cast<half*>(to) + i, packed<half>(x));
    } else {
        store_global(static_cast<bfloat16*>(to) + i, packed<bfloat16>(x));
    }
}

__device__ __forceinline__ float load_one(const void* from, int64_t i, int32_t dtype) {
    return dtype == NN_FLOAT32   ? static_cast<const float*>(from)[i]
           : dtype == NN_FLOAT16 ? to_float(static_cast<const half*>(from)[i])
                                 : to_float(static_cast<const bfloat16*>(from)[i]);
}

__device__ __forceinline__ void store_one(void* to, int64_t i, float x, int32_t dtype) {
    if (dtype == NN_FLOAT32) {
        static_cast<float*>(to)[i] = x;
    } else if (dtype == NN_FLOAT16) {
        static_cast<half*>(to)[i] = from_float<half>(x);
    } else {
        static_cast<bfloat16*>(to)[i] = from_float<bfloat16>(x);
    }
}

// Whether four elements can be moved at once: 16 bytes of float32, 8 of a half type.
__device__ __forceinline__ bool in_fours(const void* pointer, int32_t dtype) {
    return reinterpret_cast<uintptr_t>(pointer) % (dtype == NN_FLOAT32 ? 16 : 8) == 0;
}

inline const nn_tensor* tensors_of(const void* tensors) { return static_cast<const nn_tensor*>(tensors); }
inline const nn_chunk* chunks_of(const void* chunks) { return static_cast<const nn_chunk*>(chunks); }

inline int check_plan(const void* tensors, const void* chunks, int64_t chunk_count) {
    NN_REQUIRE(chunk_count >= 0 && chunk_count <= MAX_GRID_X, "chunk_count: %lld is not in 0 ... 2^31 - 1",
               (long long)chunk_count);
    NN_REQUIRE(!chunk_count || (tensors && chunks), "tensors or chunks: a null pointer");
    NN_REQUIRE(aligned(tensors, 8) && aligned(chunks, 8), "tensors or chunks: not aligned to 8 bytes");
    return NN_OK;
}

}  // namespace nn
