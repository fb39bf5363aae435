"""CUDA C++ that copies asynchronously, as people write it: libcu++'s pipelines and barriers, cooperative
groups, TMA, clusters.  Right and silent in every way of running, and every error planted in it is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import emulate, nvcc
from tests.emulator.corpus import SOURCES, Launch, Program
from tests.emulator.faults import Fault
from tests.emulator.test_tensor_map import encode
from tests.emulator.variants import Variants, compile_variants

RANDOM = np.random.default_rng(5)
SCHEDULES = ("forward", "reverse", "random")
WAYS = [(schedule, completion) for schedule in SCHEDULES for completion in ("lazy", "eager")]
Pairs = list[tuple[np.ndarray, np.ndarray]]
Run = Callable[[Launch, emulator.Module], Pairs]


def _sum(kernel: str) -> Run:
    def run(launch: Launch, module: emulator.Module) -> Pairs:
        x, out = RANDOM.integers(0, 10, (3, 5, 128)).astype(np.float32), np.zeros(3, np.float32)
        launch(kernel, grid=3, block=128, args=[out, x, np.int32(5)])
        return [(out, x.sum((1, 2)))]

    return run


def _add_column(launch: Launch, module: emulator.Module) -> Pairs:
    """Tiles of 32 x 64 over a tensor that they do not divide."""
    rows, columns = 70, 160
    a = RANDOM.integers(0, 50, (rows, columns)).astype(ml_dtypes.bfloat16)
    source, target = module.array(a.view(np.uint16)), module.array(np.zeros((rows, columns), np.uint16))
    maps = []
    for buffer in (source, target):
        code, opaque = encode(9, (columns, rows), (columns * 2,), (64, 32), swizzle=3, address=buffer.address)
        assert code == 0
        maps.append(np.void(opaque.tobytes()))
    launch("add_column", grid=(3, 3), block=128, args=maps)
    expected = a.astype(np.float32) + np.tile(np.arange(64), 3)[:columns]
    return [(target.numpy().view(ml_dtypes.bfloat16).astype(np.float32), expected)]


def _multicast(launch: Launch, module: emulator.Module) -> Pairs:
    x, out = RANDOM.integers(0, 1000, (2, 1, 256)).astype(np.int32), np.zeros((2, 4, 256), np.int32)
    launch("multicast", grid=8, block=64, args=[out, x])
    return [(out, x + np.arange(4)[:, None])]


def _histogram(launch: Launch, module: emulator.Module) -> Pairs:
    values, counts = RANDOM.integers(0, 128, 3000).astype(np.int32), np.zeros(128, np.uint32)
    launch("histogram", grid=8, block=64, args=[counts, values, np.int32(values.size)])
    return [(counts, np.bincount(values, minlength=128))]


def _ring(launch: Launch, module: emulator.Module) -> Pairs:
    out = np.zeros((2, 4, 64), np.int32)
    launch("ring", grid=8, block=64, args=[out])
    return [(out, np.broadcast_to((np.arange(4) + 3)[:, None] % 4 * 100 + np.arange(64), out.shape))]


SUMS = ("pipeline_sum", "thread_pipeline_sum", "barrier_sum", "groups_sum", "roles_sum")
KERNELS: dict[str, tuple[str, Run]] = {
    **{kernel: ("pipeline", _sum(kernel)) for kernel in SUMS},
    "add_column": ("tma", _add_column),
    "multicast": ("tma", _multicast),
    "histogram": ("cluster", _histogram),
    "ring": ("cluster", _ring),
}


# ---- as they should be -------------------------------------------------------------------------------------


def _check(module: emulator.Module, kernels: list[str]) -> None:
    for kernel in kernels:
        for schedule, completion in WAYS:

            def launch(*names: str, **how: Any) -> None:
                module.launch(*names, schedule=schedule, cp_async=completion, **how)  # noqa: B023

            for computed, expected in KERNELS[kernel][1](launch, module):
                np.testing.assert_array_equal(computed, expected, err_msg=f"{kernel} {schedule} {completion}")
    assert not module.reports, module.reports


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_pipelines(arch: str, mode: str) -> None:
    """sm_75 has neither cp.async nor mbarrier: there the headers fall back on ordinary copies and atomics."""
    _check(emulator.compile(SOURCES / "pipeline.cu", arch=arch, mode=mode), list(SUMS))


@pytest.mark.parametrize("program", ["tma", "cluster"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_hopper_programs(program: str, mode: str) -> None:
    module = emulator.compile(SOURCES / f"{program}.cu", arch="sm_90a", mode=mode)
    _check(module, [kernel for kernel, (file, _) in KERNELS.items() if file == program])


def test_whole_program_encodes_its_maps(tmp_path: Path) -> None:
    """The encoder comes through cudaGetDriverEntryPointByVersion, as there is no driver to link with."""
    program = tmp_path / "tma"
    nvcc.compile_program(SOURCES / "tma_main.cu", program, arch="sm_90a")
    result = emulate.run([str(program)], mode="check", arch="sm_90")
    assert (result.status, result.reports) == (0, [])


# ---- with an error -----------------------------------------------------------------------------------------

# `program` is the kernel here.  In calls of a library the report names the line of the call.
WAIT = "pipeline.consumer_wait();"
FENCE = "cde::fence_proxy_async_shared_cta();"
MEET = "cluster.sync();"
FAULTS = [
    Fault("pipeline_sum", "no wait", WAIT, "", "async|race", "sum += buffer"),
    Fault("thread_pipeline_sum", "no wait", WAIT, "", "async", "sum += buffer", nth=2),
    Fault(
        "thread_pipeline_sum",
        "the other stage",
        "sum += buffer[tile % 2][threadIdx.x];",
        "sum += buffer[(tile + 1) % 2][threadIdx.x];",
        "async|uninitialized",
        "sum += buffer",
    ),
    Fault(
        "barrier_sum", "no wait for the copy", "ready.arrive_and_wait();", "", "async|race", "sum += buffer"
    ),
    Fault(
        "barrier_sum",
        "no wait for the readers",
        "ready.arrive_and_wait();",
        "",
        "async|race",
        "cuda::memcpy_async(block, buffer",
        nth=2,
    ),
    Fault(
        "barrier_sum",
        "one arrival too many expected",
        "init(&ready, blockDim.x)",
        "init(&ready, blockDim.x + 1)",
        "deadlock",
        "ready.arrive_and_wait",
    ),
    Fault(
        "groups_sum", "waits for too little", "wait_prior<1>", "wait_prior<2>", "async|race", "sum += buffer"
    ),
    Fault(
        "groups_sum",
        "no barrier before refilling",
        "        block.sync();",
        "",
        "async|race",
        "cg::memcpy_async(block, buffer[(tile",
    ),
    Fault(
        "roles_sum",
        "consumers keep their stages",
        "pipeline.consumer_release();",
        "",
        "deadlock",
        "pipeline.",
        nth=3,
    ),
    Fault("roles_sum", "consumers do not wait", WAIT, "", "async|race|uninitialized", "+= buffer", nth=3),
    Fault("add_column", "store not fenced", FENCE, "", "async", "2d_shared_to_global", nth=2),
    Fault(
        "add_column",
        "no barrier before the store",
        "__syncthreads();",
        "",
        "race",
        "2d_shared_to_global",
        nth=2,
    ),
    Fault(
        "add_column",
        "half the bytes expected",
        "1, sizeof tile",
        "1, sizeof tile / 2",
        "deadlock",
        "ready.wait",
    ),
    Fault(
        "add_column",
        "no wait for the load",
        "ready.wait(std::move(token));",
        "",
        "async|race|uninitialized",
        "tile[row][place] =",
    ),
    Fault(
        "add_column",
        "store not waited for",
        "cde::cp_async_bulk_wait_group_read<0>();",
        "",
        "async",
        "2d_shared_to_global",
    ),
    Fault(
        "add_column",
        "store not committed",
        "cde::cp_async_bulk_commit_group();",
        "",
        "async",
        "2d_shared_to_global",
    ),
    Fault("add_column", "no swizzle in the code", "(column / 8) ^ (row % 8)", "column / 8", "numbers"),
    Fault("multicast", "a block left out", "uint16_t(0xf)", "uint16_t(0x7)", "deadlock", "try_wait"),
    Fault(
        "multicast", "a block too many", "uint16_t(0xf)", "uint16_t(0x1f)", "out_of_bounds", "space_cluster"
    ),
    Fault("multicast", "barriers not awaited", MEET, "", "async|race", "space_cluster|mbarrier_init|&ready"),
    Fault(
        "multicast",
        "more bytes than the source has",
        "sizeof tile, &ready",
        "sizeof tile * 4, &ready",
        "out_of_bounds",
        "space_cluster",
    ),
    Fault(
        "histogram",
        "bins not zero everywhere",
        MEET,
        "",
        "race|uninitialized",
        "bins[i] = 0;|atomicAdd(there",
    ),
    Fault(
        "histogram", "read before all have added", MEET, "", "race", "atomicAdd(there|atomicAdd(counts", nth=2
    ),
    Fault(
        "ring",
        "read before it arrived",
        "while (!ptx::mbarrier_try_wait_parity(&arrived, 0)) {}",
        "",
        "async|race|uninitialized",
        "out[blockIdx.x * 64",
    ),
    Fault(
        "ring",
        "half the bytes expected",
        "sizeof inbox",
        "sizeof inbox / 2",
        "async|race|deadlock",
        "out[blockIdx.x * 64|try_wait",
    ),
    Fault("ring", "sends to block 4", "+ 1) % 4", "+ 1) % 5", "out_of_bounds", "map_shared_rank"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variants]:
    """A program's variants, one for each of its faults."""
    modules = {}
    for file in ("pipeline", "tma", "cluster"):
        program = Program(f"{file}.cu", lambda launch: [], "sm_90a" if file != "pipeline" else "sm_80")
        sources = [fault.plant(program.source) for fault in FAULTS if KERNELS[fault.program][0] == file]
        modules[file] = compile_variants(program, sources, tmp_path_factory.mktemp(file))
    return modules


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_found_on_its_line(fault: Fault, planted: dict[str, Variants]) -> None:
    file, run = KERNELS[fault.program]
    variants = planted[file]
    number = [other for other in FAULTS if KERNELS[other.program][0] == file].index(fault)
    variants.module.clear()
    pairs = run(variants.launch(number), variants.module)
    if fault.kind == "numbers":
        assert not all(np.array_equal(*pair) for pair in pairs)
        return
    found = variants.module.reports
    named = [report for report in found if report.kind in fault.kind.split("|")]
    assert named, f"expected {fault.kind}, found {found}"
    places = variants.lines(number, fault.at)
    lines = {line for report in named for line in (report.line, report.other_line)}
    assert lines & places, f"expected {sorted(places)}: {named}"
