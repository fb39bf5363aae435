// Atomic operations: atom, red, and the element-wise reductions of bulk copies.
//
// An element type (numbers::U32, S32, F16x2 ...) says how a word in memory is read as a number; combine() is
// the arithmetic of one reduction.  Blocks may run on several OS threads, so every operation is one
// compare-and-swap on the word, sequentially consistent, which is at least as strong as any .sem asked for.
// Vector forms are atomic per element, as the PTX manual has it, not as a whole.
// Part of device.h: include that.
#pragma once

namespace emu {

enum class Reduce : uint32_t { add, min, max, bit_and, bit_or, bit_xor, inc, dec, exchange };

// ---- element types ----------------------------------------------------------------------------------------

namespace numbers {

template <class Number>
struct Whole {                   // integers and bits; -fwrapv makes signed sums wrap
    using Value = Number;
    static Number combine(Reduce operation, Number old, Number value) {
        switch (operation) {
            case Reduce::add: return static_cast<Number>(old + value);
            case Reduce::min: return old < value ? old : value;
            case Reduce::max: return old > value ? old : value;
            case Reduce::bit_and: return old & value;
            case Reduce::bit_or: return old | value;
            case Reduce::bit_xor: return old ^ value;
            case Reduce::inc: return old >= value ? 0 : static_cast<Number>(old + 1);
            case Reduce::dec: return old == 0 || old > value ? value : static_cast<Number>(old - 1);
            case Reduce::exchange: break;
        }
        return value;
    }
};
using B16 = Whole<uint16_t>;
using U32 = Whole<uint32_t>;
using S32 = Whole<int32_t>;
using B32 = U32;
using U64 = Whole<uint64_t>;
using S64 = Whole<int64_t>;
using B64 = U64;

template <class Number>
struct Floating {                // rounded to nearest even, subnormals kept
    using Value = Number;
    static Number combine(Reduce operation, Number old, Number value) {
        if (operation == Reduce::exchange) return value;
        if (operation == Reduce::add) return old + value;
        if (std::isnan(old)) return value;                   // NaN loses against a number, -0 is below +0
        if (std::isnan(value)) return old;
        const bool old_is_less = old < value || (old == value && std::signbit(old));
        return old_is_less == (operation == Reduce::min) ? old : value;
    }
};
using F32 = Floating<float>;
using F64 = Floating<double>;

struct F32Flushed {  // add.f32 in global memory: subnormal inputs and results become zero, the sign stays
    using Value = float;
    static float flush(float value) {
        return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
    }
    static float combine(Reduce operation, float old, float value) {
        if (operation != Reduce::add) return F32::combine(operation, old, value);
        return flush(flush(old) + flush(value));
    }
};

// f16 and bf16, subnormals kept (.noftz).  A float has more than twice their bits and two, so rounding the
// float sum once more gives what rounding the exact sum gives.
template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
struct Half {
    using Value = uint16_t;
    static uint16_t combine(Reduce operation, uint16_t old, uint16_t value) {
        return narrow(F32::combine(operation, widen(old), widen(value)));
    }
};
using F16 = Half<f16_to_float, float_to_f16>;
using BF16 = Half<bf16_to_float, float_to_bf16>;

template <class Element>
struct Pair {                    // two of them in one 32-bit word
    using Value = uint32_t;
    static uint32_t combine(Reduce operation, uint32_t old, uint32_t value) {
        const uint16_t low =
            Element::combine(operation, static_cast<uint16_t>(old), static_cast<uint16_t>(value));
        const uint16_t high = Element::combine(operation, old >> 16, value >> 16);
        return low | static_cast<uint32_t>(high) << 16;
    }
};
using F16x2 = Pair<F16>;
using BF16x2 = Pair<BF16>;

}  // namespace numbers

// ---- on memory --------------------------------------------------------------------------------------------

template <class Value> using Word = typename Unsigned<8 * sizeof(Value)>::Type;

// Replaces the value by update(value) in one step; returns what was there.
template <class Value, class Update>
inline Value atomic_update(char* address, Update update) {
    auto* const word = reinterpret_cast<Word<Value>*>(address);
    Word<Value> seen = __atomic_load_n(word, __ATOMIC_RELAXED);
    Word<Value> wanted;
    do wanted = bits<Word<Value>>(static_cast<Value>(update(bits<Value>(seen))));
    while (!__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return bits<Value>(seen);
}

template <class Element>
inline typename Element::Value atomic_reduce(Reduce operation, char* address, typename Element::Value value) {
    using Value = typename Element::Value;
    return atomic_update<Value>(address, [=](Value old) { return Element::combine(operation, old, value); });
}

template <class Element>
inline typename Element::Value atomic_swap_if(char* address, typename Element::Value expected,
                                              typename Element::Value value) {
    using Value = typename Element::Value;
    return atomic_update<Value>(address, [=](Value old) { return old == expected ? value : old; });
}

// add.f32 through a generic address: subnormals are flushed unless it points into shared memory.
inline float atomic_add_generic(Thread& t, char* address, float value) {
    const Dim cluster = t.launch->cluster;
    const uint64_t windows = uint64_t(WINDOW) * cluster.x * cluster.y * cluster.z;
    const bool is_shared = static_cast<uint64_t>(address - t.shared) < windows;
    return is_shared ? atomic_reduce<numbers::F32>(Reduce::add, address, value)
                     : atomic_reduce<numbers::F32Flushed>(Reduce::add, address, value);
}

// 128 bits: one instruction where the compiler offers it, otherwise a lock of the runtime (async.cpp) that
// all of them share.
b128 atomic_swap_if_locked(char* address, b128 expected, b128 value, bool always);
inline b128 atomic_128(char* address, b128 expected, b128 value, bool always) {
#ifdef __GCC_HAVE_SYNC_COMPARE_AND_SWAP_16
    using Wide = unsigned __int128;
    auto* const word = reinterpret_cast<Wide*>(address);
    Wide seen = bits<Wide>(load<b128>(address));
    for (;;) {
        const Wide wanted = always || seen == bits<Wide>(expected) ? bits<Wide>(value) : seen;
        const Wide before = __sync_val_compare_and_swap(word, seen, wanted);
        if (before == seen) return bits<b128>(seen);
        seen = before;
    }
#else
    return atomic_swap_if_locked(address, expected, value, always);
#endif
}
inline b128 atomic_exchange_128(char* address, b128 value) { return atomic_128(address, value, value, true); }
inline b128 atomic_swap_if_128(char* address, b128 expected, b128 value) {
    return atomic_128(address, expected, value, false);
}

// A fence orders memory between the OS threads that blocks run on, and tells the checker.
inline void memory_fence(Thread& t, Fence kind, uint32_t site) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (EMU_HOOKS) fence(t, kind, site);
}

}  // namespace emu
