"""csrc/kernels/router."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_router as tests
from tests.mutants.device.workshop import Mutant, without

FILE, JITTER = "kernels/router/router.cu", "kernels/router/jitter.cu"
NEEDS = ("array", "router")
TRIMS = without("FLOAT16", "BFLOAT16")
UNITS: dict[str, str] = {}


def few(device: EmulatedDevice) -> None:
    for tokens, experts, k in ((5, 8, 2), (5, 65, 40)):
        tests.test_every_path(device, tokens, experts, k, tests.FAST, True, "aligned")


def many(device: EmulatedDevice) -> None:
    tests.test_every_path(device, 2, 100, 65, tests.GENERAL, False, "aligned")


def extremes(device: EmulatedDevice) -> None:
    for experts in (4, 1100):
        tests.test_extremes(device, experts)


def jitter(device: EmulatedDevice) -> None:
    for count in (5, 1025):
        tests.test_jitter_is_the_hosts_bit_for_bit(device, count, "aligned")


MUTANTS = [
    Mutant(JITTER, "one draw for four elements", "uniform(words.at[i])", "uniform(words.at[0])", jitter),
    Mutant(JITTER, "the counter's words exchanged", "static_cast<uint32_t>(block), a, b, c);",
           "static_cast<uint32_t>(block), b, a, c);", jitter),
    Mutant(JITTER, "a multiplication contracted with an addition",
           "__fadd_rn(low, __fmul_rn(width, uniform(words.at[i])))", "fmaf(width, uniform(words.at[i]), low)",
           jitter),
    Mutant(FILE, "of equals the higher expert", "key > other || (key == other && expert < other_expert);",
           "key > other || (key == other && expert > other_expert);", few),
    Mutant(FILE, "0 above -0", "const int bits = __float_as_int(x + 0.0f);",
           "const int bits = __float_as_int(x);", extremes),
    Mutant(FILE, "NaN is the largest", "    if (x != x) return 1;\n", "", extremes),
    Mutant(FILE, "an expert is chosen twice", "if (expert % width == lane) {", "if (expert == lane) {", few),
    Mutant(FILE, "no choices beyond the lanes", "if (round == lane + width) late = e, late_expert = expert;",
           "", few),
    Mutant(FILE, "a token beyond the last is stored", "        if (token >= a.tokens) continue;\n", "", few),
    Mutant(FILE, "no barrier before the candidates are overwritten",
           "mine = scratch[i];\n    __syncthreads();\n", "mine = scratch[i];\n", many),
    Mutant(FILE, "weights divided by their sum before all are written",
           "        __syncthreads();\n        const float total", "        const float total", many),
    Mutant(FILE, "the mean is subtracted where nothing was renormalised",
           "(dweights[at] - (renormalize ? mean : 0.0f))", "(dweights[at] - mean)", many),
]
