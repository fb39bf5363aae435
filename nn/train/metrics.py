"""metrics.jsonl: one JSON object per optimizer step, in order, each exactly once, however often the run was
killed.

    with MetricsLog(run.metrics, after_step=100) as log:       # lines after step 100 are cut off first
        log.write({"step": 101, "loss": 2.5})"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nn.files import sync


class MetricsLog:
    """Appends whole lines.  `after_step`: the step to continue after; what was written beyond it belongs to a
    life whose weights are lost."""

    def __init__(self, path: Path, after_step: int = 0) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = _length_up_to(path, after_step)
        os.ftruncate(self._file, self._end)
        sync(path.parent)

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, handed to the system at once.  If the disk is full, nothing of it stays."""
        line = (json.dumps(record) + "\n").encode()
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def sync(self) -> None:
        """Force it onto the disk: a checkpoint that is there must find its lines there."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line."""
    with open(path, "rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n")]


def _length_up_to(path: Path, step: int) -> int:
    """Bytes of the lines up to and including this step; a line that is cut off or not JSON ends it too."""
    length = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None or record["step"] > step:
                break
            length += len(line)
    return length
