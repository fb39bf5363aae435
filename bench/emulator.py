"""How fast the emulator runs: the figures that the project promises, measured here.

    python bench/emulator.py                 # all of it, about a minute
    python bench/emulator.py --threads 2     # fast mode with the blocks of a launch on two OS threads

Medians of several runs after one that warms up; compilation is not in them.  Every result is compared with
NumPy's."""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cuda.nn import emulator  # noqa: E402

GEMM = ROOT / "tests" / "emulator" / "programs" / "gemm.cu"
GEMM_BF16 = ROOT / "bench" / "gemm_bf16.cu"
ADD = """__global__ void add(float* out, const float* a, const float* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9, help="runs of each case (default 9)")
    parser.add_argument(
        "--threads", type=int, default=1, help="OS threads that share the blocks in fast mode (default 1)"
    )
    given = parser.parse_args()
    print(f"command   python bench/emulator.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"machine   {processor()}, {len(os.sched_getaffinity(0))} cores usable; OS threads in fast mode: "
        f"{given.threads}"
    )
    print(f"{'case':<44}{'median':>12}{'fastest':>12}{'limit':>12}")
    rows = (
        ("GEMM 128x128x128 fp32, 16x16 tiles, fast", gemm("fast", given.threads), 20e-3),
        ("GEMM 128x128x128 fp32, 16x16 tiles, checked", gemm("check", 1), 200e-3),
        ("GEMM 512x512x512 bf16, mma.sync, fast", gemm_bf16("fast", given.threads), 200e-3),
        ("GEMM 512x512x512 bf16, mma.sync, checked", gemm_bf16("check", 1), None),
        ("launch of 32 threads, 3 arrays, fast", launches("fast"), 60e-6),
        ("launch of 32 threads, 3 arrays, checked", launches("check"), None),
    )
    missed = [name for name, run, limit in rows if not measured(name, run, limit, given.repeat)]
    for name in missed:
        print(f"over its limit: {name}")
    return 1 if missed else 0


def measured(name: str, run: Callable[[], float], limit: float | None, repeat: int) -> bool:
    """Print one case; whether it kept its limit."""
    run()
    seconds = [run() for _ in range(repeat)]
    median = statistics.median(seconds)
    print(
        f"{name:<44}{shown(median):>12}{shown(min(seconds)):>12}{shown(limit) if limit else '-':>12}",
        flush=True,
    )
    return limit is None or median < limit


def gemm(mode: str, threads: int) -> Callable[[], float]:
    """Buffers stay on the device: what is timed is the kernel."""
    size = 128
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    module = emulator.compile(GEMM, mode=mode)
    out, *inputs = module.empty((size, size)), module.array(a), module.array(b)
    arguments = [out, *inputs, *[np.int32(size)] * 3]

    def run() -> float:
        start = time.perf_counter()
        module.launch("gemm", (8, 8), (16, 16), arguments, threads=threads)
        seconds = time.perf_counter() - start
        np.testing.assert_allclose(out.numpy(), a @ b, rtol=1e-4, atol=1e-4)
        assert module.reports == []
        return seconds

    return run


def gemm_bf16(mode: str, threads: int) -> Callable[[], float]:
    size = 512
    a, b = (
        np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32).astype(ml_dtypes.bfloat16)
    )
    module = emulator.compile(GEMM_BF16, mode=mode)
    out = module.empty((size, size))
    arguments = [out, module.array(a), module.array(b), np.int32(size), np.int32(size)]
    expected = a.astype(np.float32) @ b.astype(np.float32)

    def run() -> float:
        start = time.perf_counter()
        module.launch("gemm_bf16", (8, 8), 128, arguments, threads=threads)
        seconds = time.perf_counter() - start
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-3, atol=1e-3)
        assert module.reports == []
        return seconds

    return run


def launches(mode: str, count: int = 1000) -> Callable[[], float]:
    """NumPy arrays, copied to the device and back with every launch."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "add.cu"
        source.write_text(ADD)
        module = emulator.compile(source, mode=mode)
    a, b = np.random.default_rng(0).standard_normal((2, 32), dtype=np.float32)
    out = np.zeros(32, np.float32)
    arguments = [out, a, b, np.int32(32)]

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            module.launch("add", 1, 32, arguments)
        seconds = (time.perf_counter() - start) / count
        np.testing.assert_array_equal(out, a + b)
        return seconds

    return run


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
