// The tile unit (AMX) made ready: 8 tiles of 16 rows of 64 bytes.
#pragma once
#include "kernels/kernel.h"

#if defined(__AMX_TILE__)
namespace nn::NN_LEVEL {

// Once per thread and loop; what is in tiles is lost when they are released, which the system wants.
struct Tiles {
    Tiles() {
        alignas(64) uint8_t shape[64] = {1};  // palette 1
        for (int t = 0; t < 8; ++t) shape[16 + 2 * t] = 64, shape[48 + t] = 16;
        asm volatile("" ::: "memory");  // GCC 12 believes that 8 bytes of the shape are read
        _tile_loadconfig(shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

}  // namespace nn::NN_LEVEL
#endif
