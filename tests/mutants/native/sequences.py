"""Convolution over time, and the choice of the next token."""

from tests.mutants.native.workshop import Mutant

CONV, SAMPLING = "kernels/conv.cpp", "kernels/sampling.cpp"

MUTANTS = [
    Mutant(CONV, "the dilation is left out of the gradient", "const int64_t t = s - j * far;",
           "const int64_t t = s - j;", "causal_conv_backward"),
    Mutant(CONV, "the first tap is applied to every position",
           "get(taps[j] + i, n);\n                put(y(b, t)",
           "get(taps[0] + i, n);\n                put(y(b, t)", "causal_conv"),
    Mutant(CONV, "the weight's gradient is one block's",
           "for (int64_t block = 0; block < blocks; ++block) total",
           "for (int64_t block = 0; block < 1; ++block) total", "causal_conv_backward"),
    Mutant(SAMPLING, "the heap forgets the right child",
           "if (child + 1 < count && before(heap[child + 1], heap[child])) ++child;",
           "", "top_k"),
    Mutant(SAMPLING, "what is left over from whole registers is not looked at",
           "for (; i < count; ++i) look(i);",
           "", "top_k"),
]
