// The main loop of a matrix product on tensor cores, for one block: a tile of BM x BN sums over k in
// registers. Used by the dense product (mma.cuh) and by whoever brings loaders and an end of his own
// (experts' products).
//
//     using Tile = TensorTile<half, 128, 128, 2, 2>;               // 2 x 2 warps
//     Sums<Tile> sums;                                             // zero
//     multiply<Tile, A_ALONG_K, B_ALONG_K>(sums, shared, a, m0, b, n0, k_begin, k_end);
//     for_each_part<Tile>(sums, shared, [&](const Part& part) { ... });
//
// Operands are given by loaders:
//     const T* row(int64_t r) const;            first element of a row; called for rows that exist only
//     int64_t extent;                           m for A, n for B: what lies beyond counts as zero
//     const T* data;                            any address of global memory (for copies of nothing)
// ALONG_K: a row r is one of m (n) and k runs along it (A as it stands, B transposed: weights [out][in]).
// Otherwise a row is one of k, and m (n) runs along it.  Rows start at multiples of 16 bytes; extents and k
// are any. Only rows below extent (k_end) are asked for; in the case along k once per block, so that a gather
// costs nothing.
//
// Sums run over k in steps of 16 (tf32: 8) from k_begin on, whatever the tile's size: a row's bits depend on
// nothing but its operands, k_begin and k_end.
//
// sm_80: stages filled by cp.async, one barrier per stage, fragments by ldmatrix from swizzled lines.
// sm_75 (half): the next stage waits in registers while this one is multiplied; two stages.
//
// Ladder: one stage, load - barrier - multiply -> two -> three or four by cp.async -> fragments of the next
// step loaded before the products of this one (used).  Per step of 16, a 64x64 warp tile takes 8 ldmatrix and
// 32 mma.
#pragma once

#include "device/async_copy.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/swizzle.cuh"

namespace nn {

// ---- shapes -----------------------------------------------------------------------------------------------

// BM x BN of C per block, cut among WARPS_M x WARPS_N warps; 64 bytes of k per stage.
template <class T_, int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_ = 3> struct TensorTile {
    using T = T_;
    static constexpr int BM = BM_, BN = BN_, BK = 64 / sizeof(T), STAGES = STAGES_;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;       // of a warp
    static constexpr int A_BYTES = BM * 64, B_BYTES = BN * 64;       // of a stage
    static constexpr int PART_ROWS = 16, PART_STRIDE = WN + 8;       // parts fit into two stages
    static constexpr int PART_BYTES = WARPS_M * WARPS_N * PART_ROWS * PART_STRIDE * 4;
    static_assert(WM % 16 == 0 && WN % 16 == 0 && BM * 4 % THREADS == 0 && BN * 4 % THREADS == 0, "tile");

    // Dynamic shared memory that a kernel with this tile needs.
    static constexpr int shared_bytes(int capability) {
        int stages = (capability < 80 ? 2 : STAGES) * (A_BYTES + B_BYTES);
        return stages > PART_BYTES ? stages : PART_BYTES;
    }
};

template <class Tile> struct Sums {
    static constexpr int MI = Tile::WM / 16, NI = Tile::WN / 8;
    float at[MI][NI][4] = {};                                        // layout of D: device/mma.cuh
};

// A dense operand: rows of a matrix.
template <class T> struct DenseRows {
    const T* data;
    int64_t stride, extent;
    __device__ __forceinline__ const T* row(int64_t r) const { return data + r * stride; }
};

// ---- a stage of one operand -------------------------------------------------------------------------------

// EXTENT x BK elements in shared memory, in lines of 16-byte chunks: EXTENT lines of 64 bytes along k, or BK
// lines along m (n).  Lines are swizzled so that neither copies nor fragments conflict.
template <class Tile, int EXTENT, bool ALONG_K> struct OperandTile {
    using T = typename Tile::T;
    static constexpr int LINE_BYTES = ALONG_K ? 64 : EXTENT * int(sizeof(T));
    static constexpr int LINES = EXTENT * 64 / LINE_BYTES;
    static constexpr int CHUNKS = LINE_BYTES / CHUNK_BYTES;          // of a line
    static constexpr int STEP = Tile::THREADS / CHUNKS;              // lines between two copies of a thread
    static constexpr int COPIES = LINES / STEP;                      // of 16 bytes, per thread and stage
    static_assert(Tile::THREADS % CHUNKS == 0 && LINES % STEP == 0, "threads share the copies evenly");

    __device__ static __forceinline__ int place(int line, int chunk) {       // in bytes
        if constexpr (!ALONG_K && sizeof(T) == 4)      // read by words: 4 lines of k, 8 neighbours in each
            return line * LINE_BYTES + (chunk ^ 2 * (line & 3)) * CHUNK_BYTES;
        else
            return swizzle<LINE_BYTES>(line, chunk);
    }
};

// Rows that lie at equal distances: addresses are sums, not products.
template <class Loader> constexpr bool LINEAR = false;
template <class T> constexpr bool LINEAR<DenseRows<T>> = true;

// A thread's share of filling stages.  What does not change from stage to stage is found out once.
template <class Tile, int EXTENT, bool ALONG_K, class Loader> struct Filler {
    using Shape = OperandTile<Tile, EXTENT, ALONG_K>;
    using T = typename Tile::T;
    static constexpr int COPIES = Shape::COPIES, PER_CHUNK = PACK<T>, ROWS = ALONG_K ? COPIES : 1;

    const Loader& loader;
    int64_t k_end, column;
    int line, chunk;
    const T* rows[ROWS];                               // along k: my chunk at k = 0; else my column's
    int inside[ROWS];                                  // bytes of the chunk within the extent

    __device__ __forceinline__ Filler(const Loader& loader_, int64_t origin, int64_t k_end_)
        : loader(loader_), k_end(k_end_), line(threadIdx.x / Shape::CHUNKS) {
        chunk = threadIdx.x % Shape::CHUNKS;
        column = (ALONG_K ? 0 : origin) + chunk * PER_CHUNK;
        if constexpr (ALONG_K) {
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                const int64_t r = origin + line + i * Shape::STEP;
                inside[i] = r < loader.extent ? CHUNK_BYTES : 0;
                rows[i] = (inside[i] ? loader.row(r) : loader.data) + column;
            }
        } else {
            inside[0] = bytes_of(loader.extent - column);
            if constexpr (LINEAR<Loader>) rows[0] = loader.row(line) + column;
        }
    }

    __device__ static __forceinline__ int bytes_of(int64_t elements) {       // 0 ... 16
        return elements >= PER_CHUNK ? CHUNK_BYTES : elements > 0 ? int(elements) * int(sizeof(T)) : 0;
    }

    // Where copy i of the stage that begins at k comes from, and how many of its 16 bytes there are.
    __device__ __forceinline__ const T* source(int i, int64_t k, int& valid) const {
        if constexpr (ALONG_K) {
            const int there = bytes_of(k_end - k - column);
            valid = there < inside[i] ? there : inside[i];
            return rows[i] + k;
        }
        const int64_t left = k_end - k;
        const int lines = left < Tile::BK ? int(left) : Tile::BK, mine = line + i * Shape::STEP;
        valid = mine < lines ? inside[0] : 0;
        if constexpr (LINEAR<Loader>) return rows[0] + k * loader.stride + i * (Shape::STEP * loader.stride);
        return valid ? loader.row(k + mine) + column : loader.data;
    }

    __device__ __forceinline__ char* target(char* stage, int i) const {
        return stage + Shape::place(line + i * Shape::STEP, chunk);
    }

    // sm_80: copies run by themselves
    __device__ __forceinline__ void copy(char* stage, int64_t k) const {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            int valid;
            const T* from = source(i, k, valid);
            copy_async<CHUNK_BYTES>(target(stage, i), from, valid);
        }
    }

    // before sm_80: through registers, in two halves
    __device__ __forceinline__ void fetch(Pack<T, PER_CHUNK> (&held)[COPIES], int64_t k) const {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            int valid;
            const T* from = source(i, k, valid);
            if (valid == CHUNK_BYTES) {
                held[i] = load_pack<PER_CHUNK>(from);
            } else {
#pragma unroll
                for (int j = 0; j < PER_CHUNK; j++)
                    held[i][j] = j * int(sizeof(T)) < valid ? from[j] : from_float<T>(0.0f);
            }
        }
    }

    __device__ __forceinline__ void put(char* stage, const Pack<T, PER_CHUNK> (&held)[COPIES]) const {
#pragma unroll
        for (int i = 0; i < COPIES; i++) store_shared(reinterpret_cast<T*>(target(stage, i)), held[i]);
    }
};

// ---- fragments --------------------------------------------------------------------------------------------

// 32 bytes of k (16 halves, 8 tf32) of 16 of m (A: a[0..3]) or of n (B: b0, b1 of two 16x8x16 products).
template <class Tile, int EXTENT, bool ALONG_K, bool IS_A>
__device__ __forceinline__ void fragment(uint32_t (&r)[4], const char* stage, int origin, int step) {
    using T = typename Tile::T;
    using Shape = OperandTile<Tile, EXTENT, ALONG_K>;
    const int lane = threadIdx.x % 32;
    if constexpr (!ALONG_K && sizeof(T) == 4) {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {              // A: g + 8 (i % 2), t + 4 (i / 2); B: i's bits exchanged
            const int line = 8 * step + t + 4 * (IS_A ? i / 2 : i % 2);
            const int at = origin + g + 8 * (IS_A ? i % 2 : i / 2);
            r[i] = *reinterpret_cast<const uint32_t*>(stage + Shape::place(line, at / 4) + at % 4 * 4);
        }
    } else {
        const int line = ALONG_K == IS_A ? lane % 16 : lane % 8 + lane / 16 * 8;
        const int chunk = ALONG_K == IS_A ? lane / 16 : lane / 8 % 2;
        if constexpr (ALONG_K)
            ldmatrix_x4(r, stage + Shape::place(origin + line, 2 * step + chunk));
        else
            ldmatrix_x4_trans(r, stage + Shape::place(16 * step + line, origin / 8 + chunk));
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = to_tf32(__uint_as_float(r[i]));
    }
}

template <class T>
__device__ __forceinline__ void mma_step(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (sizeof(T) == 4)
        mma_16x8x8_tf32(d, a, b0, b1);
    else
        mma_16x8x16<T>(d, a, b0, b1);
}

// What a warp needs for one step.
template <class Tile, bool A_ALONG_K, bool B_ALONG_K> struct Fragments {
    uint32_t a[Tile::WM / 16][4], b[Tile::WN / 16][4];

    __device__ __forceinline__ void load(const char* stage, int step) {
        const int warp = threadIdx.x / 32;
        const int m = warp / Tile::WARPS_N * Tile::WM, n = warp % Tile::WARPS_N * Tile::WN;
#pragma unroll
        for (int i = 0; i < Tile::WM / 16; i++)
            fragment<Tile, Tile::BM, A_ALONG_K, true>(a[i], stage, m + 16 * i, step);
#pragma unroll
        for (int j = 0; j < Tile::WN / 16; j++)
            fragment<Tile, Tile::BN, B_ALONG_K, false>(b[j], stage + Tile::A_BYTES, n + 16 * j, step);
    }

    __device__ __forceinline__ void multiply(Sums<Tile>& sums) const {
#pragma unroll
        for (int i = 0; i < Tile::WM / 16; i++)
#pragma unroll
            for (int j = 0; j < Tile::WN / 8; j++)
                mma_step<typename Tile::T>(sums.at[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
};

template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply_stage(Sums<Tile>& sums, const char* stage) {
    constexpr int STEPS = 2;                           // 64 bytes of k
    Fragments<Tile, A_ALONG_K, B_ALONG_K> fragments[2];
    fragments[0].load(stage, 0);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step + 1 < STEPS) fragments[(step + 1) % 2].load(stage, step + 1);
        fragments[step % 2].multiply(sums);
    }
}

// ---- the loop ---------------------------------------------------------------------------------------------

// sums += A[m0 ..., k_begin ... k_end] B[k_begin ... k_end, n0 ...]; ends with `shared` free for other use.
template <class Tile, bool A_ALONG_K, bool B_ALONG_K, class LoaderA, class LoaderB>
__device__ __forceinline__ void multiply(Sums<Tile>& sums, char* shared, const LoaderA& a, int64_t m0,
                                         const LoaderB& b, int64_t n0, int64_t k_begin, int64_t k_end) {
    constexpr int STAGE = Tile::A_BYTES + Tile::B_BYTES;
    const Filler<Tile, Tile::BM, A_ALONG_K, LoaderA> fill_a(a, m0, k_end);
    const Filler<Tile, Tile::BN, B_ALONG_K, LoaderB> fill_b(b, n0, k_end);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    const int64_t stages = (k_end - k_begin + Tile::BK - 1) / Tile::BK;
    Pack<typename Tile::T, PACK<typename Tile::T>> held_a[fill_a.COPIES], held_b[fill_b.COPIES];
    if (stages > 0) {
        fill_a.fetch(held_a, k_begin), fill_b.fetch(held_b, k_begin);
        fill_a.put(shared, held_a), fill_b.put(shared + Tile::A_BYTES, held_b);
    }
    __syncthreads();
    for (int64_t s = 0; s < stages; s++) {
        char *now = shared + s % 2 * STAGE, *next = shared + (s + 1) % 2 * STAGE;
        const bool more = s + 1 < stages;
        const int64_t k = k_begin + (s + 1) * Tile::BK;
        if (more) fill_a.fetch(held_a, k), fill_b.fetch(held_b, k);
        multiply_stage<Tile, A_ALONG_K, B_ALONG_K>(sums, now);
        if (more) fill_a.put(next, held_a), fill_b.put(next + Tile::A_BYTES, held_b);
        __syncthreads();
    }
#else
    constexpr int AHEAD = Tile::STAGES - 1;
    auto copy = [&](char* stage, int64_t k) {          // beyond the end an empty group: counts stay equal
        if (k < k_end) fill_a.copy(stage, k), fill_b.copy(stage + Tile::A_BYTES, k);
        copy_async_commit();
    };
#pragma unroll
    for (int s = 0; s < AHEAD; s++) copy(shared + s * STAGE, k_begin + s * Tile::BK);
    char *now = shared, *next = shared + AHEAD * STAGE, *const end = shared + Tile::STAGES * STAGE;
    for (int64_t k = k_begin; k < k_end; k += Tile::BK) {
        copy_async_wait<AHEAD - 1>();
        __syncthreads();                               // this stage is there, the one before it is free
        copy(next, k + AHEAD * Tile::BK);
        multiply_stage<Tile, A_ALONG_K, B_ALONG_K>(sums, now);
        now = now + STAGE == end ? shared : now + STAGE;
        next = next + STAGE == end ? shared : next + STAGE;
    }
    copy_async_wait<0>();
    __syncthreads();
#endif
}

// ---- the end ----------------------------------------------------------------------------------------------

// A piece of the tile in shared memory, worked on by `threads` threads together: rows x columns floats.
struct Part {
    float* at;
    int stride, rows, columns;                         // columns: a multiple of 16
    int row, column;                                   // of its first element, in the block's tile
    int thread, threads;                               // who am I, of how many
};

// Every warp visits its sums as parts of 16 rows, in row-major order of shared memory, so that
// `visit` can read and write global memory by whole rows.  `visit` is called by whole warps; it may change
// the part.
template <class Tile, class Visit>
__device__ __forceinline__ void for_each_part(const Sums<Tile>& sums, char* shared, const Visit& visit) {
    constexpr int ROWS = Tile::PART_ROWS, STRIDE = Tile::PART_STRIDE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* mine = reinterpret_cast<float*>(shared) + warp * ROWS * STRIDE;
#pragma unroll 1                                           // `visit` is long: once is enough
    for (int part = 0; part < Tile::WM / ROWS; part++) {
        __syncwarp();
#pragma unroll
        for (int known = 0; known < Tile::WM / ROWS; known++) {      // registers have no run-time index
            if (known != part) continue;
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++)
#pragma unroll
                for (int j = 0; j < Tile::WN / 8; j++) {  // stride 8 mod 32: four rows share no bank
                    const float(&d)[4] = sums.at[known * (ROWS / 16) + i][j];
                    float* to = mine + (16 * i + g) * STRIDE + 8 * j + 2 * t;
                    store_shared(to, Pack<float, 2>{d[0], d[1]});
                    store_shared(to + 8 * STRIDE, Pack<float, 2>{d[2], d[3]});
                }
        }
        __syncwarp();
        visit(Part{mine, STRIDE, ROWS, Tile::WN, warp / Tile::WARPS_N * Tile::WM + part * ROWS,
                   warp % Tile::WARPS_N * Tile::WN, lane, 32});
    }
}

}  // namespace nn
