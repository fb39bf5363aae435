"""How long the command line's user waits: a fresh process until `import nn` is done, and until the first
token of a small model that lies on disk.

    for row in rows(Run(threads=2)): ..."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nn.bench.report import OURS, row
from nn.bench.runs import ROOT, THREADS, Contender, in_turns
from nn.bench.suites import Run
from nn.bench.timing import take
from nn.models import MoETransformer, preset

START = "start"        # the task of each
FIRST_TOKEN = """
import sys
from nn.generate import SamplingConfig, generate
from nn.interop.pretrained import from_pretrained
model = from_pretrained(sys.argv[1]).eval()
print(next(iter(generate(model, [1, 2, 3], SamplingConfig(max_tokens=1, temperature=0.0, eos_ids=())))))
"""

PEAK = """
import os
there = os.path.exists("/proc/self/status")
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0] if there else 0)
"""             # KiB, of a process that imports nothing for it


def rows(run: Run, model: str = "small") -> Iterator[dict[str, Any]]:
    """"start python", "import numpy" (what is under it), "import nn", "first token" of a preset."""
    with tempfile.TemporaryDirectory() as folder:
        MoETransformer(preset(model)).save_pretrained(Path(folder) / model)
        commands = {"start python": ("python", _python("")),
                    "import numpy": ("numpy", _python("import numpy")),
                    "import nn": (OURS, _python("import nn")),
                    f"first token of {model}": (OURS, _python(FIRST_TOKEN, str(Path(folder) / model)))}
        workers = [_Processes(library, command, run.threads) for library, command in commands.values()]
        for name, result in zip(commands, in_turns(workers, START, run.policy), strict=True):
            yield row(name, "f32", result, run.threads)


def _python(source: str, *arguments: str) -> list[str]:
    """The command of a fresh process that runs the source, to its end"""
    return [sys.executable, "-c", source, *arguments]


def _run(command: list[str], threads: int) -> str:
    """What it printed"""
    bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True,
                          env=bytecode | dict.fromkeys(THREADS, str(threads)))
    return done.stdout


class _Processes:
    """A worker (nn/bench/runs.py) whose task is a whole process, from outside: what the user sees."""

    def __init__(self, library: str, command: list[str], threads: int) -> None:
        self.contender, self.tasks, self.error = Contender(library, ""), [START], ""
        self.command, self.threads = command, threads
        self.peak_rss_mb: float | None = None            # not known where there is no /proc

    def make(self, task: str) -> dict[str, Any]:
        python, option, source, *rest = self.command
        told = _run([python, option, source + PEAK, *rest], self.threads)        # writes bytecode, too
        self.peak_rss_mb = int(told.split()[-1]) * 1024 / 1e6 or None
        return {"ceiling": ""}

    def sample(self, task: str, least: float) -> dict[str, Any]:
        return asdict(take(self._once, least)) | {"tokens": 0.0, "work": 0.0, "ceiling": "", "facts": {},
                                                  "peak_rss_mb": self.peak_rss_mb}

    def drop(self, task: str) -> None: ...

    def _once(self) -> None:
        _run(self.command, self.threads)
