"""Embedding, its gradient, and the optimizer."""

from tests.mutants.native.workshop import Mutant

EMBEDDING, OPTIMIZER = "kernels/embedding.cpp", "kernels/optimizer.cpp"

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
    Mutant(OPTIMIZER, "the last block of squares is cut", "(x.size + size - 1) / size;",
           "x.size / size;", "sum_of_squares"),
]
