"""CUDA C++ that copies asynchronously, as people write it: libcu++'s pipelines and barriers, cooperative groups, TMA, clusters."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import emulate, nvcc
from tests.emulator.test_tensor_map import encode

SOURCES = Path(__file__).parent / "programs"
RANDOM = np.random.default_rng(5)
SUMS = ("pipeline_sum", "thread_pipeline_sum", "barrier_sum", "groups_sum", "roles_sum")
WAYS = [(schedule, completion) for schedule in ("forward", "reverse", "random") for completion in ("lazy", "eager")]


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_pipelines(arch: str, mode: str) -> None:
    """sm_75 has neither cp.async nor mbarrier: there the headers fall back on ordinary copies and atomics."""
    module = emulator.compile(SOURCES / "pipeline.cu", arch=arch, mode=mode)
    x = RANDOM.integers(0, 10, (3, 5, 128)).astype(np.float32)
    for kernel in SUMS:
        for schedule, completion in WAYS:
            out = np.zeros(3, np.float32)
            module.launch(kernel, 3, 128, [out, x, np.int32(5)], schedule=schedule, cp_async=completion)
            np.testing.assert_array_equal(out, x.sum((1, 2)), err_msg=f"{kernel} {schedule} {completion}")
    assert not module.reports, module.reports


@pytest.fixture(scope="module", params=["fast", "check"])
def tma(request: pytest.FixtureRequest) -> emulator.Module:
    return emulator.compile(SOURCES / "tma.cu", arch="sm_90a", mode=request.param)


def test_tensor_tiles(tma: emulator.Module) -> None:
    rows, columns = 70, 160
    a = RANDOM.integers(0, 50, (rows, columns)).astype(ml_dtypes.bfloat16)
    expected = (a.astype(np.float32) + np.tile(np.arange(64), 3)[:columns]).astype(ml_dtypes.bfloat16)
    source, target = tma.array(a.view(np.uint16)), tma.array(np.zeros((rows, columns), np.uint16))
    codes, maps = zip(
        *(encode(9, (columns, rows), (columns * 2,), (64, 32), swizzle=3, address=b.address) for b in (source, target)),
        strict=True,
    )
    assert codes == (0, 0)
    for schedule, completion in WAYS:
        target.fill(0)
        arguments = [np.void(opaque.tobytes()) for opaque in maps]
        tma.launch("add_one", (3, 3), 128, arguments, schedule=schedule, cp_async=completion)
        np.testing.assert_array_equal(target.numpy(), expected.view(np.uint16))
    assert not tma.reports, tma.reports


def test_multicast(tma: emulator.Module) -> None:
    x = RANDOM.integers(0, 1000, (2, 1, 256)).astype(np.int32)
    for schedule, completion in WAYS:
        out = np.zeros((2, 4, 256), np.int32)
        tma.launch("multicast", 8, 64, [out, x], schedule=schedule, cp_async=completion)
        np.testing.assert_array_equal(out, x + np.arange(4)[:, None])
    assert not tma.reports, tma.reports


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_clusters(mode: str) -> None:
    module = emulator.compile(SOURCES / "cluster.cu", arch="sm_90a", mode=mode)
    values = RANDOM.integers(0, 128, 3000).astype(np.int32)
    for schedule, completion in WAYS:
        counts, out = np.zeros(128, np.uint32), np.zeros((2, 4, 64), np.int32)
        module.launch("histogram", 8, 64, [counts, values, np.int32(values.size)], schedule=schedule)
        np.testing.assert_array_equal(counts, np.bincount(values, minlength=128))
        module.launch("ring", 8, 64, [out], schedule=schedule, cp_async=completion)
        np.testing.assert_array_equal(out, np.broadcast_to((np.arange(4) + 3)[:, None] % 4 * 100 + np.arange(64), out.shape))
    assert not module.reports, module.reports


def test_whole_program_encodes_its_maps(tmp_path: Path) -> None:
    """The encoder comes through cudaGetDriverEntryPointByVersion, as there is no driver to link with."""
    program = tmp_path / "tma"
    nvcc.compile_program(SOURCES / "tma.cu", program, arch="sm_90a")
    result = emulate.run([str(program)], mode="check", arch="sm_90")
    assert (result.status, result.reports) == (0, [])
