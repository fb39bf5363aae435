"""csrc/kernels/array."""

import numpy as np

from cuda.nn.device import EmulatedDevice
from tests.device import test_array as tests
from tests.device import test_array_functions as functions
from tests.device import test_far as distant
from tests.mutants.device.workshop import Mutant

MAP, REDUCE, SCAN, SORT, INDEX, LAYOUT, PLACES, ELEMENT, OPERATION, TRANSPOSE = (
    f"kernels/array/{name}" for name in ("map.cu", "reduce.cu", "scan.cu", "sort.cu", "index.cu", "layout.cu",
                                         "layout.cuh", "element.cuh", "operation.cuh", "transpose.cu"))
NEEDS = ("array",)
UNITS = {PLACES: INDEX, OPERATION: MAP}
# bool, int64 and float32 alone; what else there is stays in the objects that are linked
TRIMS = [(ELEMENT, f"case NN_{dtype}: {{ using S = {name}; __VA_ARGS__; }} break;",
          f"case NN_{dtype}: __trap();")
         for dtype, name in (("FLOAT16", "half"), ("BFLOAT16", "bfloat16"), ("UINT8", "uint8_t"),
                             ("UINT32", "uint32_t"), ("FLOAT64", "double"))]


def arithmetic(device: EmulatedDevice) -> None:
    tests.test_arithmetic_of_every_shape(device, (8, 16))
    tests.test_arithmetic_of_every_shape(device, (3, 1, 7))
    tests.test_broadcast_and_strides(device)
    tests.test_large_integers(device)
    tests.test_views(device, len(tests.VIEWS) - 1)                  # steps that are whole packs
    whole = np.arange(-6, 7)
    tests.same(device.asarray(whole) // 3, whole // 3)


def special(device: EmulatedDevice) -> None:
    tests.test_special_values(device)


def permuted(device: EmulatedDevice) -> None:
    for dtype in (np.uint8, np.float32):
        tests.test_permuted_copies(device, dtype)
        tests.test_permuted_copies_move_whole_sectors(device, dtype)


def permuted_floats(device: EmulatedDevice) -> None:
    tests.test_permuted_copies(device, np.float32)


def permuted_views(device: EmulatedDevice) -> None:
    tests.test_permuted_views_at_any_element(device, np.uint8)


def huge(device: EmulatedDevice) -> None:
    tests.test_merging_of_axes_in_huge_arrays(device)


def reductions(device: EmulatedDevice) -> None:
    functions.test_nan_wins_and_the_first_of_equals(device)
    x = tests.sample((3, 2100))
    for axis in (0, 1):
        found = device.asarray(x).sum(axis=axis).numpy()
        np.testing.assert_allclose(found, x.astype(np.float64).sum(axis), rtol=1e-5, atol=1e-4)


def long_sums(device: EmulatedDevice) -> None:
    functions.test_long_sums_are_accurate(device)


def scans(device: EmulatedDevice) -> None:
    for n in (3, 4099):
        functions.test_cumulative_sum(device, n)


def sorting(device: EmulatedDevice) -> None:
    functions.test_sort(device, np.float32)
    functions.test_sort_of_special_values(device)


def long_rows(device: EmulatedDevice) -> None:
    functions.test_sort_of_long_rows(device, np.float32)


def indexing(device: EmulatedDevice) -> None:
    functions.test_take(device)
    functions.test_scatter(device)


def far(device: EmulatedDevice) -> None:
    functions.test_take_from_more_than_32_bits(device)


def far_rows(device: EmulatedDevice) -> None:
    device.configure(check=0)            # no notes on memory of which hardly anything is used
    distant.test_permuted_copies_beyond_32_bits(device)


MUTANTS = [
    Mutant(OPERATION, "a smaller number wins over NaN",
           "return a < b || a != a ? a : b; }\n\n__device__ inline float",
           "return a < b ? a : b; }\n\n__device__ inline float", special),
    Mutant(OPERATION, "whole quotients are rounded down, too",
           "return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;", "return (a < 0) != (b < 0) ? q - 1 : q;",
           arithmetic),
    Mutant(MAP, "packs though the innermost axis has steps", "if (l.strides[k][inner] != 1 || !aligned",
           "if (!aligned", arithmetic, host=True),
    Mutant(MAP, "permuted copies go an element at a time", "&& transposes(l, count))", "&& false)",
           permuted_floats, host=True),
    Mutant(TRANSPOSE, "no barrier between the two halves of a transposition",
           "    }\n    __syncthreads();\n#pragma", "    }\n#pragma", permuted),
    Mutant(TRANSPOSE, "small elements keep their places in a square", "to[j][i] = from[i][j];",
           "to[i][j] = from[i][j];", permuted),
    Mutant(TRANSPOSE, "an even pitch", "[N * SIDE][SIDE + 1];", "[N * SIDE][SIDE];", permuted),
    Mutant(TRANSPOSE, "the tile's last columns are stored behind the row",
           "if (across < t.across && b < t.down)", "if (across < t.across)", permuted),
    Mutant(TRANSPOSE, "squares though a length is no multiple of theirs",
           "if (layout.shape[down] % n || layout.shape[across] % n) return false;", "", permuted_views,
           host=True),
    Mutant(TRANSPOSE, "squares though rows begin between them",
           "if ((axis != down && layout.strides[0][axis] % n) ||", "if (", permuted_views, host=True),
    Mutant(TRANSPOSE, "rows of a tile in 32 bits", "(down + k) * t.x_step + a",
           "static_cast<uint32_t>((down + k) * t.x_step) + a", far_rows),
    Mutant(INDEX, "places on an axis in 32 bits", "outside<Word>(m.is_float) : x[at[1] + place * m.stride];",
           "outside<Word>(m.is_float)\n                                            : x[at[1] + "
           "static_cast<int32_t>(place * m.stride)];", far),
    Mutant(PLACES, "the last axis is left out", "axis > 0; --axis", "axis > 1; --axis", indexing),
    Mutant(LAYOUT, "the number of elements in 32 bits",
           "const int64_t n = out->shape[kept - 1] * out->shape[kept];",
           "const int n = int(out->shape[kept - 1] * out->shape[kept]);", huge, host=True),
    Mutant(REDUCE, "the last of equals", "(a.place < b.place ? a : b)", "(a.place < b.place ? b : a)",
           reductions),
    Mutant(REDUCE, "no barrier between the steps of a tree",
           "        __syncthreads();\n        if (lane < step)", "        if (lane < step)", reductions),
    Mutant(REDUCE, "elements beyond the last count", "mine[j] = i + j < stop ? element",
           "mine[j] = true ? element", reductions),
    Mutant(REDUCE, "chunks of another row", "chunk * r.outputs + output]);", "chunk + output]);", long_sums),
    Mutant(SCAN, "no barrier before the sums of warps are used again",
           "        sum += scratch[w];\n    }\n    __syncthreads();\n", "        sum += scratch[w];\n    }\n",
           scans),
    Mutant(SCAN, "a chunk begins where the one before began",
           "            const C at = before + block_scan(x, scratch, &total);\n            if (mine < "
           "chunks)",
           "            const C at = before + block_scan(x, scratch, &total) - x;\n            if (mine < "
           "chunks)", scans),
    Mutant(SORT, "the lowest bit of a key lies on the place",
           "return {key << 32 | static_cast<uint32_t>(place)};",
           "return {key << 31 | static_cast<uint32_t>(place)};", sorting),
    Mutant(SORT, "NaN by its bits",
           "        if (value != value) return 0xffffffffu;      // last, whichever way\n", "", sorting),
    Mutant(SORT, "no barrier between the steps of the network",
           "                __syncthreads();\n                for (int pair", "                for (int pair",
           sorting),
    Mutant(SORT, "the half of a run that lies behind the row", "high = min(other + s.run, s.n);",
           "high = other + s.run;", long_rows),
    Mutant(INDEX, "an index at the end is inside", "return i < 0 || i >= m.length ? -1 : i;",
           "return i < 0 || i > m.length ? -1 : i;", indexing),
    Mutant(INDEX, "whoever comes last is written",
           "if (place >= 0 && m.winner[place] == static_cast<unsigned long long>(at[2] + 1))",
           "if (place >= 0)", indexing),
]
