// Tensor maps: what describes a tensor of 1 to 5 dimensions in global memory and the box that one bulk copy
// moves.
//
// The driver's format is secret, so this is our own, in the same 128 bytes, with a mark in front: a map must
// come from cuTensorMapEncodeTiled (which the stand-in runtime serves through cudaGetDriverEntryPoint) or a
// kernel would find no mark. Supported: tiled maps without interleave, element types of 1 to 8 bytes
// and tf32 (loads round to nearest, ties to even, as devices were seen to do: triton-lang/triton #11751),
// swizzles of 32, 64 and 128 bytes in 16-byte chunks.
#pragma once
#include <cstdint>

namespace emu {

constexpr uint64_t TENSOR_MAP_MARK = 0x50414d524f534e54;      // "TNSORMAP"

struct TensorMap {
    uint64_t mark;
    uint64_t address;                    // of element 0
    uint64_t strides[4];                 // bytes between neighbours along dimensions 1 to 4
    uint32_t last[5];                    // size - 1 of each dimension, innermost first
    uint16_t box[5];
    uint8_t steps[5];  // element strides: only every n-th element along a dimension is moved
    uint8_t rank;
    uint8_t type;                        // as the driver numbers them: Element, or 11, tf32
    uint8_t swizzle;                     // Swizzle
    uint8_t interleave;
    uint8_t fill_nan;                    // out of bounds reads give NaN instead of zero
    uint8_t atomicity;
    uint8_t unused[39];
};
static_assert(sizeof(TensorMap) == 128, "a CUtensorMap has 128 bytes");

}  // namespace emu

// The driver's cuTensorMapEncodeTiled, with its enums as int: 0, or 1 (invalid value) or 801 (not supported)
// with a report.
extern "C" int tensor_map_encode_tiled(void* map, int type, uint32_t rank, void* address,
                                       const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                       const uint32_t* steps, int interleave, int swizzle, int promotion,
                                       int fill);
