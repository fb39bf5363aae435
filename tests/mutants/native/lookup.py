"""Embedding, its gradient, and the optimizer."""

from tests.mutants.native.workshop import Mutant

EMBEDDING, OPTIMIZER = "kernels/embedding.cpp", "kernels/optimizer.cpp"
CLIPPED, TOGETHER = "core/clipped_step.cpp", "test_optimizer.py"

MUTANTS = [
    Mutant(EMBEDDING, "a row that is named twice is added once",
           "for (const int64_t* row = begin; row < end; ++row)",
           "for (const int64_t* row = begin; row < end; row = end)", "scatter_add"),
    Mutant(EMBEDDING, "an index beyond the last row is followed", "all_below(ids, weight.rows)",
           "all_below(ids, weight.rows + 1)", "test_losses.py::test_indices_outside_are_the_references"),
    Mutant(OPTIMIZER, "the decay is coupled to the gradient's scale", "1.0 - lr * decay",
           "1.0 - lr * decay * scale", "adamw"),
    Mutant(OPTIMIZER, "the copy is of the value before the step", "put(stored + i, n, next);",
           "put(stored + i, n, p);", "test_losses.py::test_adamw_stores_its_rounding"),
    Mutant(OPTIMIZER, "the last block of squares is cut", "(sizes[a] + size - 1) / size;",
           "sizes[a] / size;", "sum_of_squares"),
    Mutant(OPTIMIZER, "a small tensor behind another is taken for it", "while (ends[a] <= b) ++a;",
           "while (ends[a] < b) ++a;", TOGETHER + "::test_the_bits_of_a_call_per_parameter"),
    Mutant(CLIPPED, "a step is taken whatever the norm", "if (std::isfinite(norm)) update();", "update();",
           TOGETHER + "::test_a_gradient_that_is_not_finite_leaves_everything"),
    Mutant(CLIPPED, "what is added lies half way, and the rest is forgotten",
           "if (other - high == twice) high = other;", "(void)other;", TOGETHER + "::test_sums_are_exact"),
]
