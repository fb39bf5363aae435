"""Rows to experts and back."""

from tests.mutants.native.workshop import Mutant

MOE = "kernels/moe.cpp"

MUTANTS = [
    Mutant(MOE, "the sort by expert is not stable",
           "for (int64_t i = 0; i < choices; ++i) {\n            const int64_t row",
           "for (int64_t i = choices - 1; i >= 0; --i) {\n            const int64_t row", "expert_order"),
    Mutant(MOE, "experts begin a row late", "offsets[e] = next[e];",
           "offsets[e] = next[e] + 1;", "expert_order"),
    Mutant(MOE, "a pair's token is the pair", "x[order[r] / choices]",
           "x[order[r] % x.rows]", "moe_dispatch"),
    Mutant(MOE, "a token's gradient misses its first choice", "Vec sum = {};\n        for (int64_t k = 0;",
           "Vec sum = {};\n        for (int64_t k = 1;", "moe_dispatch_backward"),
    Mutant(MOE, "all choices have the first one's weight", "return weights[r][k];",
           "return weights[r][0];", "moe_combine"),
    Mutant(MOE, "rows get the unweighted gradient", "put(dys[r] + i, here, g * weight);",
           "put(dys[r] + i, here, g);", "moe_combine_backward"),
]
