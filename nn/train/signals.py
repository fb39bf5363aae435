"""Ctrl-C and SIGTERM, held back until the step that is running is done and saved.

    with StopSignal() as stop:
        while not stop.number: ...        # a second signal does what it did before: it ends the process"""

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """`number` is the first signal received, None before.  Outside the main thread nothing can be caught."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *details: object) -> None:
        self._restore()

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
