"""csrc/kernels/sampling.cu."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_sampling as tests
from tests.mutants.device.workshop import Mutant, without

FILE = "kernels/sampling.cu"
NEEDS = ("array", ".")
TRIMS = without("FLOAT16", "BFLOAT16")
UNITS = {"device/philox.cuh": FILE}


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


MUTANTS = [
    Mutant(FILE, "of equals the highest token", "if (at != ~uint32_t(0)) atomicMin(lowest, at);",
           "if (at != ~uint32_t(0)) *lowest = at;", tokens),
    Mutant(FILE, "the token behind the one drawn", "if (passed) return base + __ffs(passed) - 1;",
           "if (passed) return base + __ffs(passed);", tokens),
    Mutant(FILE, "a negative logit's penalty makes it likelier",
           "return x < 0.0f ? x * penalty : x / penalty;", "return x / penalty;", tokens),
    Mutant(FILE, "of tied tokens one too few is kept", "k < key || (k == key && i <= id);",
           "k < key || (k == key && i < id);", cuts),
    Mutant(FILE, "the carry of a counter is lost", "+ (old + part < old);", ";", cuts),
    Mutant(FILE, "NaN is as good as a number", "fabsf(row.top) <= 3.4028234663852886e38f;",
           "!(fabsf(row.top) > 3.4028234663852886e38f);", history),
    Mutant(FILE, "the number of the row in the batch", "uint32_t(call.rows ? call.rows[b] : b)",
           "uint32_t(b)", device_memory),
]
