"""Accesses outside of variables and allocations, and misaligned ones.

The line must be right, and the address told in terms of the variable."""

import re

import numpy as np
import pytest

from tests.emulator.checking import SCHEDULES, Case, Checked


def case(
    kernel: str,
    mark: str,
    says: str,
    *args: object,
    kind: str = "out_of_bounds",
    block: int = 1,
    shared_bytes: int = 0,
) -> Case:
    return Case(kernel, kind, mark, says=says, block=block, args=("out", *args), shared_bytes=shared_bytes)


CASES = [
    Case("static_end", block=1, args=("out", 1023)),
    case("static_end", "static end", "tile[1024]: past its end (1024 elements of 4 bytes)", 1024),
    Case("static_read", block=32, args=("out", 0)),
    case("static_read", "static read", "tile[64]: past its end (64 elements of 4 bytes)", 33, block=32),
    Case("dynamic_end", block=1, args=("out", 9), shared_bytes=40),
    case(
        "dynamic_end",
        "dynamic end",
        "byte 40 of dynamic shared memory: past its end (40 bytes)",
        10,
        shared_bytes=40,
    ),
    case("dynamic_end", "dynamic end", "of which the launch gives none", 0),
    Case("local_end", block=1, args=("out", 15)),
    case("local_end", "local end", "local variables", 20),
    Case("misaligned", block=1, args=("out", 4)),
    case("misaligned", "misaligned", "not a multiple of 16", 1, kind="misaligned"),
    case("misaligned_shared", "misaligned shared", "tile", 1, kind="misaligned"),
    Case("variable_end", block=1, args=("out", 3)),
    case("variable_end", "variable end", "byte 16 of the 16 bytes of variable counter: past its end", 4),
    Case("constant_end", block=1, args=("out", 7)),
    case("constant_end", "constant end", "table", 9),
]


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked("bounds.cu")


@pytest.mark.parametrize("one", CASES, ids=lambda c: f"{c.kernel}-{c.args[1]}-{c.shared_bytes}")
def test_bounds_are_exact(one: Case, checked: Checked) -> None:
    checked.verify(one)


@pytest.mark.parametrize(
    ("kernel", "mark", "argument", "says"),
    [
        ("global_end", "global end", 0, "byte 516 of the 516 bytes of argument: past its end"),
        ("global_before", "global before", 1, "byte -4 of the 516 bytes of argument: before its start"),
        ("global_wide", "global wide", 128, "byte 512 of the 516 bytes of argument: past its end"),
    ],
)
def test_global_bounds_are_exact(checked: Checked, kernel: str, mark: str, argument: int, says: str) -> None:
    """129 ints: an end that no guard page sees."""
    for schedule in SCHEDULES:
        checked.module.clear()
        checked.module.launch(
            kernel,
            1,
            160 if kernel == "global_end" else 1,
            [np.zeros(129, np.int32), np.int32(argument)],
            **schedule,
        )
        (report,) = checked.module.reports
        assert (report.kind, report.line) == ("out_of_bounds", checked.line(mark))
        told = re.sub(r"argument \d+ \(y\)", "argument", report.message)
        if kernel != "global_end" or schedule["schedule"] == "forward":  # which thread is first to fail
            assert says in told


def test_two_allocations_do_not_run_into_each_other(checked: Checked) -> None:
    y, z = checked.module.array(np.zeros(64, np.int32)), checked.module.array(np.zeros(64, np.int32))
    checked.module.clear()
    checked.module.launch("two_outputs", 1, 1, [y, z, np.int32((z.address - y.address) // 4)])
    assert not checked.module.reports
    checked.module.launch("two_outputs", 1, 1, [y, z, np.int32(64)])
    assert [r.kind for r in checked.module.reports] == ["out_of_bounds"]


@pytest.mark.parametrize(
    ("address", "kind", "says"),
    [
        (0, "out_of_bounds", "null pointer"),
        (40, "out_of_bounds", "null pointer plus 40"),
        (None, "host_pointer", "not device memory"),
    ],
)
def test_pointers_that_are_no_device_memory(
    checked: Checked, address: int | None, kind: str, says: str
) -> None:
    on_host = np.zeros(4, np.int32)
    checked.module.clear()
    checked.module.launch("through", 1, 1, [np.uint64(on_host.ctypes.data if address is None else address)])
    (report,) = checked.module.reports
    assert (report.kind, report.line) == (kind, checked.line("through"))
    assert says in report.message
    assert on_host[0] == 0


def test_use_after_free_is_named(checked: Checked) -> None:
    y = checked.module.array(np.zeros(16, np.int32))
    address = y.address
    y.free()
    checked.module.clear()
    checked.module.launch("through", 1, 1, [np.uint64(address)])
    (report,) = checked.module.reports
    assert report.kind == "use_after_free"
    assert "freed" in report.message
