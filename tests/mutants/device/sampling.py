"""csrc/kernels/sampling."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_arguments as arguments
from tests.device import test_counts as counts
from tests.device import test_sampling as tests
from tests.mutants.device.workshop import Mutant, without

SAMPLE, BITS, ROW, HISTOGRAM, DRAW = (f"kernels/sampling/{name}" for name in (
    "sample.cu", "random_bits.cu", "row.cuh", "histogram.cuh", "draw.cuh"))
NEEDS = ("array", "sampling")
TRIMS = without("FLOAT16", "BFLOAT16")
UNITS = {"device/philox.cuh": BITS, ROW: SAMPLE, HISTOGRAM: SAMPLE, DRAW: SAMPLE}


def tokens(device: EmulatedDevice) -> None:
    for strategy in ("greedy", "plain", "all"):
        tests.test_the_tokens_of_the_cpu(device, strategy, 7)
    tests.judge(device, tests.draw("ties", 2, 1000), "all")


def cuts(device: EmulatedDevice) -> None:
    tests.test_cuts_between_almost_equal_logits(device)
    tests.judge(device, tests.draw("ties", 2, 1000), "nucleus")


def history(device: EmulatedDevice) -> None:
    tests.test_history_outside_the_vocabulary_and_lengths(device)
    tests.test_rows_without_a_token(device)


def device_memory(device: EmulatedDevice) -> None:
    tests.test_step_rows_and_keys_are_read_on_the_device(device)
    tests.test_random_bits(device)


def bits(device: EmulatedDevice) -> None:
    tests.test_random_bits(device)
    arguments.test_arrays_may_begin_at_any_element(device, "random_bits", {})
    counts.test_each_byte_is_moved_once(device, "random_bits", "float32", {"count": 24_576})


MUTANTS = [
    Mutant(SAMPLE, "of equals the highest token", "if (at != ~uint32_t(0)) atomicMin(lowest, at);",
           "if (at != ~uint32_t(0)) *lowest = at;", tokens),
    Mutant(DRAW, "the token behind the one drawn", "if (passed) return base + __ffs(passed) - 1;",
           "if (passed) return base + __ffs(passed);", tokens),
    Mutant(ROW, "a negative logit's penalty makes it likelier",
           "return x < 0.0f ? x * penalty : x / penalty;", "return x / penalty;", tokens),
    Mutant(ROW, "of tied tokens one too few is kept", "k < key || (k == key && i <= id);",
           "k < key || (k == key && i < id);", cuts),
    Mutant(HISTOGRAM, "the carry of a counter is lost", "+ (old + part < old);", ";", cuts),
    Mutant(SAMPLE, "NaN is as good as a number", "fabsf(row.top) <= 3.4028234663852886e38f;",
           "!(fabsf(row.top) > 3.4028234663852886e38f);", history),
    Mutant(SAMPLE, "the number of the row in the batch", "uint32_t(call.rows ? call.rows[b] : b)",
           "uint32_t(b)", device_memory),
    Mutant(BITS, "words are stored one by one", "if (at_once && 4 * block", "if (false && 4 * block", bits),
    Mutant(BITS, "the last four words are stored whole", "if (at_once && 4 * block + 4 <= count) {",
           "if (at_once) {", bits),
    Mutant(BITS, "words at any element are stored at once", "nn::aligned(out, 16));", "true);", bits,
           host=True),
]
