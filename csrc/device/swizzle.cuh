// Where the 16-byte chunks of a tile lie in shared memory, so that ldmatrix, 16-byte copies and 16-byte
// accesses along a row or down a column of chunks have no bank conflicts: the chunk's index XORed with bits
// of its row. Rows of 128 bytes are laid out as TMA's and wgmma's 128-byte mode has them.
//
//     tile + swizzle<COLUMNS * sizeof(T)>(row, column / PACK<T>) / sizeof(T)      // column % PACK<T> == 0
#pragma once

#ifdef __CUDACC__
#define NN_BOTH __host__ __device__ __forceinline__
#else
#define NN_BOTH inline
#endif

namespace nn {

constexpr int CHUNK_BYTES = 16, BANK_BYTES = 128;      // of a chunk; of one word in each of the 32 banks

// How many bits of the chunk's index change: 3 for rows of whole 128 bytes; rows of 64 (32) bytes already
// fill all banks by twos (fours) and need 2 (1); rows of an odd number of chunks need none.
NN_BOTH constexpr int swizzle_bits(int row_bytes) {
    return row_bytes % 128 == 0 ? 3 : row_bytes % 64 == 0 ? 2 : row_bytes % 32 == 0 ? 1 : 0;
}

// Byte offset of a chunk in a tile with rows of ROW_BYTES, whose start is aligned to 128 bytes (to 1024 for
// TMA). For rows r and r + 8 the XOR is the same: a thread that steps by 8 rows adds 8 * ROW_BYTES.
template <int ROW_BYTES> NN_BOTH constexpr int swizzle(int row, int chunk) {
    static_assert(ROW_BYTES % CHUNK_BYTES == 0, "a row is a whole number of 16-byte chunks");
    constexpr int bits = swizzle_bits(ROW_BYTES), mask = (1 << bits) - 1;
    return row * ROW_BYTES + (chunk ^ ((row >> (3 - bits)) & mask)) * CHUNK_BYTES;
}

// The proof, by enumeration at compile time: no two chunks share a place, and the 8 chunks that one phase of
// ldmatrix or of a 16-byte access takes (8 rows from a multiple of 8 at one chunk; 8 chunks of one row) lie
// in different banks.
template <int ROW_BYTES> constexpr bool swizzle_is_sound() {
    constexpr int CHUNKS = ROW_BYTES / CHUNK_BYTES, ROWS = 16;
    bool taken[ROWS * CHUNKS] = {};
    for (int row = 0; row < ROWS; row++)
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            int place = swizzle<ROW_BYTES>(row, chunk) / CHUNK_BYTES;
            if (place / CHUNKS != row || taken[place]) return false;
            taken[place] = true;
        }
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        for (int first = 0; first < ROWS; first += 8) {
            unsigned banks = 0;
            for (int row = first; row < first + 8; row++)
                banks |= 1u << swizzle<ROW_BYTES>(row, chunk) % BANK_BYTES / CHUNK_BYTES;
            if (banks != 0xff) return false;
        }
    return true;
}

static_assert(swizzle_is_sound<32>() && swizzle_is_sound<64>() && swizzle_is_sound<128>(), "swizzle");
static_assert(swizzle_is_sound<160>() && swizzle_is_sound<192>() && swizzle_is_sound<256>(), "swizzle");
static_assert(swizzle_is_sound<48>() && swizzle_is_sound<384>() && swizzle_is_sound<512>(), "swizzle");

}  // namespace nn
