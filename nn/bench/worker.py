"""The process that measures one library: python -m nn.bench.worker MODULE OPTIONS (JSON).

One JSON object per line comes in, and to all but the last one goes out:
{"make": name}, {"task": name, "least": seconds}, {"drop": name}."""

import importlib
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from nn.bench.task import Task
from nn.bench.timing import peak_rss_mb, take
from nn.errors import InputError

LONG = 1.0          # seconds
PEERS = "nn.bench.peers."


def main(module: str, options: str) -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                      # what a library prints is not taken for an answer
    try:
        tasks = importlib.import_module(module).tasks(**json.loads(options))
        made: dict[str, Task] = {}
        measured = _measured if module.startswith(PEERS) else _measured_ours
        print(json.dumps({"tasks": list(tasks)}), file=answers)
        for line in sys.stdin:
            wanted = json.loads(line)
            made.pop(wanted.get("drop"), None)
            if (name := wanted.get("make") or wanted.get("task")) and name not in made:
                made[name] = _warm(tasks[name]())
            if "make" in wanted:
                print(json.dumps({"ceiling": made[name].ceiling}), file=answers)
            if "task" in wanted:
                print(json.dumps(measured(made[name], wanted["least"])), file=answers)
    except (InputError, MemoryError, RuntimeError, ImportError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:600]}), file=answers)
    return 0


def _warm(task: Task) -> Task:
    """Run twice before it counts; once where that takes long"""
    start = time.perf_counter()
    task.run()
    if time.perf_counter() - start < LONG:
        task.run()
    return task


def _measured(task: Task, least: float) -> dict[str, Any]:
    sample = take(task.run, least)
    own = {name: getattr(task, name) for name in ("tokens", "work", "ceiling", "facts")}
    return asdict(sample) | own | {"peak_rss_mb": peak_rss_mb()}


def _measured_ours(task: Task, least: float) -> dict[str, Any]:
    """With the kernels that ran: those of this machine, and what the reference had to do for them"""
    from nn.backends import native

    before = native.fallbacks()
    told = _measured(task, least)
    kernels = {"kernels": native.summary(), "fallbacks": native.fallen_back(before)}
    return told | {"facts": {**task.facts, **kernels}}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
