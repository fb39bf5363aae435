// Matrix instructions as translated code calls them: ldmatrix, stmatrix, movmatrix, mma, wmma (nvcuda::wmma)
// and wgmma.
//
// All are collectives: every lane brings its registers in a struct on its own stack, the last one to arrive
// works for all.  Registers are bits (uint32_t, low element first) whatever their type; f64 are doubles.
//     static const MmaShape shape = {16, 16, MmaType::bf16, MmaType::bf16, MmaType::f32, false, 1};
//     Mma m = {&shape, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
//     mma(t, m, site);                             // now m.c is D
// Rounding: products are exact, sums of f16, bf16, tf32 and 8-bit floats are float, one addition after the
// other in the order of k.  How a tensor core orders and truncates inside a sum is not documented: compare
// with tolerance.  An f16 result is rounded once, at the end.  Integers are exact, and wrap or saturate at
// the end.  f64 is a chain of fma in the order of k.
#pragma once
#include "device.h"

namespace emu {

enum class MmaType : uint8_t { f16, bf16, tf32, e4m3, e5m2, s8, u8, s4, u4, b1_and, b1_xor, f32, s32 };

// ---- moving 8x8 matrices of 16-bit elements ---------------------------------------------------------------

// Of 1, 2 or 4 matrices.  Lane 8i + r gives row r (16 bytes) of matrix i; the rows of further lanes are not
// looked at.  Register i of all lanes is matrix i.
struct MatrixRows {
    char* row;
    uint32_t registers[4];
};
void ldmatrix(Thread&, uint32_t count, bool transposed, MatrixRows&, uint32_t site);
void stmatrix(Thread&, uint32_t count, bool transposed, MatrixRows&, uint32_t site);
uint32_t movmatrix(Thread&, uint32_t value, uint32_t site);              // transposes across the lanes

// ---- mma.sync ---------------------------------------------------------------------------------------------

struct MmaShape {                // n is always 8
    uint16_t m, k;
    MmaType a, b, sum;           // sum: of C and D
    bool saturate;               // .satfinite: an integer result stops at the ends of its range
    uint16_t count;              // products done together: the argument of mma() is the first of so many
};
struct Mma {                     // less than a cache line, as 32 lanes' are walked through three times
    const MmaShape* shape;
    uint32_t a[4], b[2], c[4];   // D comes back in c
};
struct MmaDouble {
    uint32_t m, k;
    double a[8], b[4], c[4];     // D comes back in c
};
struct MmaQuads {                // m8n8k4 of f16: four matrices at once, one per group of eight lanes
    bool a_row, b_row;           // .row or .col
    MmaType c, d;
    uint32_t a_[2], b_[2], c_[8], d_[8];
};
void mma(Thread&, Mma&, uint32_t site);
void mma(Thread&, MmaDouble&, uint32_t site);
void mma(Thread&, MmaQuads&, uint32_t site);

// ---- wmma -------------------------------------------------------------------------------------------------

// Which element a fragment holds at which place is the implementation's secret, on a GPU too.  Here: element
// number lane * (elements per lane) + i of the matrix, modulo its size, counted row by row (A, C, D) or
// column by column (B).
struct WmmaTile {                // one operand: `lines` of `length` elements each, in the order counted above
    uint32_t lines, length;
    uint32_t bits;               // per element: 1, 4, 8, 16, 32, 64
    bool along;                  // whether a line is consecutive in memory
    uint32_t registers;          // 32-bit words that a lane holds
};
void wmma_load(Thread&, const WmmaTile&, const char* matrix, int64_t stride, void* registers, uint32_t what,
               uint32_t site);
void wmma_store(Thread&, const WmmaTile&, char* matrix, int64_t stride, const void* registers, uint32_t what,
                uint32_t site);

struct Wmma {
    uint32_t m, n, k;
    MmaType a, b, c, d;
    bool saturate;
    uint32_t a_[8], b_[8], c_[8], d_[8];
};
struct WmmaDouble {              // m8n8k4
    double a, b, c[2], d[2];
};
void wmma(Thread&, Wmma&, uint32_t site);
void wmma(Thread&, WmmaDouble&, uint32_t site);

// ---- wgmma ------------------------------------------------------------------------------------------------

struct WgmmaShape {              // m is 64, and k elements are 32 bytes
    uint16_t n;
    MmaType a, b, d;
    bool a_in_registers;
    bool negate_a, negate_b;
    bool transposed_a, transposed_b;     // in shared memory M or N is the consecutive axis, not K
    bool saturate;
};
struct Wgmma {
    WgmmaShape shape;
    bool accumulate;             // scale-d: false starts from zero
    uint64_t a_descriptor, b_descriptor;
    uint32_t a[4];
    uint32_t* d;                 // n / 2 registers, or n / 4 where they hold pairs of f16
};
// Computes at once: see wgmma_rules.cpp for what the checker finds of the rules for fences and waits.
void wgmma(Thread&, Wgmma&, uint32_t site);
void wgmma_fence(Thread&, uint32_t site);
void wgmma_commit(Thread&, uint32_t site);
void wgmma_wait(Thread&, uint32_t pending, uint32_t site);
// What the translator saw: the instruction at `site` uses a result of the wgmma at `product` before any wait
// covers it.
void wgmma_early_use(Thread&, uint32_t product, uint32_t site);

// ---- for the runtime --------------------------------------------------------------------------------------

void wgmma_block_begin(Block&);
void wgmma_block_exit(Block&);       // every thread has exited: reports what was never waited for

}  // namespace emu
