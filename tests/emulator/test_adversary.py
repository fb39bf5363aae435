"""Kernels that are hard on a checker (adversary/*.cu).

Odd but correct ones, about which it must say nothing under any schedule, and the same with one thing wrong,
which it must report on its line.  All take (out, zero, in), 4096 ints each: `zero` is cleared, in[i] = i.
A comment `// [name]` marks a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.nn import emulator

SOURCES = Path(__file__).parent / "adversary"
SCHEDULES = ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 3})
ARCHES = {"ordering.cu": "sm_80", "groups.cu": "sm_80", "language.cu": "sm_80", "hopper.cu": "sm_90"}
N = 4096
IDS = np.arange(N)
T = IDS[:64]  # of the usual block


@dataclass(frozen=True)
class Odd:
    """A correct kernel and the beginning of what it must leave in `out`."""

    file: str
    kernel: str
    expected: Any
    grid: int = 1
    block: int | Sequence[int] = 64
    shared: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.kernel


@dataclass(frozen=True)
class Broken:
    """A kernel with a fault: its kind, the mark of its line and, where there are two sides, of the other."""

    file: str
    kernel: str
    kind: str
    at: str
    other: str = ""
    grid: int = 1
    block: int = 64
    shared: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    schedules: Sequence[int] = (0, 1, 2)  # which schedules bring it to light

    def __str__(self) -> str:
        return self.kernel


def per_block(values: np.ndarray, size: int) -> np.ndarray:
    """Each block's values in reverse order."""
    return values.reshape(-1, size)[:, ::-1].reshape(-1)


def iterate(function: Callable[[int], int], times: int) -> int:
    value = 0
    for _ in range(times):
        value = function(value)
    return value


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


TILE = T // 8 * 8  # first thread of each tile of 8
LABELS = np.array([[11, 11, 10][t % 3] for t in range(32)])  # lanes of a warp with this lane's remainder
WIDE = np.arange(32)
TICKETS = iterate(lambda x: (x * 3 + 1) % 2**32, 128)
BODIES = np.arange(45)  # 5 x 3 x 3 threads

ODD = [
    Odd("ordering.cu", "message_ok", [42], grid=2),
    Odd("ordering.cu", "fenced_ok", T ^ 1, grid=2),
    Odd("ordering.cu", "fenced_system_ok", T ^ 1, grid=2),
    Odd("ordering.cu", "cumulative_ok", T, grid=2),
    Odd("ordering.cu", "chain_ok", [7], grid=3, block=32),
    Odd("ordering.cu", "two_scopes_ok", [7], grid=2),
    Odd("ordering.cu", "two_fences_ok", [7], grid=2),
    Odd("ordering.cu", "told_ok", [7], grid=2, block=32),
    Odd("ordering.cu", "told_in_block_ok", [7, 7], grid=2),
    Odd("ordering.cu", "own_grid_barrier_ok", 6 * (639 - np.arange(640)), grid=10),
    Odd("ordering.cu", "release_sequence_ok", [9], grid=3, block=32),
    Odd("ordering.cu", "lock_ok", [80], grid=2, block=40),
    Odd("ordering.cu", "lock_same_warp_ok", [128], grid=2),
    Odd("ordering.cu", "ticket_lock_ok", np.array([TICKETS], np.uint32).view(np.int32), grid=2),
    Odd("ordering.cu", "look_back_ok", np.cumsum(np.arange(640)), grid=10),
    Odd("ordering.cu", "packed_look_back_ok", np.cumsum(np.arange(40)), grid=40, block=32),
    Odd("ordering.cu", "semaphore_ok", 5 * T + 10, grid=5),
    Odd("ordering.cu", "relay_ok", np.arange(32) + 2, block=128),
    Odd(
        "ordering.cu",
        "bytes_between_blocks_ok",
        (np.arange(256) & 127).astype(np.int8).view(np.int32),
        grid=2,
    ),
    Odd("ordering.cu", "bits_ok", [-1, -1, 0]),
    Odd("ordering.cu", "atomic_block_scope_ok", [64, 64, 0], grid=2),
    Odd("groups.cu", "warp_aggregated_ok", np.arange(64) < 22),
    Odd("groups.cu", "tiles_ok", 8 * TILE + 28 + [sum(range(t // 8 * 8, t ^ 7)) for t in range(64)]),
    Odd("groups.cu", "labels_ok", LABELS * 10100 + np.arange(32) // 3, block=32),
    Odd(
        "groups.cu", "divergent_tiles_ok", [sum(t // 4 * 4 + 1 + i for i in range(t // 4)) for t in range(64)]
    ),
    Odd("groups.cu", "large_tile_ok", np.repeat([2016, 6112], 64), block=128),
    Odd("groups.cu", "votes_ok", [16111124] * 32 + [8111124] * 16, block=48),
    Odd("groups.cu", "redux_ok", [120] * 16 + [31] * 16, block=32),
    Odd(
        "groups.cu",
        "wide_shuffles_ok",
        2 * (WIDE ^ 1)
        + 1
        + 1000 * np.where(WIDE % 16 < 14, WIDE + 2, WIDE)
        + 1000000 * np.where(WIDE % 8, WIDE - 1, WIDE),
        block=32,
    ),
    Odd("groups.cu", "shuffle_past_exited_ok", [0] * 16, block=32),
    Odd("groups.cu", "loop_leaves_whole_block_ok", [5] * 64),
    Odd("groups.cu", "uniform_early_exit_ok", [*T[::-1], *[0] * 64, *T[::-1], *[0] * 64], grid=4),
    Odd("groups.cu", "turns_ok", 4 * np.arange(32)[::-1] + 192),
    Odd("groups.cu", "drop_ok", T[:48] + 16),
    Odd("groups.cu", "staged_ok", 6 * T[::-1] + 64 * 15),
    Odd("groups.cu", "thread_pipeline_ok", 4 * T + 384),
    Odd("groups.cu", "group_copy_ok", 100 - T),
    Odd("groups.cu", "barrier_copy_ok", 255 - T),
    Odd(
        "groups.cu", "grid_sync_ok", 255 - (np.arange(256) + 64) % 256, grid=4, options={"cooperative": True}
    ),
    Odd("language.cu", "recursion_ok", [fibonacci(t % 8) for t in range(64)]),
    Odd("language.cu", "nested_frames_ok", [24] * 64),
    Odd("language.cu", "function_pointers_ok", np.where(T % 2, T * T, 2 * T)),
    Odd("language.cu", "virtual_ok", np.where(T % 2, 3 * T, T * T)),
    Odd("language.cu", "heap_ok", T + 2),
    Odd("language.cu", "clock_ok", [1] * 64),
    Odd("language.cu", "local_dynamic_ok", T * (T % 16) + T * (7 * T % 16)),
    Odd("language.cu", "carved_ok", 5 * T[::-1] + 1, shared=64 * 15),
    Odd("language.cu", "large_shared_ok", (19999 - T) % 64, shared=80000),
    Odd("language.cu", "generic_ok", T % 4),
    Odd("language.cu", "shared_in_function_ok", T[::-1]),
    Odd("language.cu", "vectors_ok", per_block(np.arange(256), 4)),
    Odd("language.cu", "half2_ok", 64 - T),
    Odd("language.cu", "double_atomics_ok", [2016] * 64),
    Odd(
        "language.cu",
        "odd_block_ok",
        44 - BODIES + 100 * np.where(BODIES < 32, BODIES ^ 1, 35),
        block=(5, 3, 3),
    ),
    Odd("language.cu", "constant_ok", T % 8 + 1),
    Odd("language.cu", "uninitialised_ok", T),
    Odd("hopper.cu", "neighbours_ok", [*range(127, 63, -1), *T[::-1]], grid=2),
    Odd("hopper.cu", "distributed_histogram_ok", [4] * 32, grid=2),
    Odd("hopper.cu", "split_barrier_ok", [*(3 * T + 1), *(3 * T)], grid=2),
    Odd("hopper.cu", "remote_arrival_ok", np.arange(32)[::-1], grid=2, block=32),
    Odd("hopper.cu", "bulk_out_ok", 3 * T),
    Odd("hopper.cu", "bulk_in_ok", T[::-1]),
]

SHORT = {"steps": 200_000}
BROKEN = [
    Broken("ordering.cu", "message_block_release_bad", "race", "message read", "message write", grid=2),
    Broken("ordering.cu", "message_block_acquire_bad", "race", "message read", "message write", grid=2),
    Broken(
        "ordering.cu", "message_block_acquire_bad", "race", "message flag load", "message flag store", grid=2
    ),
    Broken("ordering.cu", "message_relaxed_bad", "race", "message read", "message write", grid=2),
    Broken("ordering.cu", "told_bad", "race", "told read", "told write", grid=2, block=32),
    Broken("ordering.cu", "fenced_block_bad", "race", "fenced read", "fenced write", grid=2),
    Broken("ordering.cu", "early_fence_bad", "race", "early read", "early write", grid=2),
    Broken("ordering.cu", "lock_scope_bad", "race", "locked", "locked", grid=2, block=40),
    Broken("ordering.cu", "lock_relaxed_bad", "race", "locked", "locked", grid=2, block=40),
    Broken("ordering.cu", "lock_never_freed_bad", "step_budget", "never freed", block=40, options=SHORT),
    Broken("ordering.cu", "look_back_bad", "race", "look-back read", "look-back prefix write", grid=10),
    Broken("ordering.cu", "semaphore_bad", "race", "semaphore tile", "semaphore tile", grid=5),
    Broken("ordering.cu", "bits_bad", "race", "bits", "bits"),
    Broken("ordering.cu", "covered_atomic_bad", "race", "covered read", "covered atomic", schedules=(1,)),
    Broken("ordering.cu", "atomic_block_scope_bad", "race", "block atomic", "block atomic", grid=2),
    Broken("ordering.cu", "same_value_bad", "race", "same value", "same value", grid=2),
    Broken("groups.cu", "tiles_bad", "race", "tile read", "tile write"),
    Broken(
        "groups.cu", "shuffle_in_branch_bad", "deadlock", "shuffle in branch", "barrier behind it", block=32
    ),
    Broken("groups.cu", "own_lane_missing_bad", "collective", "own lane missing", block=32),
    Broken("groups.cu", "barrier_in_loop_bad", "divergence", "barrier in loop", "barrier after loop"),
    Broken("groups.cu", "turns_parity_bad", "deadlock", "turns consumer waits"),
    Broken("groups.cu", "turns_count_bad", "deadlock", "turns consumer waits"),
    Broken("groups.cu", "uninitialised_barrier_bad", "async", "uninitialised barrier"),
    Broken("groups.cu", "staged_bad", "async", "staged read", "staged copy"),
    Broken("groups.cu", "group_copy_bad", "async", "group read", "group copy"),
    Broken(
        "groups.cu", "grid_sync_bad", "race", "grid read", "grid write", grid=4, options={"cooperative": True}
    ),
    Broken("language.cu", "heap_bad", "out_of_bounds", "heap read"),
    Broken("language.cu", "local_bad", "out_of_bounds", "local read"),
    Broken("language.cu", "local_below_bad", "out_of_bounds", "local write below"),
    Broken("language.cu", "dangling_bad", "host_pointer", "dangling read"),
    Broken("language.cu", "carved_end_bad", "out_of_bounds", "carved end", shared=128),
    Broken("language.cu", "shared_negative_bad", "out_of_bounds", "shared negative"),
    Broken("language.cu", "shared_negative_wide_bad", "out_of_bounds", "shared negative wide", shared=256),
    Broken("language.cu", "shared_in_function_bad", "out_of_bounds", "function read"),
    Broken("language.cu", "half2_bad", "misaligned", "half2 odd"),
    Broken("language.cu", "float4_bad", "misaligned", "float4 odd"),
    Broken("language.cu", "vector_past_end_bad", "out_of_bounds", "vector past end"),
    Broken("language.cu", "constant_bad", "out_of_bounds", "constant read"),
    Broken("language.cu", "variable_bad", "out_of_bounds", "variable write"),
    Broken("language.cu", "global_below_bad", "out_of_bounds", "global below"),
    Broken("language.cu", "global_end_bad", "out_of_bounds", "global end"),
    Broken("language.cu", "byte_end_bad", "out_of_bounds", "byte end"),
    Broken("language.cu", "null_bad", "out_of_bounds", "null"),
    Broken("language.cu", "wild_bad", "host_pointer", "wild"),
    Broken("language.cu", "unaligned_int_bad", "misaligned", "unaligned int"),
    Broken("language.cu", "forever_bad", "step_budget", "forever", options=SHORT),
    Broken("language.cu", "forever_plain_bad", "step_budget", "forever plain", options=SHORT),
    Broken("language.cu", "deep_bad", "stack_overflow", ""),
    Broken("hopper.cu", "neighbours_bad", "race", "neighbour read", "neighbour write", grid=2),
    Broken("hopper.cu", "leaves_early_bad", "out_of_bounds", "neighbour read", grid=2),
    Broken("hopper.cu", "peer_gone_bad", "out_of_bounds", "peer gone read", grid=2),
    Broken("hopper.cu", "distributed_histogram_bad", "race", "distributed bin", "distributed bin", grid=2),
    Broken("hopper.cu", "bulk_out_fence_bad", "async", "bulk out", "bulk generic write"),
    Broken("hopper.cu", "bulk_out_reuse_bad", "async", "bulk reuse", "bulk out"),
    Broken("hopper.cu", "bulk_in_early_bad", "async", "bulk in read", "bulk in"),
    Broken("hopper.cu", "bulk_in_bytes_bad", "deadlock", "bulk in waits"),
]


@pytest.fixture(scope="module")
def modules() -> dict[str, emulator.Module]:
    """Compiled sources by file, filled as tests ask for them."""
    return {}


def run(case: Odd | Broken, modules: dict[str, emulator.Module], schedule: dict[str, Any]) -> np.ndarray:
    """Launch a case; what it left in `out`."""
    if case.file not in modules:
        modules[case.file] = emulator.compile(SOURCES / case.file, arch=ARCHES[case.file])
    module = modules[case.file]
    module.clear()
    out, zero, numbers = np.zeros(N, np.int32), np.zeros(N, np.int32), np.arange(N, dtype=np.int32)
    module.launch(
        case.kernel, case.grid, case.block, [out, zero, numbers], case.shared, **case.options, **schedule
    )
    return out


def line(file: str, mark: str) -> int | None:
    """Number of the line with that mark; None for the empty one."""
    if not mark:
        return None
    lines = (SOURCES / file).read_text(encoding="utf-8").splitlines()
    (found,) = [number for number, text in enumerate(lines, 1) if f"// [{mark}]" in text]
    return found


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["schedule"])
@pytest.mark.parametrize("case", ODD, ids=str)
def test_correct_kernel_is_right_and_passed_over(case: Odd, schedule: dict[str, Any], modules: dict) -> None:
    out = run(case, modules, schedule)
    assert modules[case.file].reports == []
    expected = np.asarray(case.expected)
    np.testing.assert_array_equal(out[: expected.size], expected)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.kernel}-{case.kind}-{case.at}")
def test_fault_is_found_on_its_line(case: Broken, modules: dict) -> None:
    here, there = line(case.file, case.at), line(case.file, case.other)
    for number in case.schedules:
        run(case, modules, SCHEDULES[number])
        found = modules[case.file].reports
        sides = {(r.line or None, r.other_line or None) for r in found if r.kind == case.kind}
        expected = {(here, there), (there, here)} if there else {(here, None)}
        lone = {(one, None) for one, _ in sides} if not there else sides
        assert lone & expected, f"{SCHEDULES[number]}: {case.kind} expected at {here}, {there}; found {found}"


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_that_wait_for_others_get_them_in_the_fast_mode(threads: int) -> None:
    """Without a cooperative launch, in the order that starts the waiting ones first."""
    module = emulator.compile(SOURCES / "ordering.cu", arch="sm_80", mode="fast")
    out, zero, numbers = np.zeros(N, np.int32), np.zeros(N, np.int32), np.arange(N, dtype=np.int32)
    module.launch("semaphore_ok", 40, 64, [out, zero, numbers], schedule="reverse", threads=threads)
    np.testing.assert_array_equal(out[:64], 40 * T + 780)


def test_memory_never_written_is_found(modules: dict) -> None:
    """module.empty() memory, read one past what was written, or added to."""
    for kernel, mark in (("uninitialised_bad", "fresh"), ("uninitialised_atomic_bad", "fresh atomic")):
        case = Broken("language.cu", kernel, "uninitialized", mark)
        run(Odd("language.cu", "constant_ok", []), modules, {})
        module = modules["language.cu"]
        module.clear()
        out, numbers = np.zeros(N, np.int32), np.arange(N, dtype=np.int32)
        module.launch(kernel, 1, 64, [out, module.empty(N, np.int32), numbers])
        assert (case.kind, line(case.file, mark)) in {(r.kind, r.line) for r in module.reports}


def test_memory_given_back_is_found(modules: dict) -> None:
    run(Odd("language.cu", "constant_ok", []), modules, {})
    module = modules["language.cu"]
    module.clear()
    gone = module.empty(N, np.int32)
    address = np.uint64(gone.address)
    gone.free()
    module.launch("constant_ok", 1, 64, [address, address, np.arange(N, dtype=np.int32)])
    assert [r.kind for r in module.reports] == ["use_after_free"]
