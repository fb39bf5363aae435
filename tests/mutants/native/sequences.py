"""Convolution over time, the selective scan, and the choice of the next token."""

from tests.mutants.native.workshop import Mutant

CONV, LARGEST, TOKEN = "kernels/conv.cpp", "kernels/largest.h", "kernels/next_token.cpp"
SCAN, SCAN_BACKWARD = "kernels/scan.cpp", "kernels/scan_backward.cpp"
SAMPLING, SCAN_GROUPS, STEPS = (f"kernels/{name}" for name in ("sampling.cpp", "scan.h", "steps.h"))

MUTANTS = [
    Mutant(SCAN, "every part begins with the first state",
           "if (s.starts.data) keep_start(s.starts, group, i, h.data);",
           "if (s.starts.data) keep_start(s.starts, group, 0, h.data);", "selective_scan"),
    Mutant(SCAN, "a lone token is read before it is written",
           "read += now * get(c + k, n);",
           "read += get(before + k, n) * get(c + k, n);", "selective_scan"),
    Mutant(SCAN_BACKWARD, "the gradient of a decay without the state that it decays",
           "m = kept * load(h + own);",
           "m = kept * load(h + size + own);", "selective_scan_backward"),
    Mutant(SCAN_BACKWARD, "one group of channels is all that reads and writes",
           "for (int64_t g = 0; g < s.groups; ++g)\n                    total",
           "for (int64_t g = 0; g < 1; ++g)\n                    total", "selective_scan_backward"),
    Mutant(SCAN_BACKWARD, "the last part's rates are all",
           "store(da + k, load(da + k) + load(memory.da + k));",
           "store(da + k, load(memory.da + k));", "selective_scan_backward"),
    Mutant(CONV, "the dilation is left out of the gradient", "const int64_t t = s - j * far;",
           "const int64_t t = s - j;", "causal_conv_backward"),
    Mutant(CONV, "the first tap is applied to every position",
           "get(taps[j] + i, n);\n                put(y(b, t)",
           "get(taps[0] + i, n);\n                put(y(b, t)", "causal_conv"),
    Mutant(CONV, "the weight's gradient is one block's",
           "for (int64_t block = 0; block < blocks; ++block) total",
           "for (int64_t block = 0; block < 1; ++block) total", "causal_conv_backward"),
    Mutant(LARGEST, "the heap forgets the right child",
           "if (child + 1 < count && before(heap[child + 1], heap[child])) ++child;",
           "", "top_k"),
    Mutant(LARGEST, "what is left over from whole registers is not looked at",
           "for (; i < count; ++i) look(i);",
           "", "top_k"),
    Mutant(SAMPLING, "every row chooses among the first one's elements", "get(z[r] + i, n)",
           "get(z[0] + i, n)", "top_k"),
    Mutant(TOKEN, "ties are all in the nucleus", "while (ties > 0 && ++last < count)",
           "while (++last < count)", "next_token"),
    Mutant(TOKEN, "row and step are exchanged", "c1 = row, c2 = step", "c1 = step, c2 = row", "next_token"),
    Mutant(TOKEN, "a mask's -inf is taken for NaN", "if (!finite && any_nan(z, count)) return NAN;",
           "if (!finite) return NAN;", "next_token"),
    Mutant(TOKEN, "the register of the largest is found, not its lane", "if (any(found)) break;",
           "if (any(found)) return at;", "test_next_token.py"),
    Mutant(TOKEN, "the last of equal maxima's pieces", "if (most_in[p] > most) most",
           "if (most_in[p] >= most) most", "test_next_token.py"),
    Mutant(SCAN_GROUPS, "channels that fill no register have no rates", "group.count, states);",
           "group.count / width * width, states);", "selective_scan"),
    Mutant(STEPS, "all texts are the first", "data + b * stride[0] + t * stride[1];",
           "data + 0 * b + t * stride[1];", "causal_conv"),
]
