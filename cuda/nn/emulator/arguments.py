"""What a launch passes to a kernel: NumPy arrays by copy to the device and back, scalars and structures by
value.

An array argument keeps its device memory from launch to launch, as long as its size stays the same."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from cuda.nn.emulator.buffers import Buffer
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.kernels import Kernel
from cuda.nn.emulator.native import Library

POINTER = 8  # bytes of a pointer parameter
ALIGNMENT = 16  # of a parameter, at most
SUGGESTED = {1: ("int8", "int8"), 2: ("int16", "float16"), 4: ("int32", "float32"), 8: ("int64", "float64")}
BY_VALUE = (np.generic, bytes, bytearray, ctypes.Structure, ctypes.Union, ctypes.Array)
ADDRESS = struct.Struct("<Q")
Seen = tuple[int, np.ndarray, int, int, int]  # argument, array, its first byte, past its last, device address


class Arguments:
    """One kernel's arguments on the device.  `pointers` is what cudaLaunchKernel wants: one pointer per
    parameter."""

    def __init__(self, library: Library, kernel: Kernel) -> None:
        self._library, self._kernel = library, kernel
        count = len(kernel.parameter_sizes)
        places = [0]
        for size in kernel.parameter_sizes:
            places.append(-(-(places[-1] + size) // ALIGNMENT) * ALIGNMENT)
        self._values = ctypes.create_string_buffer(max(places[-1], 1))  # the parameters' values
        self._places = places[:count]
        base = ctypes.addressof(self._values)
        self.pointers = (ctypes.c_void_p * max(count, 1))(*(base + place for place in self._places))
        self._memory = [(0, 0)] * count  # device address and bytes of array arguments
        self._results: list[
            tuple[np.ndarray, np.ndarray, int, int]
        ] = []  # array, its contiguous form, that's and device address

    def send(self, args: Sequence[Any]) -> None:
        """Copy arrays to the device and note the values.  EmulatorError where they do not fit the kernel."""
        kernel = self._kernel
        if len(args) != len(kernel.parameter_sizes):
            raise EmulatorError(
                f"{kernel.name} takes {len(kernel.parameter_sizes)} arguments, {len(args)} were given"
            )
        self._results.clear()
        seen: list[Seen] = []
        for index, (value, size, place) in enumerate(
            zip(args, kernel.parameter_sizes, self._places, strict=True)
        ):
            if isinstance(value, np.ndarray):
                self._check_pointer(index, size)
                ADDRESS.pack_into(self._values, place, self._send_array(index, value, seen))
            elif isinstance(value, Buffer):
                self._check_pointer(index, size)
                ADDRESS.pack_into(self._values, place, value.address)
            else:
                struct.pack_into(f"{size}s", self._values, place, self._bytes(index, size, value))

    def fetch(self) -> None:
        """Copy what the kernel may have written back into the arrays."""
        for array, contiguous, host, device in self._results:
            self._library.copy(host, device, contiguous.nbytes)
            if contiguous is not array:
                array[...] = contiguous
        self._results.clear()

    def free(self) -> None:
        """Give the device memory back."""
        for address, size in self._memory:
            if size:
                self._library.free(address)
        self._memory = [(0, 0)] * len(self._memory)

    # ---- arrays --------------------------------------------------------------------------------------------

    def _send_array(self, index: int, array: np.ndarray, seen: list[Seen]) -> int:
        """The device address of the array's copy; the same array given twice is one copy."""
        flags, size = array.flags, array.nbytes
        host = _address(array)
        begin, end = (host, host + size) if flags.c_contiguous else byte_bounds(array)
        for before, other, low, high, device in seen:
            if other is array:
                return device
            if low < end and begin < high:
                self._refuse_overlap(before, other, index, array)
        if array.dtype.hasobject or not array.dtype.isnative:
            raise EmulatorError(
                f"argument {index} of {self._kernel.name}: an array of {array.dtype} has no form on a device"
            )
        device = self._place(index, size)
        seen.append((index, array, begin, end, device))
        if size:
            contiguous = array
            if not flags.c_contiguous:
                contiguous = np.ascontiguousarray(array)
                host = _address(contiguous)
            self._library.copy(device, host, size)
            if flags.writeable:
                self._results.append((array, contiguous, host, device))
        return device

    def _place(self, index: int, size: int) -> int:
        """Device memory for an argument; its contents are arbitrary.  Null for an empty array, as cudaMalloc
        gives."""
        address, had = self._memory[index]
        if had == size:
            return address
        if had:
            self._library.free(address)
        name = self._kernel.parameter_name(index)
        address = self._library.allocate(size, f"argument {index}" + f" ({name})" * bool(name)) if size else 0
        self._memory[index] = (address, size)
        return address

    def _refuse_overlap(self, one: int, first: np.ndarray, two: int, second: np.ndarray) -> None:
        """Arrays that share some memory cannot be copied one by one: which copy would win?"""
        if (first.flags.writeable or second.flags.writeable) and np.shares_memory(first, second):
            raise EmulatorError(
                f"arguments {one} and {two} of {self._kernel.name} overlap in memory; give one array twice, "
                "copies, or module.array(...)"
            )

    # ---- values --------------------------------------------------------------------------------------------

    def _check_pointer(self, index: int, size: int) -> None:
        if size != POINTER:
            raise EmulatorError(
                f"argument {index} of {self._kernel.name}: an array is passed by pointer (8 bytes), the "
                f"kernel takes "
                f"{size} bytes by value; give {_example(size)}"
            )

    def _bytes(self, index: int, size: int, value: Any) -> bytes:
        """A scalar's or structure's bytes."""
        if isinstance(value, BY_VALUE):
            data = value.tobytes() if isinstance(value, np.generic) else bytes(value)
            if len(data) == size:
                return data
        where, kind = f"argument {index} of {self._kernel.name}", type(value).__name__
        if isinstance(value, BY_VALUE):
            raise EmulatorError(
                f"{where}: {kind} has {len(data)} bytes, the kernel takes {size}; give {_example(size)}"
            )
        if isinstance(value, bool | int | float):
            number = SUGGESTED.get(size, ("void", "void"))[isinstance(value, float)]
            raise EmulatorError(
                f"{where}: a Python {kind} has no size; write np.{number}({value!r}): the kernel takes "
                f"{size} bytes"
            )
        raise EmulatorError(f"{where}: {kind} cannot be passed; give a NumPy array, or {_example(size)}")


def _address(array: Any) -> int:
    """Of the first element.  The buffer protocol takes a quarter of the time of NumPy's interface, but
    refuses arrays that are read-only, empty, not contiguous, or of a type that C does not have."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):
        address: int = array.__array_interface__["data"][0]
        return address


def _example(size: int) -> str:
    if size in SUGGESTED:
        return " or ".join(f"np.{name}(...)" for name in dict.fromkeys(SUGGESTED[size]))
    return f"a structure of {size} bytes (a scalar of a structured NumPy type, a ctypes.Structure, or bytes)"
