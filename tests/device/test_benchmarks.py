"""Benchmarks: every function has one, every check can fail, counts and bytes are right, times are taken as
said."""

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.benchmarks import counting, machine, peaks, runner, timing
from cuda.nn.benchmarks.baselines import Baselines
from cuda.nn.benchmarks.case import Call, Check
from cuda.nn.benchmarks.families import WITHOUT, load, reason_without
from cuda.nn.device import Device, EmulatedDevice
from cuda.nn.device import device as find_device
from cuda.nn.emulator import roofline
from cuda.nn.errors import UnsupportedError
from cuda.nn.prototypes import prototypes, runtime

BENCHMARKS = load()
FUNCTIONS = [name for name in prototypes() if name not in runtime.FUNCTIONS]
HEADERS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "nn"


@pytest.fixture
def counter() -> EmulatedDevice:
    """Counts, and checks nothing: what `cuda-nn bench kernels` uses."""
    found = find_device("emulated", mode="fast", count=1)
    assert isinstance(found, EmulatedDevice)
    return found


def call_of(device: Device, name: str, dtype: str = "float32", **sizes: int) -> Call:
    benchmark = BENCHMARKS[name]
    return benchmark.make(device, dtype, {**benchmark.small, **sizes})


# ---- which there are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_a_benchmark_or_a_reason(function: str) -> None:
    has_one = function.removeprefix("nn_") in {b.function for b in BENCHMARKS.values()}
    assert has_one != bool(reason_without(function))


def test_every_header_has_benchmarks() -> None:
    headers = {path.stem for path in HEADERS.glob("*.h")} - {"types", "runtime"}
    assert {b.family for b in BENCHMARKS.values()} == headers


def test_reasons_and_benchmarks_name_functions_that_exist() -> None:
    assert {f"nn_{b.function}" for b in BENCHMARKS.values()} <= set(FUNCTIONS)
    assert all(any(function.endswith(name) for function in FUNCTIONS) for name in WITHOUT)


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda b: b.name)
def test_both_shapes_have_the_same_axes(benchmark: Any) -> None:
    assert list(benchmark.large) == list(benchmark.small)
    assert all(n >= benchmark.small[axis] for axis, n in benchmark.large.items())


# ---- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda b: b.name)
def test_results_match_the_formula_and_only_if_the_kernel_ran(device: EmulatedDevice, benchmark: Any) -> None:
    call = benchmark.make(device, benchmark.dtypes[-1], benchmark.small)
    before = {one["name"]: one["correct"] for one in runner.verdict(call)["errors"]}
    device.clear()                                            # memory that nothing has written was read
    assert not any(before.values())
    call.run()
    assert runner.verdict(call)["correct"], runner.verdict(call)["errors"]


@pytest.mark.parametrize(("found", "expected", "good"), [
    (np.float32([1, 2]), [1, 2], True), (np.float32([1, 2.001]), [1, 2], False),
    (np.float32([1, np.nan]), [1, 2], False), (np.float32([np.nan, 1]), [np.nan, 1], False),
    (np.float32([0, 0]), [0, 0], True), (np.int64([1, 2]), [1, 3], False), (np.int64([1, 3]), [1, 3], True),
    (np.float16([1.001, 2]), [1, 2], True), (np.float16([1.01, 2]), [1, 2], False),
    (np.float32([1, np.inf]), [1, 2], False), (np.float32([1]), [1, 2], False),
])
def test_a_check(device: EmulatedDevice, found: np.ndarray, expected: list[float], good: bool) -> None:
    right = np.array(expected, np.int64 if found.dtype.kind == "i" else np.float64)
    error, allowed = Check("x", device.asarray(found), lambda: right).error()
    assert (error <= allowed) == good


# ---- least traffic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype", "sizes", "read", "written"), [
    ("rms_norm_forward", "bfloat16", {"rows": 4, "cols": 8}, 2 * 32 + 2 * 8, 2 * 32 + 4 * 4),
    ("gemm_forward:nt", "float16", {"m": 16, "n": 24, "k": 8}, 2 * (16 * 8 + 24 * 8), 2 * 16 * 24),
    ("adamw_forward", "float32", {"tensors": 2, "count": 100}, 200 * 16, 200 * 12),
    ("adamw_forward", "bfloat16", {"tensors": 2, "count": 100}, 200 * 14, 200 * 14),
    ("attention_forward", "bfloat16", {"batch": 1, "heads": 4, "groups": 2, "tokens": 8, "width": 16},
     2 * 8 * 16 * (4 + 2 + 2), 2 * 4 * 8 * 16 + 4 * 4 * 8),
    ("softmax_causal_forward", "float32", {"rows": 4, "cols": 4, "period": 4}, 4 * (1 + 2 + 3 + 4), 4 * 16),
])
def test_least_bytes(device: EmulatedDevice, name: str, dtype: str, sizes: dict[str, int], read: int,
                     written: int) -> None:
    call = call_of(device, name, dtype, **sizes)
    assert (call.bytes_read, call.bytes_written) == (read, written)


@pytest.mark.parametrize(("name", "sizes", "flops"), [
    ("gemm_forward:nn", {"m": 3, "n": 5, "k": 7}, 2 * 3 * 5 * 7),
    ("attention_forward", {"batch": 2, "heads": 2, "groups": 1, "tokens": 4, "width": 8},
     2 * 2 * 2 * 2 * 8 * (1 + 2 + 3 + 4)),
    ("linear_cross_entropy_forward", {"rows": 4, "width": 8, "vocabulary": 16}, 3 * 2 * 4 * 8 * 16),
])
def test_operations(device: EmulatedDevice, name: str, sizes: dict[str, int], flops: int) -> None:
    assert call_of(device, name, **sizes).flops == flops


# ---- counts ------------------------------------------------------------------------------------------------


def test_a_counted_row(counter: EmulatedDevice) -> None:
    (row,) = runner.rows(counter, runner.select(["silu_forward"]), dtypes=["float32"], shapes=["4096"])
    assert row["correct"]
    assert row["figures"] == "counted, not timed"
    assert row["device"] == "emulated sm_80"
    assert row["shape"] == {"n": 4096}
    assert (row["distinct_bytes_read"], row["distinct_bytes_written"]) == (4 * 4096, 4 * 4096)
    assert row["sectors"] == row["ideal_sectors"] == 2 * 4 * 4096 / 32
    assert row["launches"] == 1
    assert row["flops"]["f32"] > 4096
    assert row["tensor_operations"] == 0
    (kernel,) = row["kernels"]
    assert kernel["spill_bytes"] == 0
    assert 8 <= kernel["registers"] <= 255
    assert 0 < kernel["occupancy_at_most"] <= 1
    assert row["floor"]["limit"] == "memory"
    assert json.loads(json.dumps(row)) == row


def test_nothing_of_a_counted_row_is_a_time(counter: EmulatedDevice) -> None:
    (row,) = runner.rows(counter, runner.select(["relu_forward"]), dtypes=["float32"], shapes=["4096"])
    words = {"microseconds", "low", "high", "bytes_per_second", "flops_per_second", "of_roofline"}
    assert not words & row.keys()


def test_tensor_operations_are_two_per_multiply_and_add(counter: EmulatedDevice) -> None:
    call = call_of(counter, "gemm_forward:nt", "bfloat16", m=64, n=64, k=64)
    assert counting.counted(counter, call.run)["tensor_operations"] == 2 * 64**3


def test_figures_of_machine_code_are_those_of_the_kernels_that_ran(counter: EmulatedDevice) -> None:
    from cuda.nn import build

    found = counting.counted(counter, call_of(counter, "rms_norm_backward").run)["kernels"]
    assert len(found) == 2
    names = {kernel["mangled"] for kernel in found}
    assert machine.figures(build.emulated_library(), "sm_80", names).keys() == names
    assert machine.figures(build.emulated_library(), "sm_80", ["_Z7nothingv"]) == {}


def test_occupancy_falls_with_shared_memory() -> None:
    small = machine.Figures(32, 0, 0, 1024, 0)
    assert machine.with_launch(small, "sm_80", 256)["occupancy_at_most"] == 1
    large = machine.with_launch(replace(small, shared_bytes=48 * 1024), "sm_80", 256)
    assert large["occupancy_at_most"] == 3 * 256 / 2048
    assert large["occupancy_limit"] == "shared memory"


# ---- times -------------------------------------------------------------------------------------------------


class Clock:
    """Stands for cuda.nn.stream.Event: times as given."""

    given: list[float]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self) -> "Clock":
        return self

    def elapsed(self, _: "Clock") -> float:
        return self.given.pop(0)


def test_a_median_in_microseconds_without_the_runs_that_warm_up(device: EmulatedDevice,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "Event", Clock)
    Clock.given = [100.0, 100.0, 1e3, *(n / 1e3 for n in (5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 1000))]
    order: list[str] = []
    found = timing.measure(device, lambda: order.append("run"), lambda: order.append("flush"), runs=11)
    assert (found.median, found.low, found.high, found.runs) == (
        pytest.approx(6), pytest.approx(2), pytest.approx(10), 11)
    assert order == [*["flush", "run"] * 2, "run", "flush", *["flush", "run"] * 11]


@pytest.mark.parametrize(("flushing", "flushes"), [(1e3, 1), (4.0, 5), (1e-6, 16)])
def test_the_device_is_busy_while_the_host_queues(device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch,
                                                  flushing: float, flushes: int) -> None:
    """Queueing takes the host 10 ms; a flush takes the device so many."""
    seconds = iter([0.0, 0.01])
    monkeypatch.setattr(timing, "Event", Clock)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    Clock.given = [1.0, 1.0, flushing, 1.0]
    order: list[str] = []
    timing.measure(device, lambda: order.append("run"), lambda: order.append("flush"), runs=1)
    assert order[6:] == ["flush"] * flushes + ["run"]


@pytest.mark.parametrize(("one", "runs"), [(0.1, 100), (10.0, 30), (1000.0, 10)])
def test_as_many_runs_as_fit(device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, one: float,
                             runs: int) -> None:
    monkeypatch.setattr(timing, "Event", Clock)
    Clock.given = [one] * 1000
    assert timing.measure(device, lambda: None, lambda: None).runs == runs


def test_real_events_on_the_emulated_device(device: EmulatedDevice) -> None:
    call = call_of(device, "silu_forward", n=64)
    found = timing.measure(device, call.run, timing.Flush(device, 4096), runs=3)
    assert found.runs == 3
    assert 0 < found.low <= found.median <= found.high


def test_the_flush_writes_all_of_a_buffer_larger_than_the_cache(device: EmulatedDevice) -> None:
    flush = timing.Flush(device, 4096)
    flush()
    assert flush._buffer.nbytes == 4096
    assert not flush._buffer.numpy().any()
    assert timing.Flush(device).size == 2 * device.info.l2_bytes
    assert device.info.l2_bytes > timing.LEAST_FLUSH


def test_a_timed_row_of_the_emulated_device_claims_no_speed(device: EmulatedDevice) -> None:
    options = runner.Options(time=True, runs=2, flush_bytes=4096)
    (row,) = runner.rows(device, runner.select(["silu_forward"]), dtypes=["float32"], shapes=["256"],
                         options=options)
    assert row["correct"]
    assert row["figures"] == "times of the emulator, which are no speed"
    assert "microseconds" not in row
    timed = row["emulator"]
    assert timed["runs"] == 2
    assert timed["bytes_per_second"] == pytest.approx(2 * 4 * 256 / timed["microseconds"] * 1e6)
    assert timed["limit"] == "memory"
    assert timed["of_roofline"] == pytest.approx(timed["roofline_microseconds"] / timed["microseconds"])


def test_a_wrong_result_is_said_and_nothing_more_is_done(device: EmulatedDevice,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    (silu,) = runner.select(["silu_forward"])

    def build(*arguments: Any, **sizes: int) -> Call:
        call = silu.build(*arguments, **sizes)
        return replace(call, checks=[replace(call.checks[0], expected=lambda: call.checks[0].expected() + 1)])

    (row,) = runner.rows(device, [replace(silu, build=build)], dtypes=["float32"], shapes=["64"],
                         options=runner.Options(time=False))
    assert not row["correct"]
    assert row["errors"][0]["error"] > 0.1


def test_rows_after_the_time_limit_say_so(device: EmulatedDevice) -> None:
    found = list(runner.rows(device, runner.select(["rope"]), options=runner.Options(limit=-1)))
    assert len(found) == 5
    assert all("time limit" in row["skipped"] for row in found)


def test_a_function_that_the_library_lacks_is_said(device: EmulatedDevice) -> None:
    """A build of some kernel families is one such library."""
    (silu,) = runner.select(["silu_forward"])
    (row,) = runner.rows(device, [replace(silu, function="nowhere_forward")], dtypes=["float32"])
    assert "the library has no such function" in row["skipped"]


def test_what_a_device_refuses_is_said(device: EmulatedDevice) -> None:
    (silu,) = runner.select(["silu_forward"])

    def build(*_: Any, **__: int) -> Call:
        raise UnsupportedError("silu: not on this device")

    (row,) = runner.rows(device, [replace(silu, build=build)], dtypes=["float32"])
    assert row["skipped"] == "silu: not on this device"


# ---- ceilings ----------------------------------------------------------------------------------------------


# capability, multiprocessors, clock, memory clock (kHz), bus: what the parts' drivers report
PARTS = {"T4": (75, 40, 1590000, 5001000, 256), "A100": (80, 108, 1410000, 1593000, 5120),
         "L4": (89, 58, 2040000, 6251000, 192), "H100": (90, 132, 1830000, 2619000, 5120),
         "GeForce RTX 3090": (86, 82, 1695000, 9751000, 384),
         "GeForce RTX 4090": (89, 128, 2520000, 10501000, 384)}


@pytest.mark.parametrize("part", PARTS)
def test_ceilings_agree_with_the_data_sheets(device: EmulatedDevice, part: str) -> None:
    names = ("capability", "multiprocessors", "clock_khz", "memory_clock_khz", "memory_bus_bits")
    info = replace(device.info, name=f"NVIDIA {part}", **dict(zip(names, PARTS[part], strict=True)))
    ceiling, sheet = peaks.ceiling_of(info), roofline.GPUS[part.removeprefix("GeForce ")]
    assert ceiling.bandwidth == pytest.approx(sheet.bandwidth, rel=0.02)
    assert ceiling.peaks.keys() <= sheet.peaks.keys()
    assert ("tensor_bf16" in ceiling.peaks) == (part != "T4")
    for kind, rate in ceiling.peaks.items():
        assert rate == pytest.approx(sheet.peaks[kind], rel=0.08), kind        # H100: two clocks in one sheet


def test_geforce_parts_multiply_halves_at_half_the_rate(device: EmulatedDevice) -> None:
    """Turing architecture whitepaper, table 1: 56.9 and 113.8 (TITAN-class parts: all of it)"""
    part = replace(device.info, capability=75, multiprocessors=68, clock_khz=1635000)
    rates = [peaks.ceiling_of(replace(part, name=f"NVIDIA {name}")).peaks["tensor_f16"]
             for name in ("GeForce RTX 2080 Ti", "TITAN RTX")]
    assert rates == pytest.approx([56.9e12, 113.8e12], rel=0.001)


def test_the_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    ceiling = peaks.Ceiling(1e9, {"f32": 2e9}, ())
    assert ceiling.seconds(1000, 0, "f32") == (1e-6, "memory")
    assert ceiling.seconds(1000, 4000, "f32") == (2e-6, "f32")
    assert ceiling.seconds(0, 0, "f32") is None
    assert peaks.Ceiling(None, {}, ()).seconds(1000, 4000, "f32") is None


def test_an_unknown_part_has_no_peak(device: EmulatedDevice) -> None:
    ceiling = peaks.ceiling_of(replace(device.info, capability=999, memory_clock_khz=0))
    assert (ceiling.bandwidth, ceiling.peaks) == (None, {})
    assert any("sm_999" in text for text in ceiling.assumed)


# ---- other libraries ---------------------------------------------------------------------------------------


def at(pointer: int, count: int, kind: int) -> np.ndarray:
    """Memory of the emulated device, which is the host's; kind is a cudaDataType."""
    dtype = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}[kind]
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype)


class Cublas:
    """cublasGemmEx by NumPy: column-major, as its manual says."""

    streams: list[int]

    def __init__(self) -> None:
        self.streams = []

    def cublasCreate_v2(self, handle: Any) -> int:
        handle._obj.value = 7
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.streams.append(stream.value)
        return 0

    def cublasGemmEx(self, handle: Any, trans_a: Any, trans_b: Any, *arguments: Any) -> int:
        m, n, k = (x.value for x in arguments[:3])
        alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, _, _ = arguments[3:]
        assert (handle.value, alpha._obj.value, beta._obj.value) == (7, 1.0, 0.0)

        def matrix(pointer: Any, kind: Any, leading: Any, rows: int, cols: int) -> np.ndarray:
            columns = at(pointer.value, leading.value * cols, kind.value).reshape(cols, leading.value)
            return columns[:, :rows].T

        x = matrix(a, a_type, lda, *((k, m) if trans_a.value else (m, k))).astype(np.float64)
        y = matrix(b, b_type, ldb, *((n, k) if trans_b.value else (k, n))).astype(np.float64)
        matrix(c, c_type, ldc, m, n)[...] = (x.T if trans_a.value else x) @ (y.T if trans_b.value else y)
        return 0


@pytest.mark.parametrize("variant", ["nt", "nn", "tn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cublas_is_called_for_the_same_product(device: EmulatedDevice, variant: str, dtype: str) -> None:
    call, library = call_of(device, f"gemm_forward:{variant}", dtype, m=24, n=16, k=40), Cublas()
    found = Baselines(device, cublas=library, cupy=object()).find(call)
    assert found is not None
    name, run = found
    assert not runner.verdict(call)["correct"]
    device.clear()
    run()
    assert name == "cuBLAS"
    assert library.streams == [device.stream]
    assert runner.verdict(call)["correct"]
    device.clear()                                           # the checker did not see NumPy write


class Cupy:
    """As much of CuPy as is used, by NumPy."""

    add, multiply, sum, cumsum = np.add, np.multiply, np.sum, np.cumsum
    argsort, copyto = np.argsort, np.copyto

    class cuda:
        class ExternalStream:
            def __init__(self, _: int) -> None: ...
            def __enter__(self) -> None: ...
            def __exit__(self, *_: Any) -> None: ...

    @staticmethod
    def asarray(x: DeviceArray) -> np.ndarray:
        memory = (ctypes.c_char * x.nbytes).from_address(x.pointer)
        return np.frombuffer(memory, x.dtype).reshape(x.shape)


@pytest.mark.parametrize("name", ["add_forward", "mul_forward", "array_reduce:sum", "array_reduce:sum_rows",
                                  "array_cumulative_sum", "array_argsort"])
def test_cupy_does_the_same(device: EmulatedDevice, name: str) -> None:
    call = call_of(device, name)
    found = Baselines(device, cublas=object(), cupy=Cupy).find(call)
    assert found is not None
    found[1]()
    assert found[0] == "CuPy"
    assert runner.verdict(call)["correct"]
    device.clear()


def test_cupy_is_not_asked_for_bfloat16_nor_for_what_it_does_not_do(device: EmulatedDevice) -> None:
    baselines = Baselines(device, cublas=object(), cupy=Cupy)
    assert baselines.find(call_of(device, "add_forward", "bfloat16")) is None
    assert baselines.find(call_of(device, "rms_norm_forward")) is None


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda: None, "differs from the formula"), (lambda: 1 / 0, "ZeroDivisionError")])
def test_a_vendor_s_failure_is_said_beside_our_time(device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch,
                                                    spoil: Callable[[], Any], words: str) -> None:
    found = runner.Runner(device, runner.Options(time=True, runs=2, flush_bytes=4096))
    call = call_of(device, "add_forward", n=64)
    monkeypatch.setattr(Baselines, "find", lambda *_: ("CuPy", spoil))
    (task,) = runner.tasks(runner.select(["add_forward"]), small=True, dtypes=["float32"])
    row = found.timed(task, call)
    device.clear()
    assert words in row["baseline_failed"]
    assert row["microseconds"] > 0
    assert "of_baseline" not in row


# ---- selection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "names"), [
    (["gemm_forward:nt"], ["gemm_forward:nt"]),
    (["rope"], ["rope_forward", "rope_frequencies", "rope_table"]),
    (["nn_silu_forward"], ["silu_forward"]), (["silu", "silu_forward"], ["silu_backward", "silu_forward"]),
    (["attention_decode"], ["attention_decode", "attention_decode:paged"]), ([], sorted(BENCHMARKS)),
])
def test_selection(words: list[str], names: list[str]) -> None:
    assert sorted(b.name for b in runner.select(words)) == names


@pytest.mark.parametrize(("given", "sizes"), [
    ("3x5", {"rows": 3, "cols": 5}), ("cols=5", {"rows": 64, "cols": 5}), ("cols=5,rows=3",
                                                                         {"rows": 3, "cols": 5})])
def test_shapes(given: str, sizes: dict[str, int]) -> None:
    benchmark = BENCHMARKS["rms_norm_forward"]
    assert runner.sizes_of(benchmark, given, benchmark.small) == sizes


@pytest.mark.parametrize("given", ["3", "3x4x5", "3x0", "3x-1", "3xa", "width=5", "cols=", "cols"])
def test_wrong_shapes(given: str) -> None:
    benchmark = BENCHMARKS["rms_norm_forward"]
    with pytest.raises(runner.SelectionError, match="rows, cols"):
        runner.sizes_of(benchmark, given, benchmark.small)
