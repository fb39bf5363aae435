"""Several libraries measured in turns: workers started, samples taken, medians formed.

    with workers([Contender("cuda-nn", "nn.bench.operations"), Contender("torch", TORCH)], 2) as running:
        found = in_turns(running, "softmax forward", Policy(), read)

A ceiling takes turns, too: one reading between any two samples, and a sample is compared with the mean of the
one before it and the one after it.  Where memory changes its rate a share then is of the same minutes, and of
samples that met a change there are few: the median of the shares counts.  A reading that others disturbed is
left out of its mean; a sample between two of these has no share."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nn.bench.timing import Sample

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
    ceilings: tuple[float, ...] = ()   # beside each; 0 where it is not known
    disturbed: int = 0                 # samples thrown away because others used the machine
    noisy: bool = False                # whether disturbed ones had to be kept
    details: dict[str, Any] = field(default_factory=dict)      # of its Task, and peak_rss_mb
    error: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples)

    @property
    def share(self) -> float | None:
        """Of the ceiling: the median of what each sample reached of that beside it; None if not known."""
        if not any(self.ceilings):
            return None
        beside = zip(self.samples, self.ceilings, strict=True)
        return statistics.median(self.details["work"] / seconds / rate for seconds, rate in beside if rate)


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

    def make(self, task: str) -> dict[str, Any]:
        """Have it prepared and run warm: {"ceiling": which counts} or {"error"}."""
        return self._asked({"make": task})

    def sample(self, task: str, least: float) -> dict[str, Any]:
        """{"seconds", "others", ...} or {"error"}."""
        return self._asked({"task": task, "least": least})

    def _asked(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        self._send(wanted)
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
        """To a worker that has died, too: the next answer says how it ended"""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line.endswith("\n"):                          # not cut off by its end
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


class Measured(Protocol):
    """What takes turns: a Worker, or what behaves like one."""

    contender: Contender
    tasks: list[str]
    error: str

    def make(self, task: str) -> dict[str, Any]: ...
    def sample(self, task: str, least: float) -> dict[str, Any]: ...
    def drop(self, task: str) -> None: ...


def in_turns(running: Sequence[Measured], task: str, policy: Policy,
             read: Callable[[str], float] = lambda _: 0.0) -> list[Result]:
    """The task by everyone who has it: one sample each, then the next.  read(kind) is what a ceiling is now,
    a second, or 0: it is taken between any two samples, once all have made what they need."""
    taking = [_Taking(worker, task, policy) for worker in running if worker.error or task in worker.tasks]
    for each in taking:
        each.make()
    kinds = sorted({each.kind for each in taking} - {""})
    before = {kind: read(kind) for kind in kinds}
    while going := [each for each in taking if each.going]:
        for each in going:
            found = each.sample()
            after = {kind: read(kind) for kind in kinds}
            each.keep(found, (before.get(each.kind, 0.0), after.get(each.kind, 0.0)))
            before = after
    for worker in running:
        worker.drop(task)
    return [each.result() for each in taking]


@dataclass(frozen=True)
class _Sample(Sample):
    ceiling: float                     # beside it; 0: not known


class _Taking:
    """The samples of one task by one worker, so far."""

    def __init__(self, worker: Measured, task: str, policy: Policy) -> None:
        self.worker, self.task, self.policy = worker, task, policy
        self.good: list[_Sample] = []
        self.bad: list[_Sample] = []
        self.details: dict[str, Any] = {}
        self.kind = ""                                    # of its ceiling
        self.error = ""

    def make(self) -> None:
        answer = self.worker.make(self.task)
        self.kind, self.error = answer.get("ceiling", ""), answer.get("error", "")

    @property
    def going(self) -> bool:
        """Whether there are samples to be taken."""
        return not (self.error or len(self.good) >= self.policy.samples
                    or len(self.bad) > self.policy.retries)

    def sample(self) -> dict[str, Any]:
        return self.worker.sample(self.task, self.policy.least)

    def keep(self, answer: dict[str, Any], beside: tuple[float, float]) -> None:
        """A sample, and the readings of its ceiling before and after it, those that are 0 left out."""
        self.error = answer.pop("error", "")
        if not self.error:
            known = [rate for rate in beside if rate]
            found = _Sample(answer.pop("seconds"), answer.pop("others"), statistics.mean(known or [0.0]))
            self.details = answer
            (self.bad if found.disturbed else self.good).append(found)

    def result(self) -> Result:
        """The undisturbed samples; the least disturbed where there are too few."""
        few = max(0, min(3, self.policy.samples) - len(self.good))
        least = sorted(self.bad, key=lambda sample: sample.others)[:few]
        kept = [*self.good, *least]
        return Result(self.worker.contender.name, self.task, tuple(sample.seconds for sample in kept),
                      tuple(sample.ceiling for sample in kept), len(self.bad) - len(least), bool(least),
                      self.details, self.error)
