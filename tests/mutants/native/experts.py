"""Rows to experts and back."""

from tests.mutants.native.workshop import Mutant

MOE = "kernels/moe.cpp"
GROUPED, BACKWARD = "kernels/grouped.cpp", "kernels/grouped_backward.cpp"
COLUMNS, GROUPS, PANELS, WRITE, INDICES = (
    f"kernels/{name}.h"
    for name in ("grouped/columns", "grouped/groups", "grouped/panels", "grouped/write", "indices"))

MUTANTS = [
    Mutant(MOE, "the sort by expert is not stable",
           "for (int64_t i = 0; i < choices; ++i) {\n            const int64_t row",
           "for (int64_t i = choices - 1; i >= 0; --i) {\n            const int64_t row", "expert_order"),
    Mutant("kernels/packed_experts.cpp", "rows of chosen experts lie close together",
           "experts, call.array[5].stride[0], count", "experts, weights.cols, count",
           "test_indices.py::test_rows_at_any_distance_are_taken"),
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
    Mutant(GROUPED, "all rows meet the first expert's weights", "Operand<T>{weight[e], weight.row, 1}",
           "Operand<T>{weight[e - e], weight.row, 1}", "grouped_linear"),
    Mutant(GROUPED, "a row's token is its pair", "all.order[group.first + first + i] / all.choices;",
           "all.order[group.first + first + i] % all.x.rows;", "gathered_swiglu"),
    Mutant(GROUPED, "up is kept where gate is", "put_to(hidden, hidden.to[r] + half + column, n, up);",
           "put_to(hidden, hidden.to[r] + column, n, up);", "gathered_swiglu"),
    Mutant(GROUPED, "few rows are multiplied by the first columns alone", "const T* const gate = all.weight["
           "group.expert] + first * stride;", "const T* const gate = all.weight[group.expert];",
           "test_experts.py::test_few_rows_one_by_one"),
    Mutant(BACKWARD, "inputs get the first expert's gradient", "Operand<T>{weight[e], 1, weight.row}",
           "Operand<T>{weight[e - e], 1, weight.row}", "grouped_linear_backward"),
    Mutant(BACKWARD, "up's gradient is without the sigmoid", "put(to + padded + i, n, g * (z * s));",
           "put(to + padded + i, n, g * z);", "gathered_swiglu_backward"),
    Mutant(BACKWARD, "a token's gradient misses its first row", "for (int64_t k = 0; k < used; ++k)",
           "for (int64_t k = 1; k < used; ++k)", "gathered_swiglu_backward"),
    Mutant(COLUMNS, "all panels of columns lie in the first one's place", " + i * stride(group) +", " +",
           "grouped_linear_backward"),
    Mutant(GROUPS, "a group's second chunk begins with its rows",
           "body(group, first, left < size ? left : size);", "body(group, 0, left < size ? left : size);",
           "test_experts.py"),
    Mutant(PANELS, "both registers of a panel are the first", "own[i][1] += row * second;",
           "own[i][1] += row * first;", "grouped_linear"),
    Mutant(WRITE, "a panel's first register is written twice", "n, sums[panel][i][v]);",
           "n, sums[panel][i][0]);", "grouped_linear_backward"),
    Mutant(INDICES, "an index may be as large as what it indexes",
           "(uint64_t)index[i] < (uint64_t)limit;", "(uint64_t)index[i] <= (uint64_t)limit;",
           "test_experts.py::test_wrong_indices_are_the_references_to_judge"),
]
