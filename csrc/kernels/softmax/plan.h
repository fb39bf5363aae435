// Which kernel takes rows of a given width, and with how many threads.  Decided by width, type and alignment
// alone, so that neither the device nor the number of rows changes a row's bits.
#pragma once

#include "device/arguments.h"
#include "device/launch.h"

namespace nn {

constexpr int ROWS_THREADS = 128;        // of a block that keeps several rows in registers
constexpr int CHUNK_THREADS = 256;       // of a block that has a part of a row
constexpr int64_t CHUNK = 16384;         // elements of such a part
// Of rows in shared memory: what every architecture has, two per SM
constexpr int64_t KEPT_BYTES = 63 * 1024;

enum class Path { FEW, MANY, KEPT, SPLIT };  // FEW, MANY: packs per thread in registers

struct SoftmaxPlan {
    Path path;
    bool vector;                         // packs of 16 bytes
    int width, threads;                  // threads per row, per block
    int64_t chunks;                      // per row, if it is split
};

// `rows_at_once`: 1 forward, 2 backward (dy and y)
inline SoftmaxPlan softmax_plan(int64_t cols, int64_t bytes, bool all_aligned, int rows_at_once) {
    SoftmaxPlan plan{};
    plan.vector = all_aligned && cols * bytes % 16 == 0;
    const int64_t pack = plan.vector ? 16 / bytes : 1, row_bytes = cols * bytes * rows_at_once;
    plan.width = cols <= 64 ? 8 : cols <= 128 ? 16 : 32;
    plan.threads = ROWS_THREADS;
    if (plan.vector && cols <= 2 * pack * plan.width) {
        plan.path = Path::FEW;
    } else if (cols <= 8 * pack * plan.width) {
        plan.path = Path::MANY;
    } else if (row_bytes <= KEPT_BYTES) {
        plan.path = Path::KEPT;
        plan.threads = row_bytes <= 16 * 1024 ? 256 : row_bytes <= 32 * 1024 ? 512 : 1024;
    } else {
        plan.path = Path::SPLIT;
        plan.threads = CHUNK_THREADS;
        plan.chunks = ceil_div(cols, CHUNK);
    }
    return plan;
}

}  // namespace nn
