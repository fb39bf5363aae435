"""Schedules: a correct kernel gives one result under all of them; that of a wrong one depends on them."""

from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import Module

SEEDS = range(4)
SCHEDULES = [("forward", 0), ("reverse", 0), *(("random", seed) for seed in SEEDS)]
SOURCE = """\
__global__ void order(int* out, int* next) {            // in which order threads get here
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

__global__ void scan(const int* in, int* out) {         // barriers and shuffles
    __shared__ int sums[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int value = in[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, value, step);
        if (lane >= step) value += other;
    }
    if (lane == 31) sums[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value += sums[w];
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

__device__ int ticket;

__global__ void last_block(const int* in, int* partial, int* out) {      // the last block to finish adds up
    __shared__ bool last;
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < 32; ++i) sum += in[blockIdx.x * 32 + i];
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(&ticket, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    int sum = 0;
    for (int i = 0; i < gridDim.x; ++i) sum += ((volatile int*)partial)[i];
    *out = sum;
    ticket = 0;
}

__global__ void turns(int* out, volatile int* turn) {   // each thread waits for its turn, last one first
    int mine = blockDim.x - 1 - threadIdx.x;
    while (*turn != mine) {}
    out[mine] = threadIdx.x;
    __threadfence();
    *turn = mine + 1;
}

__global__ void lock(int* counter, int* mutex) {        // a spin lock, taken by all lanes of a warp
    bool done = false;
    while (!done) {
        if (atomicCAS(mutex, 0, 1) == 0) {
            __threadfence();
            int value = *(volatile int*)counter;
            *(volatile int*)counter = value + 1;
            __threadfence();
            atomicExch(mutex, 0);
            done = true;
        }
    }
}

__global__ void lost(volatile int* counter) {           // wrong: not atomic
    for (int i = 0; i < 50; ++i) *counter = *counter + 1;
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schedules") / "schedules.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module", params=["fast", "check"])
def module(request: pytest.FixtureRequest, source: Path) -> Module:
    return emulator.compile(source, arch="sm_80", mode=request.param)


def _order(module: Module, schedule: str, seed: int) -> list[int]:
    out = np.zeros(8 * 64, np.int32)
    module.launch("order", grid=8, block=64, args=[out, np.zeros(1, np.int32)], schedule=schedule, seed=seed)
    return np.argsort(out).tolist()


def test_order_of_threads(module: Module) -> None:
    assert _order(module, "forward", 0) == list(range(512))
    assert _order(module, "reverse", 0) == list(range(511, -1, -1))
    drawn = {tuple(_order(module, "random", seed)) for seed in SEEDS}
    assert len(drawn) == len(SEEDS)
    for order in drawn:
        assert sorted(order) == list(range(512))
        assert len({thread // 64 for thread in order[:64]}) == 1  # blocks one after the other,
        assert [thread // 64 for thread in order[::64]] != list(range(8))  # in an order of their own


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_correct_kernels_do_not_depend_on_it(module: Module, schedule: str, seed: int) -> None:
    values = np.random.default_rng(1).integers(0, 100, (16, 32)).astype(np.int32)
    chosen = {"schedule": schedule, "seed": seed}

    out = np.zeros((4, 128), np.int32)
    module.launch("scan", grid=4, block=128, args=[values, out], **chosen)
    np.testing.assert_array_equal(out, values.reshape(4, 128).cumsum(1))

    total = np.zeros(1, np.int32)
    module.launch("last_block", grid=16, block=32, args=[values, np.zeros(16, np.int32), total], **chosen)
    assert total[0] == values.sum()

    out = np.full(64, -1, np.int32)
    module.launch("turns", block=64, args=[out, np.zeros(1, np.int32)], **chosen)
    np.testing.assert_array_equal(out, np.arange(63, -1, -1))

    counter = np.zeros(1, np.int32)
    module.launch("lock", grid=2, block=64, args=[counter, np.zeros(1, np.int32)], **chosen)
    assert counter[0] == 128
    assert not module.reports


def test_random_is_reproducible(module: Module) -> None:
    first, again = (_run_after_clear(module) for _ in range(2))
    assert first == again


def _run_after_clear(module: Module) -> list[int]:
    return _order(module, "random", 11)


def test_random_schedules_interleave(source: Path) -> None:
    """Threads that never wait for each other are switched within their loops, so that a lost update shows."""
    module = emulator.compile(source, arch="sm_80", mode="fast")

    def count(**chosen: object) -> int:
        counter = np.zeros(1, np.int32)
        module.launch("lost", block=32, args=[counter], **chosen)
        return int(counter[0])

    assert any(count(schedule="random", seed=seed) < 32 * 50 for seed in SEEDS)


def test_os_threads_share_the_blocks(source: Path) -> None:
    module = emulator.compile(source, arch="sm_80", mode="fast")
    values = np.random.default_rng(2).integers(0, 100, (200, 128)).astype(np.int32)
    for threads in (1, 2, 3):
        out = np.zeros_like(values)
        module.launch("scan", grid=200, block=128, args=[values, out], threads=threads)
        np.testing.assert_array_equal(out, values.cumsum(1))
        total = np.zeros(1, np.int32)
        module.launch(
            "last_block", grid=800, block=32, args=[values, np.zeros(800, np.int32), total], threads=threads
        )
        assert total[0] == values.sum()
        counter = np.zeros(1, np.int32)
        module.launch("lock", grid=16, block=64, args=[counter, np.zeros(1, np.int32)], threads=threads)
        assert counter[0] == 16 * 64
