"""Several libraries measured in turns: workers started, samples taken, medians formed.

    found = measure([Contender("cuda-nn", "nn.bench.operations"), Contender("torch", TORCH)], ["softmax"])"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nn.bench.timing import DISTURBED

ROOT = Path(__file__).parents[2]
THREADS = ("NN_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """A library, measured in a process of its own."""

    name: str                          # as rows call it
    module: str                        # that defines tasks(**options)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """How much is measured."""

    samples: int = 5                   # that count, of each task; disturbed ones are taken again, so often
    retries: int = 10
    least: float = 0.4                 # seconds of one


@dataclass(frozen=True)
class Result:
    """The samples of one task of one library, or why there are none."""

    contender: str
    task: str
    samples: tuple[float, ...] = ()    # seconds of one repetition
    disturbed: int = 0                 # samples thrown away because others used the machine
    noisy: bool = False                # whether disturbed ones had to be kept
    details: dict[str, Any] = field(default_factory=dict)      # of its Task, and peak_rss_mb
    error: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples)


class Worker:
    """A process that measures one library's tasks."""

    def __init__(self, contender: Contender, threads: int) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = (os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": path}
                       | contender.environment)
        self.contender = contender
        # not a pipe: one that nobody empties would stop it
        self._said = tempfile.TemporaryFile("w+")    # noqa: SIM115  (closed in end)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nn.bench.worker", contender.module, json.dumps(contender.options)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True)
        first = self._answer()
        self.tasks: list[str] = first.get("tasks", [])
        self.error: str = first.get("error", "")

    def sample(self, task: str, least: float) -> dict[str, Any]:
        """{"seconds", "others", ...} or {"error"}."""
        if self.error:
            return {"error": self.error}
        self._send({"task": task, "least": least})
        answer = self._answer()
        self.error = answer.get("error", "")
        return answer

    def drop(self, task: str) -> None:
        """Let it forget what it made for a task."""
        if not self.error:
            self._send({"drop": task})

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _send(self, wanted: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        self._said.seek(0)
        last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"ended with status {self._process.returncode}: {last}"[:600]}


@contextmanager
def workers(contenders: Sequence[Contender], threads: int) -> Iterator[list[Worker]]:
    """One process each, all at once; ended on the way out."""
    with ExitStack() as ending:
        started = []
        for contender in contenders:
            worker = Worker(contender, threads)
            ending.callback(worker.end)
            started.append(worker)
        yield started


def in_turns(running: Sequence[Worker], task: str, policy: Policy) -> list[Result]:
    """The task by everyone who has it: one sample each, then the next."""
    taking = [_Taking(worker, task, policy) for worker in running if worker.error or task in worker.tasks]
    going = taking
    while going:
        going = [each for each in going if each.step()]
    for worker in running:
        worker.drop(task)
    return [each.result() for each in taking]


class _Taking:
    """The samples of one task by one worker, so far."""

    def __init__(self, worker: Worker, task: str, policy: Policy) -> None:
        self.worker, self.task, self.policy = worker, task, policy
        self.good: list[float] = []
        self.bad: list[tuple[float, float]] = []          # (share of others, seconds)
        self.details: dict[str, Any] = {}
        self.error = ""

    def step(self) -> bool:
        """One more sample; False if there are enough."""
        if self.error or len(self.good) >= self.policy.samples or len(self.bad) > self.policy.retries:
            return False
        answer = self.worker.sample(self.task, self.policy.least)
        self.error = answer.pop("error", "")
        if not self.error:
            seconds, others = answer.pop("seconds"), answer.pop("others")
            self.details = answer
            if others > DISTURBED:
                self.bad.append((others, seconds))
            else:
                self.good.append(seconds)
        return True

    def result(self) -> Result:
        """The undisturbed samples; the least disturbed where there are too few."""
        few = max(0, min(3, self.policy.samples) - len(self.good))
        kept = [seconds for _, seconds in sorted(self.bad)[:few]]
        return Result(self.worker.contender.name, self.task, (*self.good, *kept), len(self.bad) - len(kept),
                      bool(kept), self.details, self.error)
