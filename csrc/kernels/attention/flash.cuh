// Attention on tensor cores, one block: rows of queries against tiles of keys, softmax on the way (Dao 2023).
//
// A warp owns 16 MT rows; no reduction crosses warps.  S = Q K^T stays in registers, its exponentials are
// the A operand of P V.  K(j+1) is on its way while softmax and P V of tile j run, V(j) while Q K^T runs; two
// barriers a tile.  Shared memory is Q, then one tile of K, one of V, swizzled; Q's place takes O at the end.
//
// Rows are pairs of query and head, `pack` heads of a group side by side: row r is head r % pack of query
// r / pack, so that few queries still fill a tile and read K and V once.
#pragma once

#include "device/async_copy.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "device/swizzle.cuh"
#include "problem.cuh"

namespace nn {

constexpr int FLASH_WARPS = 4;                   // at most, in a block

// Rows of a matrix in global memory by number: contiguous, or a cache's pages.
template <class T> struct RowsOf {
    const T* base;
    int64_t stride;
    int chunks;                                  // of 16 bytes that a row has
    const int32_t* table = nullptr;              // of pages
    int page_shift = 0;
    int64_t page_stride = 0;

    __device__ __forceinline__ const T* contiguous(int row) const { return base + row * stride; }
    __device__ __forceinline__ const T* paged(int row) const {
        if (!table) return contiguous(row);
        int64_t page = table[row >> page_shift];
        return base + page * page_stride + (row & ((1 << page_shift) - 1)) * stride;
    }
};

// Worked out on the host: a score x q k becomes tanh(inner x) if capped, then 2^(unit x).
struct FlashScale {
    float unit, inner;
    bool capped;
};

inline FlashScale flash_scale(float scale, float softcap) {
    return softcap > 0.0f ? FlashScale{softcap * LOG2_E, scale / softcap, true}
                          : FlashScale{scale * LOG2_E, 0.0f, false};
}

// What differs between blocks: the rows, and the keys first <= j < last that some row sees.
template <class T> struct FlashBlock {
    RowsOf<T> k, v;
    Reach reach;
    int row, rows, pack;                         // this block's first row; rows of the sequence
    int first, last;
    FlashScale scale;
};

// A mask's place is worked out where it is needed, in registers that the loop cannot spare.
struct NoMask {
    static constexpr bool POSSIBLE = false;
    __device__ __forceinline__ bool given() const { return false; }
    __device__ __forceinline__ const uint8_t* of(int, int, int) const { return nullptr; }
    __device__ __forceinline__ int64_t key_stride() const { return 0; }
};

// A tile's way into shared memory, D numbers a row; what lies outside the matrix becomes zero.  STAGED
// (sm_75): the loads go to registers at once and to shared memory when they have landed; else cp.async.
template <class T, int D, int KEYS, bool STAGED, bool PAGED> struct Copier {
    static constexpr int CHUNKS = D / PACK<T>;
    static constexpr int SLOTS = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;
    static constexpr int STAGES = STAGED ? KEYS * SLOTS / (32 * FLASH_WARPS) : 1;
    Pack<T, PACK<T>> stage[STAGES];

    __device__ __forceinline__ void issue(T* tile, const RowsOf<T>& from, int first, int end) {
        const int chunk = threadIdx.x % SLOTS, step = blockDim.x / SLOTS;
        if constexpr (STAGED) {
#pragma unroll
            for (int i = 0; i < STAGES; i++) {
                int row = first + threadIdx.x / SLOTS + i * (32 * FLASH_WARPS / SLOTS);
                bool inside = row < end && chunk < from.chunks;
                stage[i] = {};
                if (!inside) continue;
                stage[i] = load_pack<PACK<T>>(from.contiguous(row) + chunk * PACK<T>);
            }
        } else {
            if (CHUNKS < SLOTS && chunk >= CHUNKS) return;
#pragma unroll 4
            for (int row = threadIdx.x / SLOTS; row < KEYS; row += step) {
                bool inside = first + row < end && chunk < from.chunks;
                const T* source = from.base;
                if (inside)
                    source =
                        (PAGED ? from.paged(first + row) : from.contiguous(first + row)) + chunk * PACK<T>;
                copy_async<16>(tile + swizzle<D * sizeof(T)>(row, chunk) / sizeof(T), source,
                               inside ? 16 : 0);
            }
            copy_async_commit();
        }
    }

    // To be followed by a barrier
    __device__ __forceinline__ void land(T* tile) {
        if constexpr (STAGED) {
            const int chunk = threadIdx.x % SLOTS;
            if (CHUNKS < SLOTS && chunk >= CHUNKS) return;
#pragma unroll
            for (int i = 0; i < STAGES; i++) {
                int row = threadIdx.x / SLOTS + i * (32 * FLASH_WARPS / SLOTS);
                store_shared(tile + swizzle<D * sizeof(T)>(row, chunk) / sizeof(T), stage[i]);
            }
        } else {
            copy_async_wait<0>();
        }
    }
};

// The block's rows of queries into shared memory; zeros beyond the last one and beyond the width.
template <class T, int D, int ROWS>
__device__ __forceinline__ void load_queries(T* tile, const T* q, const int64_t (&strides)[3], int width,
                                             int first, int rows, int pack) {
    constexpr int CHUNKS = D / PACK<T>;
    for (int i = threadIdx.x; i < blockDim.x / 32 * ROWS * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS, chunk = i % CHUNKS, r = first + row;
        const bool inside = r < rows && chunk * PACK<T> < width;
        const T* from = q;
        if (inside) from += r / pack * strides[2] + r % pack * strides[1] + chunk * PACK<T>;
        copy_async<16>(tile + swizzle<D * sizeof(T)>(row, chunk) / sizeof(T), from, inside ? 16 : 0);
    }
    copy_async_commit();
}

// Operands from a swizzled tile in a loop over pieces: the lane's own chunk of the first piece once, then by
// constants.  A step of 32 bytes along the row changes the bits that the swizzle flips by XOR and adds the
// rest; steps of 8 rows add.
template <int ROW_BYTES> struct Operands {
    static constexpr uint32_t FLIPPED = ((1 << swizzle_bits(ROW_BYTES)) - 1) * CHUNK_BYTES;
    uint32_t base;

    __device__ __forceinline__ Operands(const void* tile, int row, int chunk)
        : base(shared_address(tile) + swizzle<ROW_BYTES>(row, chunk)) {
        asm volatile("" : "+r"(base));  // else the compiler keeps all sums in registers around the loop
    }
    __device__ __forceinline__ uint32_t at(int row, int pair) const {
        return (base ^ (pair * 32 & FLIPPED)) + (pair * 32 & ~FLIPPED) + row * ROW_BYTES;
    }
    __device__ __forceinline__ void load(uint32_t (&r)[4], int row, int pair) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at(row, pair)) : "memory");
    }
    __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], int row, int pair) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at(row, pair)) : "memory");
    }
};

template <class T, int D, int MT, bool STAGED, bool PAGED, class Mask> struct Flash {
    // in a tile, so that the registers suffice
    static constexpr int KEYS = MT * D >= 192 && MT > 1 ? 32 : 64;
    static constexpr int ROW_BYTES = D * sizeof(T), TILES = KEYS / 8;
    static constexpr bool KEEP_Q = D <= 64;      // in registers, as A operands
    using Copy = Copier<T, D, KEYS, STAGED, PAGED>;

    float o[MT][D / 8][4];                       // C fragments
    float s[MT][TILES][4];
    float largest[MT][2], sum[MT][2];            // of raw scores; of this lane's own exponentials
    uint32_t q[KEEP_Q ? MT : 1][KEEP_Q ? D / 16 : 1][4];

    static __device__ __forceinline__ T* at(T* tile, int row, int chunk) {
        return tile + swizzle<ROW_BYTES>(row, chunk) / sizeof(T);
    }
    static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / 32 * 16 * MT; }   // in the block
    static constexpr int bytes(int warps) { return (warps * 16 * MT + 2 * KEYS) * ROW_BYTES; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) o[m][n][e] = 0.0f;
            largest[m][0] = largest[m][1] = -INFINITE, sum[m][0] = sum[m][1] = 0.0f;
        }
    }

    static __device__ __forceinline__ Operands<ROW_BYTES> queries(T* shared_q) {
        return Operands<ROW_BYTES>(shared_q, warp_row() + lane() % 16, lane() / 16);
    }

    __device__ __forceinline__ void keep_q(T* shared_q) {
        if constexpr (KEEP_Q) {
            const auto from = queries(shared_q);
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int k = 0; k < D / 16; k++) from.load(q[m][k], 16 * m, k);
        }
    }

    // s = Q K^T                                                     [16 MT, KEYS] of [16 MT, D] x [KEYS, D]
    __device__ __forceinline__ void scores(T* shared_q, T* shared_k) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][n][e] = 0.0f;
        const auto from_q = queries(shared_q);
        const Operands<ROW_BYTES> from_k(shared_k, lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) {
                if constexpr (KEEP_Q) {
#pragma unroll
                    for (int e = 0; e < 4; e++) a[m][e] = q[m][k][e];
                } else {
                    from_q.load(a[m], 16 * m, k);
                }
            }
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                uint32_t b[4];
                from_k.load(b, 8 * n, k);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16x8x16<T>(s[m][n], a[m], b[0], b[1]);
                    mma_16x8x16<T>(s[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // o += P V                                                      [16 MT, D] += [16 MT, KEYS] x [KEYS, D]
    __device__ __forceinline__ void values(T* shared_v) {
        const Operands<ROW_BYTES> from_v(shared_v, lane() % 16, lane() / 16);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t p[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    p[m][e] = pack_halves<T>(s[m][2 * k + e / 2][e % 2 * 2],
                                             s[m][2 * k + e / 2][e % 2 * 2 + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                uint32_t b[4];
                from_v.load_transposed(b, 16 * k, n / 2);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16x8x16<T>(o[m][n], p[m], b[0], b[1]);
                    mma_16x8x16<T>(o[m][n + 1], p[m], b[2], b[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void cap(const FlashBlock<T>& block) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][n][e] = tanh_fast(s[m][n][e] * block.scale.inner);
    }

    // Of the keys first, first + 8, ... of a tile, those below `end`: a bit each
    static __device__ __forceinline__ uint32_t below(int end, int first) {
        return (1u << min(max((end - first + 7) >> 3, 0), TILES)) - 1;
    }

    // -inf where a key of the tile from j0 on is not visible
    __device__ __forceinline__ void hide(const FlashBlock<T>& block, const Mask& mask, int j0) {
        const int j = j0 + lane() % 4 * 2;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int row = min(block.row + warp_row() + 16 * m + 8 * side + lane() / 4, block.rows - 1);
                const int query = row / block.pack, lo = block.reach.lo(query), hi = block.reach.hi(query);
                uint32_t visible[2] = {below(hi, j) & ~below(lo, j), below(hi, j + 1) & ~below(lo, j + 1)};
                if (Mask::POSSIBLE && mask.given()) {
                    const uint8_t* keep = mask.of(row % block.pack, query, j);
#pragma unroll 1
                    for (int i = 0; i < 2 * TILES; i++) {
                        const uint32_t bit = 1u << i / 2;
                        const uint32_t seen = i % 2 ? visible[1] : visible[0];
                        if (seen & bit && !keep[(i / 2 * 8 + i % 2) * mask.key_stride()])
                            i % 2 ? visible[1] ^= bit : visible[0] ^= bit;
                    }
                }
#pragma unroll
                for (int n = 0; n < TILES; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        if (!(visible[e] & 1u << n)) s[m][n][2 * side + e] = -INFINITE;
            }
    }

    // s = exp(unit s - its row's largest so far); sum and o follow where that one has moved
    __device__ __forceinline__ void softmax(float unit) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
            float factor[2];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float before = largest[m][side], now = before;
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    now = fmaxf(now, fmaxf(s[m][n][2 * side], s[m][n][2 * side + 1]));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
                largest[m][side] = now;
                const float top = now == -INFINITE ? 0.0f : now * unit;
                factor[side] = before == now         ? 1.0f
                             : before == -INFINITE ? 0.0f
                                                   : exp2_fast(before * unit - top);
                float total = 0.0f;
#pragma unroll
                for (int n = 0; n < TILES; n++)
#pragma unroll
                    for (int e = 2 * side; e < 2 * side + 2; e++) {
                        s[m][n][e] = exp2_fast(fmaf(s[m][n][e], unit, -top));
                        total += s[m][n][e];
                    }
                sum[m][side] = fmaf(sum[m][side], factor[side], total);
            }
            if (__any_sync(ALL_LANES, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
                for (int n = 0; n < D / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) o[m][n][e] *= factor[e / 2];
            }
        }
    }

    // Everything between the query tile in shared memory (not yet landed) and the sums in o, sum, largest.
    __device__ __forceinline__ void run(const FlashBlock<T>& block, const Mask& mask, T* shared_q) {
        T *shared_k = shared_q + blockDim.x / 32 * 16 * MT * D, *shared_v = shared_k + KEYS * D;
        const float unit = block.scale.unit;
        const int row = block.row + warp_row();
        const int top = min(row, block.rows - 1) / block.pack, bottom = min(row + 16 * MT, block.rows) - 1;
        // no row of the warp sees more
        const int high = row < block.rows ? block.reach.hi(bottom / block.pack) : 0;
        const int all_from = block.reach.lo(bottom / block.pack), all_to = block.reach.hi(top);
        const int start = block.first / KEYS * KEYS;
        Copy copy;
        clear();
        if (start < block.last) copy.issue(shared_k, block.k, start, block.last);
        copy_async_wait<0>();
        __syncthreads();
        keep_q(shared_q);
        for (int j0 = start; j0 < block.last; j0 += KEYS) {
            const bool needed = j0 < high;
            copy.land(shared_k);
            __syncthreads();                                     // K is here, V has been used
            copy.issue(shared_v, block.v, j0, block.last);
            if (needed) scores(shared_q, shared_k);
            copy.land(shared_v);
            __syncthreads();                                     // V is here, K has been used
            if (j0 + KEYS < block.last) copy.issue(shared_k, block.k, j0 + KEYS, block.last);
            if (!needed) continue;
            if (block.scale.capped) cap(block);
            if (j0 < all_from || j0 + KEYS > all_to || mask.given()) hide(block, mask, j0);
            softmax(unit);
            values(shared_v);
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                sum[m][side] += __shfl_xor_sync(ALL_LANES, sum[m][side], 1);
                sum[m][side] += __shfl_xor_sync(ALL_LANES, sum[m][side], 2);
                // in base 2
                largest[m][side] = largest[m][side] == -INFINITE ? 0.0f : largest[m][side] * unit;
            }
    }

    __device__ __forceinline__ float inverse(int m, int side) const {
        return sum[m][side] == 0.0f ? 0.0f : 1.0f / sum[m][side];
    }
};

}  // namespace nn
