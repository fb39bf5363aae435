"""Embedding, its gradient, and the optimizer."""

from tests.mutants.native.workshop import Mutant

EMBEDDING, OPTIMIZER = "kernels/embedding.cpp", "kernels/optimizer.cpp"

MUTANTS = [
    Mutant(EMBEDDING, "a row that is named twice is added once",
           "for (const int64_t* row = begin; row < end; ++row)",
           "for (const int64_t* row = begin; row < end; row = end)", "scatter_add"),
]
