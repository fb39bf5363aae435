"""Counters against figures worked out by hand, by kernel and by line."""

from typing import Any

import numpy as np
import pytest

from tests.emulator.checking import SCHEDULES, Checked


@pytest.fixture(scope="module")
def counted() -> Checked:
    return Checked("counters.cu", mode="count")


def floats(n: int = 64 * 1024) -> np.ndarray:
    return np.zeros(n, np.float32)


def line(
    counted: Checked,
    kernel: str,
    mark: str,
    *args: Any,
    grid: int = 1,
    block: Any = 32,
    shared_bytes: int = 0,
    **schedule: Any,
) -> Any:
    """The counts of one line of one launch."""
    counted.module.clear()
    counted.module.launch(kernel, grid, block, list(args), shared_bytes, **schedule)
    assert not counted.module.reports, counted.module.reports
    return counted.module.counters[kernel].by_line[counted.line(mark)]


# ---- global memory: sectors of 32 bytes ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "args", "sectors", "ideal"),
    [
        ("copy", (), 4 + 4, 4 + 4),
        ("strided", (np.int32(1),), 4 + 4, 4 + 4),
        ("strided", (np.int32(2),), 8 + 4, 4 + 4),
        ("strided", (np.int32(8),), 32 + 4, 4 + 4),
        ("strided", (np.int32(1000),), 32 + 4, 4 + 4),
        ("offset", (), 5 + 4, 4 + 4),
        ("broadcast", (), 1 + 4, 1 + 4),
        ("wide", (), 16 + 16, 16 + 16),
        ("bytes", (), 1 + 1, 1 + 1),
    ],
)
def test_sectors_per_request(counted: Checked, kernel: str, args: tuple, sectors: int, ideal: int) -> None:
    found = line(counted, kernel, kernel, floats(), floats(), *args)
    assert (found.requests, found.sectors, found.ideal_sectors) == (2, sectors, ideal)


def test_a_row_per_thread_takes_a_sector_per_lane(counted: Checked) -> None:
    found = line(counted, "row_sums", "row sums", floats(32), floats())
    assert (found.requests, found.sectors, found.ideal_sectors) == (8, 8 * 32, 8 * 4)
    assert found.bytes_read == found.distinct_bytes_read == 8 * 32 * 4


def test_fragments_of_mma_fill_half_of_their_sectors(counted: Checked) -> None:
    found = line(counted, "store_fragment", "fragment", np.zeros(8 * 64, np.uint32), np.int32(64))
    assert (found.sectors, found.ideal_sectors) == (8, 4)


def test_bytes_all_and_distinct(counted: Checked) -> None:
    found = line(counted, "broadcast", "broadcast", floats(), floats(), block=64)
    assert (found.bytes_read, found.distinct_bytes_read) == (64 * 4, 4)
    assert (found.bytes_written, found.distinct_bytes_written) == (64 * 4, 64 * 4)


# ---- shared memory: wavefronts ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "width", "stride", "wavefronts", "ideal"),
    [
        ("bank4", 1, 1, 1, 1),
        ("bank4", 1, 2, 2, 1),
        ("bank4", 1, 3, 1, 1),
        ("bank4", 1, 32, 32, 1),
        ("bank4", 1, 33, 1, 1),
        ("bank4", 1, 4, 4, 1),
        ("bank8", 2, 1, 2, 2),
        ("bank8", 2, 2, 4, 2),
        ("bank8", 2, 16, 32, 2),
        ("bank16", 4, 1, 4, 4),
        ("bank16", 4, 2, 8, 4),
        ("bank16", 4, 8, 32, 4),
        ("bank16", 4, 9, 4, 4),
    ],
)
def test_bank_conflicts(
    counted: Checked, kernel: str, width: int, stride: int, wavefronts: int, ideal: int
) -> None:
    needed = (31 * stride + 1) * 4 * width
    for mark in ("bank write", "bank read"):
        found = line(counted, kernel, mark, floats(32 * width), np.int32(stride), shared_bytes=needed)
        assert (found.shared_requests, found.bank_wavefronts, found.ideal_wavefronts) == (
            1,
            wavefronts,
            ideal,
        )


def test_lanes_that_read_one_word_share_it(counted: Checked) -> None:
    assert line(counted, "bank_broadcast", "bank broadcast", floats(32)).bank_wavefronts == 1


@pytest.mark.parametrize(("kernel", "ratio"), [("transpose_plain", 32), ("transpose_padded", 1)])
def test_padding_takes_a_transpose_s_conflicts_away(counted: Checked, kernel: str, ratio: int) -> None:
    for schedule in SCHEDULES:
        found = line(counted, kernel, "tile out", floats(1024), floats(1024), block=(32, 8), **schedule)
        assert (found.bank_wavefronts, found.ideal_wavefronts) == (32 * ratio, 32)
        assert (found.sectors, found.ideal_sectors) == (128, 128)


@pytest.mark.parametrize(("row", "wavefronts"), [(32, 8), (64, 16), (128, 32), (80, 4), (144, 4)])
def test_matrix_rows_in_phases_of_eight(counted: Checked, row: int, wavefronts: int) -> None:
    found = line(counted, "ldmatrix", "ldmatrix", np.zeros(32, np.uint32), np.int32(row), shared_bytes=4096)
    assert (found.shared_requests, found.bank_wavefronts, found.ideal_wavefronts) == (1, wavefronts, 4)


# ---- lanes that go different ways ----------------------------------------------------------


def test_the_nth_access_of_each_lane_is_one_request(counted: Checked) -> None:
    for schedule in SCHEDULES:
        found = line(counted, "diverging", "diverging", floats(32), floats(128), **schedule)
        assert found.requests == 3  # lanes 1 2 3, then 2 3, then 3, of every four
        assert found.bytes_read == (24 + 16 + 8) * 4


def test_a_meeting_of_the_warp_separates_requests(counted: Checked) -> None:
    for schedule in SCHEDULES:
        assert line(counted, "realigned", "realigned", floats(32), floats(128), **schedule).requests == 4


def test_lanes_far_ahead_wait_for_the_others(counted: Checked) -> None:
    found = line(counted, "long_loop", "long loop", floats(32), floats(32 * 10000), np.int32(10000))
    assert (found.requests, found.sectors) == (10000, 40000)


# ---- operations ----------------------------------------------------------


def test_operations_by_type(counted: Checked) -> None:
    counted.module.clear()
    counted.module.launch("arithmetic", 2, 64, [floats(64), np.zeros(64), np.int32(10)])
    kernel = counted.module.counters["arithmetic"]
    lines = kernel.by_line
    assert lines[counted.line("fma")].flops["f32"] == 2 * 10 * 128
    assert lines[counted.line("double")].flops["f64"] == 10 * 128
    assert kernel.barriers == lines[counted.line("barrier")].barriers == 20
    assert kernel.collectives == lines[counted.line("shuffle")].collectives == 4
    assert kernel.total_flops == kernel.flops["f32"] + kernel.flops["f64"]
    assert (kernel.launches, kernel.blocks, kernel.threads) == (1, 2, 128)
    assert kernel.mix["barrier"] == 10 * 128
    assert sum(kernel.mix.values()) == kernel.instructions
    assert sum(one.instructions for one in kernel.places.values()) == kernel.instructions


def test_tensor_operations(counted: Checked) -> None:
    counted.module.clear()
    counted.module.launch(
        "tensor", 1, 32, [floats(256), np.zeros(256, np.float16), np.zeros(256, np.float16)]
    )
    assert counted.module.counters["tensor"].flops["tensor_f16"] == 2 * 16 * 16 * 16


def test_atomics_are_counted_by_thread(counted: Checked) -> None:
    found = line(counted, "bins", "atomics", np.zeros(4, np.int32), block=64)
    assert (found.atomics, found.requests, found.sectors) == (64, 2, 2)


def test_launches_add_up_and_clear_forgets(counted: Checked) -> None:
    counted.module.clear()
    for _ in range(3):
        counted.module.launch("copy", 2, 32, [floats(64), floats(64)])
    assert counted.module.counters["copy"].launches == 3
    assert counted.module.counters["copy"].sectors == 3 * 16
    counted.module.clear()
    assert "copy" not in counted.module.counters
