"""cuda-nn bench kernels: tables, JSON, what is said of wrong input and of wrong results."""

import json
from typing import Any

import numpy as np
import pytest

from cuda.nn import build
from cuda.nn.benchmarks import timing
from cuda.nn.benchmarks.case import Check
from cuda.nn.device import Device, _own_copy
from cuda.nn.device import device as find_device
from nn.backends import devices
from nn.cli import bench_kernels

SMALL = ("bench", "kernels", "--device", "emulated", "--kernel", "silu_forward", "--dtype", "float32",
         "--shape", "2048")
no_gpu = pytest.mark.skipif(devices.missing("cuda") is None, reason="there is a GPU")


def test_a_table_of_counts(cuda_nn) -> None:
    status, out, err = cuda_nn(*SMALL, "4096")
    assert (status, err) == (0, "")
    assert "counted, not timed" in out
    first, second = (line.split() for line in out.splitlines() if line.startswith("silu_forward"))
    assert first[:5] == ["silu_forward", "float32", "2048", "1.000", "1.000"]
    assert second[2] == "4096"
    assert out.splitlines()[-1] == "2 run, 0 wrong, 0 left out"
    assert not {"us", "GB/s", "TFLOP/s", "roofline"} & set(out.split())


def test_one_json_object_per_row(cuda_nn) -> None:
    status, out, err = cuda_nn(*SMALL, "n=4096", "--json", "--counts-only")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["shape"] for row in rows] == [{"n": 2048}, {"n": 4096}]
    assert all(row["correct"] and row["figures"] == "counted, not timed" for row in rows)
    assert all("registers" not in row["kernels"][0] for row in rows)


def test_check_only_runs_under_the_checker(cuda_nn) -> None:
    status, out, _ = cuda_nn(*SMALL, "--check-only")
    assert status == 0
    assert "silu_forward  float32  2048   correct" in out.splitlines()
    assert out.splitlines()[-1] == "1 run, 0 wrong, 0 left out"


def test_a_wrong_result_is_status_1(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Check, "error", lambda _: (0.5, 0.001))
    status, out, _ = cuda_nn(*SMALL, "--counts-only")
    assert status == 1
    assert "WRONG: y is off by 0.5, allowed 0.001" in out
    assert out.splitlines()[-1] == "1 run, 1 wrong, 0 left out"


def test_a_finding_is_status_1(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "_findings", lambda *_: {"findings": [{"message": "a race"}]})
    status, out, _ = cuda_nn(*SMALL, "--check-only")
    assert status == 1
    assert "FAULT: a race" in out


def test_auto_is_the_emulated_device_without_a_gpu(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "missing", lambda name: "no driver" if name == "cuda" else None)
    assert bench_kernels.device_name("auto") == "emulated"
    monkeypatch.setattr(devices, "missing", lambda name: None)
    assert bench_kernels.device_name("auto") == "cuda"


def test_the_list(cuda_nn) -> None:
    status, out, _ = cuda_nn("bench", "kernels", "--device", "emulated", "--kernel", "norm", "--list")
    assert status == 0
    assert out.split() == ["layer_norm_backward", "layer_norm_forward", "rms_norm_backward",
                           "rms_norm_forward", "rms_norm_residual_forward"]


@pytest.mark.parametrize(("words", "message"), [
    (["--kernel", "silu_forwad"], "'silu_forwad' has no benchmark. Did you mean silu_forward?"),
    (["--kernel", "zzz"], "--list"),
    (["--dtype", "fp8"], "dtype: 'fp8'; choose from float32, float16, bfloat16"),
    (["--kernel", "moe_plan", "--dtype", "float16"], "none of the chosen kernels is benchmarked in it"),
    (["--kernel", "silu_forward", "--shape", "3x4"], "shape: '3x4'; silu_forward has the axes n"),
    (["--kernel", "silu_forward", "--shape", "m=4"], "shape: m=4; silu_forward has the axes n"),
    (["--arch", "sm_42"], "sm_42"),
    (["--jsn"], "Did you mean --json?"),
])
def test_wrong_input(cuda_nn, words: list[str], message: str) -> None:
    status, _, err = cuda_nn("bench", "kernels", "--device", "emulated", *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@no_gpu
def test_no_gpu_is_said_with_a_way_out(cuda_nn) -> None:
    status, _, err = cuda_nn("bench", "kernels", "--device", "cuda")
    assert status == 2
    assert err.startswith("cuda-nn bench: error: device: cuda: ")
    assert err.endswith("; --device emulated counts without a GPU\n")


def test_the_other_bench_is_as_it_was(cuda_nn) -> None:
    status, out, _ = cuda_nn("bench", "--help")
    assert status == 0
    assert "--batch-size" in out
    assert "cuda-nn bench kernels" in out


# ---- what a GPU's rows look like ---------------------------------------------------------------------------

TIMED: dict[str, Any] = {
    "correct": True, "microseconds": 12.34, "low": 12.0, "high": 13.5, "runs": 50, "bytes_per_second": 1.5e12,
    "flops_per_second": 2.5e14, "call_flops": 10, "of_roofline": 0.81, "limit": "memory"}


@pytest.mark.parametrize(("more", "cells"), [
    ({}, ["12.3", "12.0-13.5", "1,500", "250.0", "81%", "memory", ""]),
    ({"call_flops": 0, "baseline": "CuPy", "of_baseline": 1.25},
     ["12.3", "12.0-13.5", "1,500", "", "81%", "memory", "125% of CuPy"]),
    ({"baseline_failed": "status 7"}, ["12.3", "12.0-13.5", "1,500", "250.0", "81%", "memory",
                                      "failed (status 7)"]),
    ({"skipped": "no bfloat16"}, ["left out: no bfloat16"]),
])
def test_a_timed_row(more: dict[str, Any], cells: list[str]) -> None:
    found = bench_kernels._cells(TIMED | more, emulated=False, columns=True)
    assert found == cells
    assert len(found) in (1, len(bench_kernels.TIMED))


def test_the_examples_in_the_help_are_understood() -> None:
    examples = (bench_kernels.__doc__ or "").partition("Examples:")[2].split("\n")
    words = [line.split()[3:] for line in examples if line.strip()]
    assert len(words) == 3
    assert bench_kernels.parser().parse_args(words[1]).kernel == ["rms_norm", "softmax"]
    assert bench_kernels.parser().parse_args(words[2]).json


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that is not an EmulatedDevice, on the emulator's CUDA runtime: it goes the way that a GPU
    goes.  What its rows hold are times of the emulator, which nobody is shown."""
    find_device("emulated", mode="fast").zeros((1,), np.float32)                 # sets the runtime's options
    found = Device("cuda", _own_copy(build.emulated_library()))
    monkeypatch.setattr(devices, "missing", lambda _: None)
    monkeypatch.setattr(bench_kernels, "_opened", lambda *_: found)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda _: 1e12)
    monkeypatch.setattr(timing, "LEAST", 3)
    monkeypatch.setattr(timing, "MOST", 3)
    monkeypatch.setattr(timing.Flush, "__init__", small_flush)
    return found


def small_flush(self: timing.Flush, device: Device, _: object = None) -> None:
    self.device, self.size, self._buffer = device, 4096, device.empty((1024,), np.float32)


@pytest.mark.usefixtures("stand_in")
def test_the_table_of_a_gpu(cuda_nn) -> None:
    words = ("--kernel", "silu_forward", "gemm_forward:nt", "--small", "--dtype", "float32")
    status, out, err = cuda_nn("bench", "kernels", *words)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "a copy on the device moves 1,000 GB/s" in out
    assert any("memory 2,039 GB/s" in line for line in lines)
    assert any("tensor_bf16 311" in line for line in lines)
    assert any(line.startswith("missing") and "CuPy" in line for line in lines)
    (silu,) = (line.split() for line in lines if line.startswith("silu_forward"))
    (gemm,) = (line.split() for line in lines if line.startswith("gemm_forward:nt"))
    assert silu[-1] == "memory"
    assert gemm[-1] in ("memory", "f32")
    assert len(gemm) == len(silu) + 1                        # TFLOP/s
    assert lines[-1] == "2 run, 0 wrong, 0 left out"


@pytest.mark.usefixtures("stand_in")
def test_rows_of_a_gpu_in_json(cuda_nn) -> None:
    words = ("--kernel", "silu_forward", "--small", "--json", "--limit", "60")
    status, out, _ = cuda_nn("bench", "kernels", *words)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["dtype"] for row in rows] == ["bfloat16", "float32", "float16"]        # one type first
    assert all(row["figures"].startswith("timed by events, L2 flushed") for row in rows)
    assert all(0 < row["low"] <= row["microseconds"] <= row["high"] and row["runs"] == 3 for row in rows)
