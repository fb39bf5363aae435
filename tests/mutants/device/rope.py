"""csrc/kernels/rope.cu."""

from cuda.nn.device import EmulatedDevice
from tests.device import test_rope as tests
from tests.mutants.device.workshop import Mutant, without

FILE = "kernels/rope.cu"
NEEDS = ("array", ".")
TRIMS = without("FLOAT16")
UNITS: dict[str, str] = {}


def half_split(device: EmulatedDevice) -> None:
    for width, half in ((48, 24), (80, 20), (9, 3)):
        tests.test_widths(device, "float32", False, width, half)


def halves(device: EmulatedDevice) -> None:
    for turned in (False, True):
        for width, half in ((48, 24), (9, 3)):
            tests.test_widths(device, "bfloat16", turned, width, half)


def positions(device: EmulatedDevice) -> None:
    tests.test_positions_are_read_on_the_device(device, "int64", [0, 9, 3])
    tests.test_a_position_before_the_table_gives_nan(device)


def tables(device: EmulatedDevice) -> None:
    tests.test_tables_at_every_quarter_turn(device)
    tests.test_frequencies_and_far_positions(device, "ntk", 8.0)


def strides(device: EmulatedDevice) -> None:
    tests.test_strides(device)
    tests.test_strides_that_break_packs(device)
    tests.test_tables_of_more_than_32_bits(device)
    tests.test_queries_and_keys_in_place(device, False)


def traffic(device: EmulatedDevice) -> None:
    tests.test_bytes_are_moved_once(device, False)


MUTANTS = [
    Mutant(FILE, "the sine's sign in the second half", "b * c[i] + a * s[i]", "b * c[i] - a * s[i]",
           half_split),
    Mutant(FILE, "neighbours instead of halves", "INTERLEAVED ? 2 * pair + i : pair + i * half",
           "INTERLEAVED ? pair + i * half : pair + i * half", halves),
    Mutant(FILE, "the last four sines from the first four", "load_global<W>(call.sin + from + i)",
           "load_global<W>(call.sin + from)", halves),
    Mutant(FILE, "a position before the table is read", "row >= 0 && row < call.table_rows",
           "row < call.table_rows", positions),
    Mutant(FILE, "the position of the first sequence for all", "const int64_t i = b * call.position_stride;",
           "const int64_t i = 0;", positions),
    Mutant(FILE, "angles in 32 bits", "turn(double(start + i / half) * inverse[i % half], c, s);",
           "turn(double(int(start + i / half) * float(inverse[i % half])), c, s);", tables),
    Mutant(FILE, "packs although a stride breaks alignment", "&& strides * bytes % 16 == 0;", ";", strides,
           host=True),
    Mutant(FILE, "the table's rows in 32 bits", "from = (b * call.table_batch + row) * call.half + pair;",
           "from = static_cast<int32_t>((b * call.table_batch + row) * call.half + pair);", strides),
    Mutant(FILE, "half the exponent of a frequency", "-double(i) / double(half)",
           "-double(i) / double(2 * half)", tables),
    Mutant(FILE, "angles loaded for every head again",
           "for (int64_t h = group; h < array.heads; h += int64_t(groups) * HEADS) {",
           "for (int64_t h = group; h < array.heads; h += int64_t(groups) * HEADS) {\n            "
           "load_angles<N>(c, s, call, b, t, pair);", traffic),
]
