// Matrix products on tensor cores by wgmma, fed by tensor copies (sm_90a): the kernel, and the choice among
// its forms.
//
// Three warpgroups.  One thread of the last asks for boxes of A and B, ring of stages by ring of stages; the
// others are handed its registers and multiply, 64 rows of the tile each.  A stage holds 128 bytes of k and
// passes from one side to the other by two barriers (device/mbarrier.cuh); one stage's products are in flight
// while the next one's are issued.
//
// Blocks stay: as many as multiprocessors, and each takes every so-manieth tile, so that the stages of its
// next tile arrive while it still writes this one.  The order of tiles is fixed, and no tile's bits depend on
// who computes it.
//
// Forms: two tiles x three ways to store the operands (tf32: one, wgmma takes no other).
//     128x256   once there is one for every multiprocessor: 85 FLOP per byte of shared memory filled,
//               against 64, and each wgmma reads A once for 256 columns; 4 stages of 48 KiB
//     128x128   for smaller C; 6 stages of 32 KiB
// Ladder: mma.sync (about half of the device's rate, whatever feeds it) -> wgmma with tensor copies, a block
// per tile -> one of three warpgroups copies, registers moved to the others -> 256 columns -> blocks that
// stay (used).  Not taken: clusters with multicast, tiles that alternate between the two warpgroups, tensor
// stores (C's rows may lie anywhere).
#pragma once

#include <algorithm>

#include "device/launch.h"
#include "device/tensor_copy.cuh"
#include "device/tensor_map.h"
#include "device/wgmma.cuh"
#include "problem.cuh"

namespace nn {

// ---- shapes -----------------------------------------------------------------------------------------------

template <class T_, int BN_, int STAGES_> struct WgmmaTile {
    using T = T_;
    static constexpr int BM = 128, BN = BN_, BK = 128 / sizeof(T), STAGES = STAGES_;
    static constexpr int READERS = 2, THREADS = (READERS + 1) * WARPGROUP;
    static constexpr int A_BYTES = BM * 128, STAGE_BYTES = A_BYTES + BN * 128;
    static constexpr int PART_COLUMNS = 32, PART_STRIDE = PART_COLUMNS + 8;      // of 16 rows: for_each_part
    static constexpr int PART_BYTES = 16 * PART_STRIDE * 4;                      // of a warp
    static constexpr int PARTS = STAGES * STAGE_BYTES, BARRIERS = PARTS + 4 * READERS * PART_BYTES;
    static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * int(sizeof(Barrier));
    // wider tiles have more columns than rows: blocks that run together walk down further
    static constexpr int RASTER = BN == 256 ? 16 : 8;
    static_assert(SHARED_BYTES <= 227 * 1024, "shared memory of a block");
};

template <class T> using WideWgmmaTile = WgmmaTile<T, 256, 4>;
template <class T> using SquareWgmmaTile = WgmmaTile<T, 128, 6>;

// Registers of a copying and of a multiplying thread, of the 168 that each begins with.
constexpr int COPY_REGISTERS = 40, MULTIPLY_REGISTERS = 232;

template <class Tile> struct Ring {
    char* stages;
    Barrier *full, *empty;

    __device__ __forceinline__ explicit Ring(char* shared)
        : stages(shared), full(reinterpret_cast<Barrier*>(shared + Tile::BARRIERS)),
          empty(full + Tile::STAGES) {}

    // By all threads of the block.
    __device__ __forceinline__ void begin() const {
        if (threadIdx.x == 0) {
            for (int i = 0; i < Tile::STAGES; i++) {
                barrier_init(full + i, 1);
                barrier_init(empty + i, 4 * Tile::READERS);              // each warp says that it has read
            }
            barrier_init_fence();
        }
        __syncthreads();
    }

    __device__ __forceinline__ char* stage(int i) const { return stages + i * Tile::STAGE_BYTES; }
};

// ---- the copying thread -----------------------------------------------------------------------------------

// 128 bytes of k of EXTENT of m (n), from element `first` on, of problem z.
template <class Tile, int EXTENT, bool ALONG_K>
__device__ __forceinline__ void copy_operand(char* to, const CUtensorMap& map, Barrier* full, int first,
                                             int k, int z) {
    if constexpr (ALONG_K) {
        copy_box(to, map, full, k, first, z);
    } else {
#pragma unroll
        for (int i = 0; i < EXTENT / 64; i++)
            copy_box(to + i * SWIZZLED_BOX, map, full, first + 64 * i, k, z);
    }
}

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void copy_tiles(const Ring<Tile>& ring, const CUtensorMap& a, const CUtensorMap& b,
                                           const Problem& p, uint32_t tiles) {
    prefetch_map(a), prefetch_map(b);
    RingPlace<Tile::STAGES> at;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place place = place_of<uint32_t, Tile::RASTER>(p, tile);
        const int m0 = static_cast<int>(place.tile_m) * Tile::BM;
        const int n0 = static_cast<int>(place.tile_n) * Tile::BN;
        const int z = static_cast<int>(place.problem), z_a = p.stride_a ? z : 0, z_b = p.stride_b ? z : 0;
        const int k_end = static_cast<int>(place.k_end);
        for (int k = static_cast<int>(place.k_begin); k < k_end; k += Tile::BK) {
            Barrier* full = ring.full + at.stage;
            char* stage = ring.stage(at.stage);
            barrier_wait(ring.empty + at.stage, at.phase ^ 1);
            barrier_expect(full, Tile::STAGE_BYTES);
            copy_operand<Tile, Tile::BM, A_ALONG_K>(stage, a, full, m0, k, z_a);
            copy_operand<Tile, Tile::BN, B_ALONG_K>(stage + Tile::A_BYTES, b, full, n0, k, z_b);
            at.next();
        }
    }
}

// ---- the multiplying warpgroups ---------------------------------------------------------------------------

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply_stage(float (&sums)[Tile::BN / 2], const char* a, const char* b) {
    const uint64_t left = wgmma_operand(a), right = wgmma_operand(b);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++)
        wgmma<typename Tile::T, A_ALONG_K, B_ALONG_K>(sums, left + wgmma_step<A_ALONG_K>(step),
                                                      right + wgmma_step<B_ALONG_K>(step));
    wgmma_commit();
}

// This warpgroup's 64 rows of a tile: every stage of its range of k, in order.
template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply_range(float (&sums)[Tile::BN / 2], const Ring<Tile>& ring,
                                               RingPlace<Tile::STAGES>& at, int stages) {
    const int group = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);        // known to be the warp's
    auto release = [&](int stage) {
        if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty + stage);
    };
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    int before = at.stage;
    for (int i = 0; i < stages; i++) {
        const char* stage = ring.stage(at.stage);
        barrier_wait(ring.full + at.stage, at.phase);
        multiply_stage<Tile, A_ALONG_K, B_ALONG_K>(sums, stage + group * SWIZZLED_BOX, stage + Tile::A_BYTES);
        wgmma_wait<1>();                               // the stage before this one has been read
        if (i > 0) release(before);
        before = at.stage;
        at.next();
    }
    wgmma_wait<0>();
    wgmma_settle(sums);
    release(before);
}

// Every warp visits its 16 rows, some columns at a time: as for_each_part in mainloop.cuh.
template <class Tile, class Visit>
__device__ __forceinline__ void for_each_strip(const float (&sums)[Tile::BN / 2], char* parts,
                                               const Visit& visit) {
    constexpr int COLUMNS = Tile::PART_COLUMNS, STRIDE = Tile::PART_STRIDE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* mine = reinterpret_cast<float*>(parts + warp * Tile::PART_BYTES);
#pragma unroll 1                                           // `visit` is long: once is enough
    for (int part = 0; part < Tile::BN / COLUMNS; part++) {
        __syncwarp();
#pragma unroll
        for (int known = 0; known < Tile::BN / COLUMNS; known++) {   // registers have no run-time index
            if (known != part) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {        // stride 8 mod 32: four rows share no bank
                const float* d = sums + known * (COLUMNS / 2) + 4 * j;
                float* to = mine + g * STRIDE + 8 * j + 2 * t;
                store_shared(to, Pack<float, 2>{d[0], d[1]});
                store_shared(to + 8 * STRIDE, Pack<float, 2>{d[2], d[3]});
            }
        }
        __syncwarp();
        visit(Part{mine, STRIDE, 16, COLUMNS, 16 * warp, part * COLUMNS, lane, 32});
    }
}

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply_tiles(const Ring<Tile>& ring, const Problem& p, uint32_t tiles) {
    float sums[Tile::BN / 2];                              // layout of D: device/wgmma.cuh
    RingPlace<Tile::STAGES> at;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Place place = place_of<uint32_t, Tile::RASTER>(p, tile);
        const int stages = (static_cast<int>(place.k_end - place.k_begin) + Tile::BK - 1) / Tile::BK;
        multiply_range<Tile, A_ALONG_K, B_ALONG_K>(sums, ring, at, stages);
        const Epilogue end = end_of(p, place, tile / static_cast<uint32_t>(p.tiles_m * p.tiles_n));
        for_each_strip<Tile>(sums, ring.stages + Tile::PARTS, [&](const Part& part) {
            write_part<typename Tile::T>(part, end, place.tile_m * Tile::BM, place.tile_n * Tile::BN,
                                         [] { __syncwarp(); });
        });
    }
}

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__global__ void __launch_bounds__(Tile::THREADS, 1)
gemm_wgmma(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
           const __grid_constant__ Problem p, uint32_t tiles) {
    extern __shared__ __align__(1024) char shared[];
    const Ring<Tile> ring(shared);
    ring.begin();
    if (threadIdx.x / WARPGROUP == Tile::READERS) {
        shrink_registers<COPY_REGISTERS>();
        if (threadIdx.x % WARPGROUP == 0) copy_tiles<Tile, A_ALONG_K, B_ALONG_K>(ring, a, b, p, tiles);
    } else {
        grow_registers<MULTIPLY_REGISTERS>();
        multiply_tiles<Tile, A_ALONG_K, B_ALONG_K>(ring, p, tiles);
    }
}

// ---- host -------------------------------------------------------------------------------------------------

// The map of an operand: boxes of 128 bytes of k and `rows` of m (n), or of 64 m (n) and 64 k.
template <class T, bool ALONG_K>
int map_operand(CUtensorMap* map, const void* data, int64_t extent, int64_t k, int64_t stride,
                int64_t batch_stride, int64_t batch, int rows) {
    constexpr int SIZE = sizeof(T);
    const CUtensorMapDataType type = SIZE == 4 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32      // rounds as it copies
                                     : std::is_same_v<T, half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const int64_t width = ALONG_K ? k : extent, height = ALONG_K ? extent : k;
    const bool many = batch > 1 && batch_stride > 0;       // one matrix for all: no step is ever taken
    return make_tensor_map(map, data, type, {{width, height, many ? batch : 1},
                                             {stride * SIZE, (many ? batch_stride : stride) * SIZE},
                                             {128 / SIZE, ALONG_K ? rows : 64, 1}});
}

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
int launch_wgmma_form(const Problem& p, const Device& device, cudaStream_t stream) {
    using T = typename Tile::T;
    CUtensorMap a, b;
    NN_TRY((map_operand<T, A_ALONG_K>(&a, p.a, p.end.m, p.k, p.lda, p.stride_a, p.batch, Tile::BM)));
    NN_TRY((map_operand<T, B_ALONG_K>(&b, p.b, p.end.n, p.k, p.ldb, p.stride_b, p.batch, Tile::BN)));
    auto kernel = gemm_wgmma<Tile, A_ALONG_K, B_ALONG_K>;
    NN_TRY(allow_shared_bytes(reinterpret_cast<const void*>(kernel), Tile::SHARED_BYTES));
    const unsigned tiles = blocks_of(p), blocks = std::min(tiles, unsigned(device.multiprocessors));
    kernel<<<blocks, Tile::THREADS, Tile::SHARED_BYTES, stream>>>(a, b, p, tiles);
    return launched("gemm_wgmma");
}

template <class Tile> int launch_wgmma_tile(const Problem& p, const Device& device, cudaStream_t stream) {
    if constexpr (sizeof(typename Tile::T) == 2) {
        if (p.trans_a) return launch_wgmma_form<Tile, false, false>(p, device, stream);
        if (!p.trans_b) return launch_wgmma_form<Tile, true, false>(p, device, stream);
    }
    return launch_wgmma_form<Tile, true, true>(p, device, stream);
}

template <class T>
int launch_wgmma(const Problem& p, GemmTile tile, const Device& device, cudaStream_t stream) {
    if (tile.n == 256) return launch_wgmma_tile<WideWgmmaTile<T>>(p, device, stream);
    return launch_wgmma_tile<SquareWgmmaTile<T>>(p, device, stream);
}

}  // namespace nn
