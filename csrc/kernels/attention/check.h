// What every attention call is checked for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "device/launch.h"
#include "nn/attention.h"

namespace nn {

constexpr int64_t ATTENTION_MAX_LENGTH = 1 << 30, ATTENTION_MAX_WIDTH = 256;

#define NN_REQUIRE_SIZE(value, most)                                                                      \
    NN_REQUIRE((value) >= 0 && (value) <= (most), #value ": %lld is not in 0 ... %lld", (long long)(value), \
               (long long)(most))
#define NN_REQUIRE_WIDTH(value)                                                                             \
    NN_REQUIRE((value) >= 1 && (value) <= ATTENTION_MAX_WIDTH, #value ": %lld is not in 1 ... 256", \
               (long long)(value))

// The structure as this library knows it, zeros where the caller's is older and shorter.
template <class Call> int copy_call(Call* to, const Call* from, const char* argument, const char* type) {
    NN_REQUIRE(from, "%s: a null pointer", argument);
    NN_REQUIRE(from->size >= 64 && from->size <= 4096, "%s.size: %lld; set it to sizeof(nn_%s)", argument,
               (long long)from->size, type);
    std::memset(static_cast<void*>(to), 0, sizeof *to);
    const size_t size = static_cast<size_t>(from->size);
    std::memcpy(static_cast<void*>(to), from, size < sizeof *to ? size : sizeof *to);
    return NN_OK;
}

inline int check_options(int64_t* window, float scale, float softcap) {
    NN_REQUIRE(*window >= 0, "window: %lld is negative", (long long)*window);
    NN_REQUIRE(std::isfinite(scale), "scale: %g is not finite", scale);
    NN_REQUIRE(std::isfinite(softcap) && softcap >= 0.0f, "softcap: %g is not in 0 ... inf", softcap);
    if (*window > ATTENTION_MAX_LENGTH) *window = ATTENTION_MAX_LENGTH;
    return NN_OK;
}

// Their number times a length has to fit 64 bits.
inline int check_rows(int64_t batch, const char* name, int64_t heads) {
    NN_REQUIRE(heads == 0 || batch <= MAX_GRID_X / heads, "batch, %s: %lld times %lld is more than 2^31 - 1",
               name, (long long)batch, (long long)heads);
    return NN_OK;
}

inline int check_heads(int64_t batch, int64_t heads, int64_t groups) {
    NN_REQUIRE_SIZE(heads, ATTENTION_MAX_LENGTH);
    NN_REQUIRE(groups >= 1 && groups <= ATTENTION_MAX_LENGTH && heads % groups == 0,
               "groups: %lld is not in 1 ... 2^30, or heads (%lld) is not a multiple of it",
               (long long)groups, (long long)heads);
    NN_TRY(check_rows(batch, "groups", groups));
    return check_rows(batch, "heads", heads);
}

inline int check_floating(int32_t dtype) {
    NN_REQUIRE(dtype == NN_FLOAT32 || dtype == NN_FLOAT16 || dtype == NN_BFLOAT16,
               "dtype: %s (%d); expected float32, float16 or bfloat16", dtype_name(dtype), (int)dtype);
    return NN_OK;
}

// The checked call of nn_attention_forward; the backward's is the same call.
inline int read_call(nn_attention* a, const nn_attention* call, const char* argument) {
    NN_TRY(copy_call(a, call, argument, "attention"));
    NN_REQUIRE_SIZE(a->batch, ATTENTION_MAX_LENGTH);
    NN_TRY(check_heads(a->batch, a->heads, a->groups));
    NN_REQUIRE_SIZE(a->queries, ATTENTION_MAX_LENGTH);
    NN_REQUIRE_SIZE(a->keys, ATTENTION_MAX_LENGTH);
    NN_REQUIRE_WIDTH(a->width);
    NN_REQUIRE_WIDTH(a->value_width);
    NN_TRY(check_options(&a->window, a->scale, a->softcap));
    NN_TRY(check_floating(a->dtype));
    NN_REQUIRE(!a->cu_queries == !a->cu_keys, "cu_queries, cu_keys: one is null, the other is not");
    if (a->batch == 0 || a->heads == 0 || a->queries == 0) return NN_OK;
    NN_REQUIRE(a->o && a->lse && a->q, "o, lse or q: a null pointer");
    NN_REQUIRE((a->k && a->v) || a->keys == 0, "k or v: a null pointer");
    const size_t bytes = static_cast<size_t>(dtype_bytes(a->dtype));
    NN_REQUIRE(aligned(a->q, bytes) && aligned(a->k, bytes) && aligned(a->v, bytes) && aligned(a->o, bytes),
               "o, q, k or v: not aligned to %d bytes, the size of a number", (int)bytes);
    NN_REQUIRE(aligned(a->lse, 4), "lse: %p is not aligned to float32", (void*)a->lse);
    NN_REQUIRE(aligned(a->cu_queries, 4) && aligned(a->cu_keys, 4) && aligned(a->key_lengths, 4),
               "cu_queries, cu_keys or key_lengths: not aligned to int32");
    return NN_OK;
}

inline int read_cache(nn_cache* c, const nn_cache* cache) {
    NN_TRY(copy_call(c, cache, "cache", "cache"));
    NN_REQUIRE_SIZE(c->batch, ATTENTION_MAX_LENGTH);
    NN_REQUIRE(c->groups >= 1 && c->groups <= ATTENTION_MAX_LENGTH, "groups: %lld is not positive",
               (long long)c->groups);
    NN_TRY(check_rows(c->batch, "groups", c->groups));
    NN_REQUIRE_SIZE(c->capacity, ATTENTION_MAX_LENGTH);
    NN_REQUIRE_WIDTH(c->width);
    NN_REQUIRE_WIDTH(c->value_width);
    NN_TRY(check_floating(c->dtype));
    NN_REQUIRE(c->page == 0 || (c->page >= 16 && c->page <= ATTENTION_MAX_LENGTH &&
                                (c->page & (c->page - 1)) == 0),
               "page: %lld is neither 0 nor a power of two from 16 on", (long long)c->page);
    NN_REQUIRE(aligned(c->block_table, 4), "block_table: %p is not aligned to int32",
               (const void*)c->block_table);
    NN_REQUIRE((c->page != 0) == (c->block_table != nullptr), "block_table, page: a table needs a page size");
    if (c->page) {
        NN_REQUIRE(c->pages >= 0 && c->pages <= MAX_GRID_X, "pages: %lld is not in 0 ... 2^31 - 1",
                   (long long)c->pages);
        NN_REQUIRE_SIZE(c->max_pages, ATTENTION_MAX_LENGTH);
        NN_REQUIRE(c->capacity == c->page * c->max_pages, "capacity: %lld is not page * max_pages = %lld",
                   (long long)c->capacity, (long long)(c->page * c->max_pages));
    }
    if (c->batch == 0 || c->capacity == 0) return NN_OK;
    NN_REQUIRE(c->k && c->v, "k or v: a null pointer");
    const size_t bytes = static_cast<size_t>(dtype_bytes(c->dtype));
    NN_REQUIRE(aligned(c->k, bytes) && aligned(c->v, bytes),
               "k or v: not aligned to %d bytes, the size of a number",
               (int)bytes);
    return NN_OK;
}

}  // namespace nn
