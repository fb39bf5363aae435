"""How long the command line's user waits: a fresh process until `import nn` is done, and until the first
token of a small model that lies on disk.

    for row in rows(Run(threads=2)): ..."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nn.bench.ceilings import Ceilings
from nn.bench.report import OURS, row
from nn.bench.runs import ROOT, THREADS, Result
from nn.bench.suites import Run
from nn.bench.timing import DISTURBED, Sample, take
from nn.models import MoETransformer, preset

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
        for name, (library, command) in commands.items():
            yield row(name, "f32", _timed(name, library, command, run),
                      Ceilings({}, {}, 0.0, 0, run.threads))


def _python(source: str, *arguments: str) -> list[str]:
    """The command of a fresh process that runs the source, to its end"""
    return [sys.executable, "-c", source, *arguments]


def _run(command: list[str], threads: int) -> str:
    """What it printed"""
    bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True,
                          env=bytecode | dict.fromkeys(THREADS, str(threads)))
    return done.stdout


def _timed(name: str, library: str, command: list[str], run: Run) -> Result:
    """Whole processes, from outside: what the user sees"""
    python, option, source, *rest = command
    told = _run([python, option, source + PEAK, *rest], run.threads)             # writes bytecode, too
    peak = int(told.split()[-1]) * 1024 / 1e6

    def action() -> None:
        _run(command, run.threads)

    taken: list[Sample] = []
    wanted = run.policy.samples
    while len(taken) < wanted + run.policy.retries:
        taken.append(take(action, run.policy.least))
        if sum(sample.others <= DISTURBED for sample in taken) == wanted:
            break
    good = tuple(sample.seconds for sample in taken if sample.others <= DISTURBED)
    kept = good or tuple(sample.seconds for sample in taken)
    details = {"tokens": 0.0, "flops": 0.0, "bytes": 0.0, "dtype": "", "facts": {}, "peak_rss_mb": peak}
    return Result(library, name, kept, len(taken) - len(good), not good, details)
