"""Attention, rotary embedding, caches."""

from tests.mutants.native.workshop import Mutant

ROPE, CACHE, ATTENTION, ROWS, DECODE, BACKWARD = (
    f"kernels/{name}"
    for name in ("rope.cpp", "cache.cpp", "attention.cpp", "attention_rows.h", "attention_decode.cpp",
                 "attention_backward.cpp"))
MATH, BLOCK, PACK, PRODUCTS, VIEWS = (
    f"kernels/{name}.h" for name in ("attention_math", "attention_block", "attention_pack",
                                     "attention_products", "heads"))

MUTANTS = [
    Mutant(ROPE, "the halves are turned the other way", "put(y + i, n, a * c - b * s);",
           "put(y + i, n, a * c + b * s);", "rope"),
    Mutant(ROPE, "interleaved pairs take the angle of the next", "i % 2 ? sign : -sign",
           "i % 2 ? -sign : sign", "rope"),
    Mutant(ROPE, "the turn back is the turn", "turn.inverse ? -1.0f : 1.0f",
           "1.0f", "rope"),
    Mutant(ROPE, "channels beyond the turned ones stay unset", "if (turned < size) memcpy",
           "if (turned > size) memcpy", "rope"),
    Mutant(ROPE, "all rows of a batch have the first one's tables", "const int64_t of = own ? b : 0;",
           "const int64_t of = 0;", "rope"),
    Mutant(ROPE, "all of a row's tokens stand at its first position", "const int64_t row = positions[b] + t;",
           "const int64_t row = positions[b];", "rope_at"),
    Mutant(CACHE, "a full cache is written beyond its end", "held + t < cache.length",
           "held + t <= cache.length", "cache_append"),
    Mutant(CACHE, "every row of the batch holds as many as the first", "held = lengths[b];",
           "held = lengths[0];", "cache_append"),
    Mutant(ATTENTION, "a new maximum does not scale the sum so far", "run.l[v] * factor + (total + rest)",
           "run.l[v] + (total + rest)", "attention"),
    Mutant(ATTENTION, "a new maximum does not scale the result so far", "if (smallest(factor) < 1.0f)",
           "if (smallest(factor) < 0.0f)", "attention"),
    Mutant(ATTENTION, "the log of the sum leaves out the maximum",
           "run.m[v] * p.scale + natural_log(run.l[v])",
           "natural_log(run.l[v])", "attention"),
    Mutant(ATTENTION, "queries that see nothing are divided by nothing",
           "empty > 0.0f ? Vec{} : 1.0f / run.l[v]",
           "1.0f / run.l[v]", "attention"),
    Mutant(MATH, "the logarithm of NaN is a number", "x != x ? x : f + (", "f + (", "test_nan.py"),
    Mutant(MATH, "NaN's bits are added to", "Vec{} : p * whole;",
           "Vec{} : (Vec)((Int)p + ((Int)shifted << 23));", "test_nan.py"),
    Mutant(DECODE, "the window of a decoding step is left out", "(int64_t)number(call, 1), true};",
           "0, true};", "decode_attention"),
    Mutant(ROWS, "a part's sum is not brought to the common maximum",
           "total += factor(c) * parts[c * rows_here].l;",
           "total += parts[c * rows_here].l;", "decode_attention"),
    Mutant(BACKWARD, "delta is not subtracted from the scores' gradient", "p * (load(dp + at) - of.delta[v])",
           "p * load(dp + at)", "attention_backward"),
    Mutant(BACKWARD, "one part alone makes the gradient of keys",
           "for (int64_t part = 0; part < parts; ++part) sum",
           "for (int64_t part = 0; part < 1; ++part) sum", "attention_backward"),
    Mutant(BLOCK, "a query sees the key behind its own", "sight.causal ? 1 : back;",
           "sight.causal ? 2 : back;", "attention"),
    Mutant(PACK, "channels that fill no register are left out of the scores",
           "left > 0 ? bits_of(load(row + u, left)) : Bits{};", "Bits{};", "attention"),
    Mutant(PRODUCTS, "all rows of a block get the first one's sums", "v * width, sums[i][v]);",
           "v * width, sums[0][v]);", "attention"),
    Mutant(VIEWS, "all heads are the first", "data + b * batch_stride + h * head_stride;",
           "data + b * batch_stride + 0 * h;", "attention"),
]
