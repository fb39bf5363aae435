"""Streams, and events between them.

    copies = Stream(device)
    with copies:                       # what device.call queues goes there
        x = device.asarray(batch)
        ready = Event(device).record()
    ready.wait()                       # the device's own stream goes on when x is there

Each stream has memory of its own, reused in the order of its work.  An array made under one stream and used
under another must be kept until the other has passed an event after that use."""

from contextlib import ExitStack
from ctypes import byref, c_float, c_void_p
from types import TracebackType
from typing import TYPE_CHECKING

from cuda.nn.memory import Pool

if TYPE_CHECKING:
    from cuda.nn.device import Device


class Stream:
    """Work in order, beside that of other streams."""

    def __init__(self, device: "Device") -> None:
        self.device, self.pool = device, Pool(device.library)
        self._handle = c_void_p()
        self._entered: list[ExitStack] = []
        device.library.nn_stream_create(byref(self._handle))

    @property
    def handle(self) -> int:
        """The cudaStream_t."""
        return int(self._handle.value or 0)

    def __enter__(self) -> "Stream":
        stack = ExitStack()
        stack.enter_context(self.device.using_stream(self.handle, self.pool))
        self._entered.append(stack)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._entered.pop().close()

    def wait(self, event: "Event") -> None:
        """Later work of this stream starts when the event has happened; the host goes on."""
        self.device.library.nn_stream_wait(self.handle, event.handle)

    def synchronize(self) -> None:
        """The host waits for all work queued here."""
        self.device.library.nn_stream_synchronize(self.handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.device.library.nn_stream_destroy(self._handle)
            self._handle = c_void_p()


class Event:
    """A place in a stream's work.  `timing`: elapsed() is wanted, which costs a little."""

    def __init__(self, device: "Device", *, timing: bool = False) -> None:
        self.device, self.timing = device, timing
        self._handle = c_void_p()
        device.library.nn_event_create(byref(self._handle), int(timing))

    @property
    def handle(self) -> int:
        """The cudaEvent_t."""
        return int(self._handle.value or 0)

    def record(self, stream: Stream | None = None) -> "Event":
        """After what is queued so far, on the device's current stream unless another is given."""
        self.device.library.nn_event_record(self.handle, stream.handle if stream else self.device.stream)
        return self

    def wait(self, stream: Stream | None = None) -> None:
        """Later work of the stream (the device's current one) starts when the event has happened."""
        self.device.library.nn_stream_wait(stream.handle if stream else self.device.stream, self.handle)

    def synchronize(self) -> None:
        """The host waits for the event."""
        self.device.library.nn_event_synchronize(self.handle)

    def elapsed(self, since: "Event") -> float:
        """Milliseconds between two events; waits for this one."""
        if not (self.timing and since.timing):
            raise ValueError("elapsed: both events need timing=True")
        self.synchronize()
        found = c_float()
        self.device.library.nn_event_elapsed(byref(found), since.handle, self.handle)
        return found.value

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.device.library.nn_event_destroy(self._handle)
            self._handle = c_void_p()
