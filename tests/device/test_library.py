"""The library as a whole: without a driver, with a foreign version, from several threads, when calls fail."""

import gc
import subprocess
import sys
import threading
from ctypes import byref, c_void_p, sizeof
from pathlib import Path

import numpy as np
import pytest

from cuda.nn import build, errors
from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator import toolchain
from cuda.nn.library import ABI_VERSION, Library
from cuda.nn.prototypes.runtime import Counts

ROOT = Path(__file__).parents[2]

# Every call of runtime.h that needs a device, and one kernel, with arguments that are right.
WITHOUT_A_DEVICE = """
import sys
from ctypes import byref, c_float, c_int32, c_void_p, sizeof
from pathlib import Path
from cuda.nn import errors
from cuda.nn.library import Library, split
from cuda.nn.prototypes import prototypes
from cuda.nn.prototypes.runtime import Counts, DeviceInfo

library, any_pointer, made = Library(Path(sys.argv[1])), c_void_p(256), c_void_p()
count = c_int32(-1)
library.nn_device_count(byref(count))
assert count.value == 0, count
counts = Counts(size=sizeof(Counts))
library.nn_count(byref(counts))
calls = {
    "device_query": (byref(DeviceInfo(size=sizeof(DeviceInfo))), 0), "device_select": (0,),
    "memory_allocate": (byref(made), 4), "memory_free": (any_pointer,),
    "memory_allocate_host": (byref(made), 4), "memory_free_host": (any_pointer,),
    "memory_upload": (any_pointer, any_pointer, 4, None),
    "memory_copy": (any_pointer, any_pointer, 4, None),
    "memory_download": (any_pointer, any_pointer, 4, None),
    "stream_create": (byref(made),), "stream_destroy": (any_pointer,), "stream_synchronize": (None,),
    "stream_wait": (None, any_pointer),
    "event_create": (byref(made), 1), "event_destroy": (any_pointer,),
    "event_record": (any_pointer, None),
    "event_synchronize": (any_pointer,),
    "event_elapsed": (byref(c_float()), any_pointer, any_pointer),
    "graph_begin": (any_pointer,), "graph_end": (byref(made), any_pointer),
    "graph_launch": (any_pointer, None),
    "graph_destroy": (any_pointer,),
    "rms_norm_forward": (any_pointer, any_pointer, any_pointer, any_pointer, 1, 1, 1e-6, 0, None),
}
for name, arguments in calls.items():
    try:
        getattr(library, "nn_" + name)(*arguments)
    except errors.NoDeviceError as error:
        assert "no CUDA driver or no device here" in str(error) and str(error).startswith(name), error
    else:
        raise AssertionError(name + " did not say that there is no device")
assert counts.allocations == 0

for name, text in prototypes().items():           # nulls and zeros crash nothing
    words, _ = split(text)
    try:
        getattr(library, name, lambda *_: None)(*(None if w.endswith("*") else 0 for w in words))
    except errors.DeviceError as error:
        assert str(error), name
print("done")
"""
FOREIGN = 'extern "C" __attribute__((visibility("default"))) int nn_abi_version() {{ return {}; }}'


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_a_machine_without_a_driver_has_no_device_and_every_call_says_so() -> None:
    path = build.emulated_library().with_name(build.LIBRARY)
    command = [sys.executable, "-c", WITHOUT_A_DEVICE, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def shared_library(source: str, place: Path) -> Path:
    (place / "source.cpp").write_text(source)
    command = [*toolchain.host_compiler().split(), "-shared", "-fPIC", "source.cpp", "-o", "foreign.so"]
    subprocess.run(command, cwd=place, check=True)
    return place / "foreign.so"


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    path = shared_library(FOREIGN.format(ABI_VERSION + 1), tmp_path)
    versions = f"{ABI_VERSION + 1}, and these bindings need {ABI_VERSION};"
    with pytest.raises(errors.NoDeviceError, match=versions):
        Library(path)


def test_what_is_no_kernel_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.NoDeviceError, match="no kernel library"):
        Library(shared_library("int x;", tmp_path))
    with pytest.raises(errors.NoDeviceError, match=r"nowhere\.so: no kernel library .*build it"):
        Library(tmp_path / "nowhere.so")


def test_an_older_library_works_as_far_as_it_goes(tmp_path: Path) -> None:
    error = 'extern "C" __attribute__((visibility("default"))) const char* nn_{}() {{ return ""; }}'
    source = FOREIGN.format(ABI_VERSION) + "".join(error.format(n) for n in ("last_error", "error_string"))
    library = Library(shared_library(source, tmp_path))
    assert library.nn_abi_version() == ABI_VERSION
    with pytest.raises(AttributeError, match="has no function nn_stream_create: .*python -m cuda.nn.build"):
        library.nn_stream_create(None)


def test_arguments_are_checked_before_the_call(device: EmulatedDevice) -> None:
    library = device.library
    with pytest.raises(errors.DeviceArgumentError, match="memory_allocate: bytes:i64: 'x'"):
        library.nn_memory_allocate(byref(c_void_p()), "x")
    with pytest.raises(errors.DeviceArgumentError, match="event_create: timing:i32: .* does not fit"):
        library.nn_event_create(byref(c_void_p()), 2**31)
    with pytest.raises(TypeError, match=r"nn_stream_create\(stream\*\): 0 arguments instead of 1"):
        library.nn_stream_create()


def test_the_last_error_belongs_to_its_thread(device: EmulatedDevice) -> None:
    wrong = []

    def fail(number: int) -> None:
        for i in range(200):
            size = -(1000 * number + i + 1)
            try:
                device.library.nn_memory_allocate(byref(c_void_p()), size)
            except errors.DeviceArgumentError as error:
                if f"bytes: {size} is not positive" not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- injected failures -------------------------------------------------------------------------------------


def counts(device: EmulatedDevice) -> Counts:
    found = Counts(size=sizeof(Counts))
    device.library.nn_count(byref(found))
    return found


def norm(device: EmulatedDevice, x: DeviceArray, weight: DeviceArray) -> np.ndarray:
    rows, cols = x.shape
    y, rstd = device.empty(x.shape, np.float32), device.empty((rows,), np.float32)
    device.call("rms_norm_forward", y, rstd, x, weight, rows, cols, 1e-6, x.code)
    return y.numpy()


@pytest.fixture
def inputs(device: EmulatedDevice) -> tuple[DeviceArray, DeviceArray]:
    x = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    return device.asarray(x), device.asarray(np.ones(4, np.float32))


def test_a_launch_that_fails_names_its_kernel_and_leaves_nothing(
    device: EmulatedDevice, inputs: tuple[DeviceArray, DeviceArray]
) -> None:
    good = norm(device, *inputs)
    used = device.pool.used_bytes
    device.configure(fail_launch=1)
    with pytest.raises(errors.DeviceError, match=r"rms_norm_forward: .*\(cudaError") as caught:
        norm(device, *inputs)
    assert type(caught.value) is errors.DeviceError
    del caught
    gc.collect()
    assert device.pool.used_bytes == used
    np.testing.assert_array_equal(norm(device, *inputs), good)


def test_memory_that_cannot_be_had_is_an_error_and_the_next_call_works(device: EmulatedDevice) -> None:
    huge = 1 << 20
    used = device.pool.used_bytes
    before = counts(device)
    device.configure(fail_malloc=1)
    pointer = c_void_p()
    with pytest.raises(errors.DeviceMemoryError, match=r"memory_allocate: cudaMalloc: .*MemoryAllocation"):
        device.library.nn_memory_allocate(byref(pointer), huge)
    assert pointer.value is None
    assert counts(device).allocations == before.allocations
    device.library.nn_memory_allocate(byref(pointer), huge)
    device.library.nn_memory_free(pointer)
    after = counts(device)
    assert (after.allocations, after.frees) == (before.allocations + 1, before.frees + 1)
    assert device.pool.used_bytes == used


def test_the_pool_gives_back_what_it_keeps_before_it_gives_up(device: EmulatedDevice) -> None:
    size = 3_000_001
    kept = device.empty((size,), np.uint8)
    del kept                                     # now the pool's
    before = counts(device)
    device.configure(fail_malloc=1)
    found = device.empty((2 * size,), np.uint8)
    assert counts(device).frees > before.frees
    del found
    device.configure()


def test_a_call_that_fails_is_not_counted(device: EmulatedDevice) -> None:
    before = counts(device)
    with pytest.raises(errors.DeviceArgumentError, match="upload: a null pointer with 4 bytes"):
        device.call("memory_upload", None, None, 4)
    with pytest.raises(errors.DeviceArgumentError, match="bytes: -4 is negative"):
        device.call("memory_copy", None, None, -4)
    after = counts(device)
    assert (after.uploads, after.copies) == (before.uploads, before.copies)
