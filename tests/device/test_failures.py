"""Memory that runs out, and launches that fail, anywhere in a training step: an exception, nothing leaked,
nothing changed, and the next step is right."""

import gc
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceError, DeviceMemoryError
from cuda.nn.graph import Graph
from nn import MoETransformer, MoETransformerConfig
from nn.train.gpu_trainer import GpuTrainer
from tests.device.conftest import opened

SMALL = MoETransformerConfig(vocab_size=40, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                             intermediate_size=16, num_experts=3, top_k=2, max_seq_len=8)
BATCH = np.random.default_rng(0).integers(0, 40, (2, 1, 5))


@pytest.fixture
def fast() -> EmulatedDevice:
    """Nothing is checked, and memory is kept for reuse as on a GPU; what others left in it is given back."""
    device = opened("sm_80", "fast")
    device.configure()
    gc.collect()
    device.pool.trim()
    return device


class Failing:
    """From the call of number `first` on, there is no more memory; counts the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: EmulatedDevice) -> None:
        self.calls, self.first = 0, 0
        self.allocate = device.library.nn_memory_allocate
        monkeypatch.setattr(device.library, "nn_memory_allocate", self)

    def __call__(self, pointer: Any, size: int) -> None:
        self.calls += 1
        if self.first and self.calls >= self.first:
            raise DeviceMemoryError("memory_allocate: injected")
        self.allocate(pointer, size)

    def start(self, first: int) -> None:
        self.calls, self.first = 0, first


def trained(device: EmulatedDevice) -> GpuTrainer:
    """After its first step, which makes gradients and moments that stay"""
    trainer = GpuTrainer(MoETransformer(SMALL), device=device, graph=False)
    trainer.step(*BATCH)
    return trainer


def bits(trainer: GpuTrainer) -> list[bytes]:
    return [array.tobytes() for array in trainer.model.state_dict().values()]


def used(device: EmulatedDevice) -> int:
    gc.collect()
    return device.pool.used_bytes


def step_fails(trainer: GpuTrainer, memory: Failing, first: int) -> bool:
    trainer.device.pool.trim()
    memory.start(first)
    try:
        with pytest.raises(DeviceMemoryError, match="bytes of device memory cannot be had"):
            trainer.step(*BATCH)
    except pytest.fail.Exception:                # it did not
        return False
    finally:
        memory.start(0)
    return True


def test_a_step_survives_that_memory_runs_out(fast: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, right = Failing(monkeypatch, fast), trained(fast)
    right.step(*BATCH)
    expected, loss = bits(right), right.metrics["loss"]
    del right
    used(fast)
    trainer = trained(fast)
    before, start, failed = used(fast), bits(trainer), 0
    while step_fails(trainer, memory, failed + 1):
        failed += 1
        assert used(fast) <= before
        if failed % 10 == 0:
            assert bits(trainer) == start
    assert failed > 30
    assert trainer.metrics["loss"] == loss
    assert bits(trainer) == expected


def test_a_step_survives_that_any_launch_fails(fast: EmulatedDevice) -> None:
    right = trained(fast)
    right.step(*BATCH)
    expected, trainer = bits(right), trained(fast)
    before, start, number = used(fast), bits(trainer), 1
    while launch_fails(trainer, number):
        assert used(fast) <= before, number
        assert bits(trainer) == start, number
        number += 1
    assert number > 60
    assert bits(trainer) == expected             # the step in which none failed: the failed ones do not count


def failing(_: Graph) -> None:
    raise DeviceError("graph_launch: injected")


def test_a_recording_in_which_a_launch_fails_leaves_nothing(fast: EmulatedDevice,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of a graph's pool either; and the next recording is right."""
    right = trained(fast)
    right.step(*BATCH), right.step(*BATCH)
    expected, trainer = bits(right), GpuTrainer(MoETransformer(SMALL), device=fast)
    trainer.step(*BATCH)
    start, held, number = bits(trainer), list[int](), 1
    while launch_fails(trainer, number):
        assert bits(trainer) == start, number
        gc.collect()
        counts = fast.counts()
        held.append(counts.allocations - counts.frees)
        number += 3
    assert number > 60
    assert held[-1] <= held[0]
    with monkeypatch.context() as patched:       # a replay that fails, and one that does not
        patched.setattr(Graph, "replay", failing)
        with pytest.raises(DeviceError, match="injected"):
            trainer.step(*BATCH)
    trainer.step(*BATCH)
    assert bits(trainer) == expected


def launch_fails(trainer: GpuTrainer, number: int) -> bool:
    """Whether a step has a launch of that number: it fails."""
    trainer.device.configure(fail_launch=number)
    try:
        with pytest.raises(DeviceError, match="cudaError"):
            trainer.step(*BATCH)
    except pytest.fail.Exception:                # none did
        return False
    finally:
        trainer.device.configure()
    return True
