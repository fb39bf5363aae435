"""The runtime around kernels: how they end, what they print, what they leave on the host."""

import ctypes
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import EmulatorError, LaunchError, Module, native

SOURCE = """\
#include <assert.h>
#include <stdio.h>

__global__ void add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

__global__ void shape(int* out) {
    int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int threads = blockDim.x * blockDim.y * blockDim.z;
    out[block * threads + i] = blockIdx.z * 10000 + threadIdx.z * 100 + threadIdx.x;
}

__global__ void deadlock(int* out) {
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1, 64;");       // LINE waits
    else if (threadIdx.x < 40)
        return;
    else
        __syncthreads();                       // LINE others
    out[threadIdx.x] = 1;
}

__global__ void endless(int* out) {
    while (*out != 1) out[1] += 1;              // LINE loop
}

__global__ void spins(volatile int* flag) {
    while (*flag == 0) {}                       // LINE spin
}

__global__ void null(int* out, int* p) {
    if (threadIdx.x == 5) p[threadIdx.x] = 1;   // LINE null
    else out[threadIdx.x] = 1;
}

__device__ __noinline__ int recurse(int n) {
    volatile int local[256];
    local[n & 255] = n;
    return n < 0 ? 0 : recurse(n + 1) + local[(n + 1) & 255];
}

__global__ void overflow(int* out) { *out = recurse(*out); }

__global__ void deep(int* out, int n) {
    int local[4000];
    for (int i = 0; i < 4000; ++i) local[i] = i * n;
    out[threadIdx.x] = local[(threadIdx.x * n) % 4000];
}

__global__ void fails(int n) {
    assert(threadIdx.x < n);                    // LINE assert
}

__global__ void traps(int* out) {
    if (threadIdx.x == 3) __trap();             // LINE trap
    out[threadIdx.x] = 1;
}

__device__ __noinline__ void leave(int* out) {
    out[threadIdx.x] = 1;
    if (threadIdx.x % 2) asm volatile("exit;");
}

__global__ void leaves(int* out) {
    leave(out);
    __syncthreads();
    out[threadIdx.x] = 2;
}

__global__ void prints(int* out) {
    if (threadIdx.x) return;
    printf("block %d\\n", blockIdx.x);
    if (blockIdx.x) return;
    out[0] = printf("%d|%5d|%-5d|%+d|%05d|%u|%x|%#X|%o|%c|%%\\n",
                    -7, 42, 42, 42, 42, 4000000000u, 255, 255, 8, 'A');
    out[1] = printf("%f|%.3f|%e|%g|%G|%10.2f|%.0f\\n", 1.5, 2.0 / 3, 12345.678, 1e-10, 1e20, 3.14159f, 2.5);
    out[2] = printf("%lld|%llu|%lx|%hd|%hhd|%zu|%*d|%.*f\\n", -5000000000ll, 18446744073709551615ull,
                    0x123456789abcl, (short)70000, (char)300, (size_t)77, 6, 12, 2, 1.23456);
    out[3] = printf("%s|%10s|%-6s|%.2s|%s\\n", "text", "right", "left", "cut", (const char*)0);
    out[4] = printf("no arguments\\n");
    out[5] = printf("%a|%p\\n", 1.0, (void*)0x1234);
}

__global__ void allocates(int** kept, int* sum) {
    int* mine = (int*)malloc(16 * sizeof(int));
    for (int i = 0; i < 16; ++i) mine[i] = threadIdx.x * i;
    kept[threadIdx.x] = mine;
    __syncthreads();
    int total = 0;
    int* other = kept[(threadIdx.x + 1) % blockDim.x];
    for (int i = 0; i < 16; ++i) total += other[i];
    sum[threadIdx.x] = total;
    __syncthreads();
    free(mine);
    if (malloc(size_t(1) << 30)) sum[threadIdx.x] = -1;
}

__global__ void frees_twice() {
    void* p = malloc(64);
    free(p);
    free(p);                                    // LINE free
}

__global__ void divides(int* out) { out[threadIdx.x] = 100 / out[threadIdx.x]; }

__global__ void rounds(float* x) { x[1] = x[0] + 1e-9f; x[2] = x[3] * 0.5f; }
"""
LINES = {
    text.split("LINE ")[1]: number for number, text in enumerate(SOURCE.splitlines(), 1) if "LINE " in text
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "runtime.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def checked(source: Path) -> Module:
    return emulator.compile(source, arch="sm_80", mode="check")


@pytest.fixture(scope="module")
def fast(source: Path) -> Module:
    return emulator.compile(source, arch="sm_80", mode="fast")


def _reports(module: Module, kernel: str) -> list[emulator.Report]:
    return [report for report in module.reports if report.kernel == kernel]


# ---- running -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "check", "count"])
def test_add(source: Path, mode: str) -> None:
    module = emulator.compile(source, arch="sm_80", mode=mode)
    a = np.arange(1000, dtype=np.float32)
    c = np.zeros_like(a)
    module.launch("add", grid=8, block=128, args=[a, 2 * a, c, np.int32(1000)])
    np.testing.assert_array_equal(c, 3 * a)
    assert not module.reports


def test_three_dimensions(fast: Module) -> None:
    grid, block = (2, 3, 4), (5, 3, 2)
    out = np.zeros((4, 3, 2, 2, 3, 5), np.int32)  # block z y x, thread z y x
    fast.launch("shape", grid=grid, block=block, args=[out])
    bz, _, _, tz, _, tx = np.indices(out.shape)
    np.testing.assert_array_equal(out, bz * 10000 + tz * 100 + tx)


def test_exit_within_a_function(checked: Module) -> None:
    out = np.zeros(64, np.int32)
    checked.launch("leaves", block=64, args=[out])
    np.testing.assert_array_equal(out, np.where(np.arange(64) % 2, 1, 2))


def test_large_local_arrays(fast: Module) -> None:
    out = np.zeros(256, np.int32)
    fast.launch("deep", block=256, args=[out, np.int32(7)])
    np.testing.assert_array_equal(out, np.arange(256) * 49)


def test_launches_from_several_host_threads(source: Path) -> None:
    module = emulator.compile(source, arch="sm_80", mode="fast")
    results = [np.zeros(1000, np.float32) for _ in range(4)]

    def work(c: np.ndarray) -> None:
        a = np.arange(1000, dtype=np.float32)
        for _ in range(20):
            module.launch("add", grid=8, block=128, args=[a, a, c, np.int32(1000)])

    workers = [threading.Thread(target=work, args=(c,)) for c in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for c in results:
        np.testing.assert_array_equal(c, 2 * np.arange(1000))


def test_host_rounding_mode_does_not_matter(fast: Module) -> None:
    libm = ctypes.CDLL("libm.so.6")
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[__import__("platform").machine()]
    x = np.array([1.0, 0, 0, 1e-38], np.float32)
    assert libm.fesetround(upward) == 0
    try:
        fast.launch("rounds", args=[x])
        assert libm.fegetround() == upward
    finally:
        libm.fesetround(0)
    assert x[1] == 1.0
    assert x[2] == np.float32(0.5) * np.float32(1e-38) != 0


# ---- kernels that cannot go on -----------------------------------------------------------------------------


def test_deadlock(checked: Module) -> None:
    checked.launch("deadlock", block=96, args=[np.zeros(96, np.int32)])
    (report,) = _reports(checked, "deadlock")
    assert report.kind == "deadlock"
    assert {report.line, report.other_line} == {LINES["waits"], LINES["others"]}
    assert "32 wait at" in report.message
    assert "56 wait at" in report.message
    assert "8 have exited" in report.message
    assert "barrier 1 has seen 32 of 64 threads" in report.message


def test_deadlock_in_fast_mode(fast: Module) -> None:
    with pytest.raises(LaunchError, match="no thread can go on"):
        fast.launch("deadlock", block=96, args=[np.zeros(96, np.int32)])


@pytest.mark.parametrize(("kernel", "line"), [("endless", "loop"), ("spins", "spin")])
def test_step_budget(checked: Module, kernel: str, line: str) -> None:
    checked.launch(kernel, grid=2, block=64, args=[np.zeros(2, np.int32)], steps=100_000)
    found = [report for report in _reports(checked, kernel) if report.kind == "step_budget"]
    assert found
    assert found[0].line == LINES[line]


def test_endless_loop_ends_by_itself(fast: Module) -> None:
    with pytest.raises(LaunchError, match="without the kernel coming to an end"):
        fast.launch("endless", block=32, args=[np.zeros(2, np.int32)])


def test_gigantic_launch_is_refused(checked: Module) -> None:
    checked.launch("shape", grid=2_000_000_000, block=1024, args=[np.zeros(1, np.int32)])
    assert checked.reports[-1].kind == "step_budget"
    assert "steps=0" in checked.reports[-1].fix


def test_null_pointer(fast: Module, checked: Module) -> None:
    out, null = np.zeros(32, np.int32), np.uint64(0)
    with pytest.raises(LaunchError, match="null pointer"):
        fast.launch("null", block=32, args=[out, null])
    report = fast.reports[-1]
    assert (report.kind, report.thread) == ("out_of_bounds", (5, 0, 0))
    checked.launch("null", block=32, args=[out, null])
    assert _reports(checked, "null")[0].line == LINES["null"]


def test_wild_pointers(fast: Module) -> None:
    """Addresses that are not mapped, or cannot exist; Python survives, and the next launch works."""
    for address in (0x10, 0x123456789000, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_F000):
        with pytest.raises(LaunchError, match="not accessible"):
            fast.launch("null", block=32, args=[np.zeros(32, np.int32), np.uint64(address)])
    out = np.zeros(32, np.int32)
    fast.launch("leaves", block=32, args=[out])
    assert out.all()


@pytest.mark.parametrize("mode", ["fast", "checked"])
def test_stack_overflow(request: pytest.FixtureRequest, mode: str) -> None:
    module = request.getfixturevalue(mode)
    try:
        module.launch("overflow", block=32, args=[np.zeros(1, np.int32)])
    except LaunchError:
        assert mode == "fast"
    report = next(report for report in module.reports if report.kind == "stack_overflow")
    assert "stack=BYTES" in report.fix


def test_assert(checked: Module, capfd: pytest.CaptureFixture[str]) -> None:
    checked.launch("fails", block=32, args=[np.int32(20)])
    (report,) = _reports(checked, "fails")
    assert (report.kind, report.line, report.thread) == ("assert", LINES["assert"], (20, 0, 0))
    assert "threadIdx.x < n" in report.message
    assert f":{LINES['assert']}: " in capfd.readouterr().out


def test_trap(checked: Module) -> None:
    checked.launch("traps", block=32, args=[np.zeros(32, np.int32)])
    (report,) = _reports(checked, "traps")
    assert (report.kind, report.line, report.thread) == ("trap", LINES["trap"], (3, 0, 0))


def test_division_by_zero_is_no_fault(fast: Module) -> None:
    out = np.array([0, 1, 7, -3], np.int32)
    fast.launch("divides", block=4, args=[out])
    np.testing.assert_array_equal(out[1:], [100, 14, -33])


# ---- printf and malloc -------------------------------------------------------------------------------------


def test_printf(fast: Module, capfd: pytest.CaptureFixture[str]) -> None:
    used = np.zeros(6, np.int32)
    fast.launch("prints", grid=2, block=32, args=[used])
    assert capfd.readouterr().out.splitlines() == [
        "block 0",
        "-7|   42|42   |+42|00042|4000000000|ff|0XFF|10|A|%",
        "1.500000|0.667|1.234568e+04|1e-10|1E+20|      3.14|2",
        "-5000000000|18446744073709551615|123456789abc|4464|44|77|    12|1.23",
        "text|     right|left  |cu|(null)",
        "no arguments",
        "0x1p+0|0x1234",
        "block 1",
    ]
    np.testing.assert_array_equal(used, [10, 7, 10, 5, 0, 2])


def test_malloc_in_a_kernel(checked: Module) -> None:
    pointers, sums = np.zeros(32, np.uint64), np.zeros(32, np.int32)
    checked.launch("allocates", block=32, args=[pointers, sums])
    np.testing.assert_array_equal(sums, 120 * np.roll(np.arange(32), -1))
    assert not _reports(checked, "allocates")


def test_double_free(checked: Module) -> None:
    checked.launch("frees_twice", block=1)
    assert [report.line for report in _reports(checked, "frees_twice")] == [LINES["free"]]


# ---- the host ----------------------------------------------------------------------------------------------


def test_signal_handlers_are_restored(source: Path) -> None:
    """After a launch a fault of the host program is its own again: here, of Python's faulthandler."""
    script = textwrap.dedent(f"""
        import ctypes, faulthandler, numpy as np
        from cuda.nn import emulator
        faulthandler.enable()
        module = emulator.compile({str(source)!r}, arch="sm_80", mode="fast")
        try:
            module.launch("null", block=32, args=[np.zeros(32, np.int32), np.uint64(0)])
        except emulator.LaunchError:
            print("reported", flush=True)
        ctypes.string_at(8)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "reported\n"
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr
    assert "Current thread" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("speed=1", "'speed' is unknown; known are arch schedule"),
        ("schedule=sideways", "expected forward, reverse or random"),
        ("threads=0", "expected 1 to 256"),
        ("check", "expected key=value"),
    ],
)
def test_options_are_checked(options: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        native.library().configure(options)
