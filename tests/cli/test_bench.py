"""cuda-nn bench cpu, train, decode, startup: rows, their fields, what is said of wrong options.  Tiny sizes;
nothing here asserts a time."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.backends import native
from nn.bench import ceilings, models, report, startup, suites, weights
from nn.bench.ceilings import Ceilings
from nn.bench.report import OURS
from nn.bench.runs import Contender, Policy, Result, Worker, in_turns, workers
from nn.bench.task import Task
from nn.bench.timing import Sample, take
from nn.errors import InputError
from nn.generate import SamplingConfig, generate
from nn.models.presets import TINY

QUICK = ("--samples", "1", "--seconds", "0", "--threads", "1", "--peers", "none", "--json")
EVERY = {"name", "library", "dtype", "threads", "low", "high", "samples", "disturbed", "noisy", "peak_rss_mb",
         "percent_of_ceiling", "date", "machine"}


def rows_of(out: str) -> list[dict[str, Any]]:
    """Each with the fields that all have."""
    rows = [json.loads(line) for line in out.splitlines()]
    for each in rows:
        assert_has_every_key(each)
    return rows


def assert_has_every_key(row: dict[str, Any]) -> None:
    assert row.keys() >= EVERY
    assert ("seconds" in row) != ("tokens_per_second" in row)


@pytest.mark.parametrize(("words", "names", "speed"), [
    (("train", "--model", "gpt-tiny", "--batch", "2", "--seq", "8", "--dtype", "bf16"),
     ["train gpt-tiny 2 x 8"], "tokens_per_second"),
    (("train", "--model", "tiny", "--batch", "1", "--seq", "8"), ["train tiny 1 x 8"], "tokens_per_second"),
    (("decode", "--model", "tiny", "--prompt", "4", "--new", "4", "--prefill", "8"),
     ["decode tiny 4 + 4", "prefill tiny 8"], "tokens_per_second"),
    (("decode", "--model", "tiny", "--new", "0", "--prefill", "8", "--dtype", "bf16"), ["prefill tiny 8"],
     "tokens_per_second"),
    (("cpu", "--small", "--op", "softmax,adamw"),
     ["softmax forward", "softmax forward + backward", "adamw"], "seconds"),
    (("cpu", "--small", "--op", "swiglu,linear_cross_entropy", "--dtype", "bf16"),
     ["linear_cross_entropy forward", "linear_cross_entropy forward + backward", "swiglu forward",
      "swiglu forward + backward"], "seconds"),
])
def test_one_json_object_per_row(cuda_nn, words: tuple[str, ...], names: list[str], speed: str) -> None:
    status, out, err = cuda_nn("bench", *words, *QUICK)
    assert (status, err) == (0, "")
    rows = rows_of(out)
    ours = [row for row in rows if row["library"] == OURS]
    assert [row["name"] for row in ours] == names
    for row in ours:
        assert speed in row
        assert row["threads"] == 1
        assert row["kernels"].startswith(native.missing() or native.level())
        assert isinstance(row["fallbacks"], str)
        assert row[speed] > 0
        assert 0 < row["low"] <= row[speed] <= row["high"]
        assert row["peak_rss_mb"] > 1
        steps = words[0] == "train" or row["name"].startswith("decode")
        assert ("recorded" in row, "not_recorded" in row) == (steps, steps)
        if steps:
            assert row["recorded"] is (native.missing() is None)
            assert bool(row["not_recorded"]) is not row["recorded"]
        if row["percent_of_ceiling"] is not None:
            assert row["percent_of_ceiling"] > 0
            assert row["shares"] == row["samples"] == 1
            low, high = row["ceiling_range"]
            assert 0 < low <= row["ceiling_rate"] <= high
    limits = {row["ceiling"]: row for row in rows if row["library"] == "ceiling"}
    assert bool(limits) == (native.missing() is None)
    for kind, limit in limits.items():
        assert limit["unit"] == ("B/s" if kind == "read" else "FLOP/s")
        assert limit["ceiling_range"][1] == limit["rate"]
        assert limit["samples"] + limit["disturbed"] >= 2          # before and after the sample
        assert limit["dtype"] in ("", "f32", "bf16")               # as in other rows
    compared = [row for row in ours if row["percent_of_ceiling"] is not None]
    for row in compared:
        assert row["unit"] == limits[row["ceiling"]]["unit"]
        assert row["ceiling_range"][1] <= limits[row["ceiling"]]["rate"]
    if len(compared) < len(ours):              # both readings beside a sample were disturbed
        assert native.missing() or any(limit["disturbed"] or limit["noisy"] for limit in limits.values())
    else:
        assert limits.keys() == {row["ceiling"] for row in compared}


def test_every_operation_runs(cuda_nn) -> None:
    status, out, _ = cuda_nn("bench", "cpu", "--small", *QUICK)
    assert status == 0
    names = [row["name"] for row in rows_of(out) if row["library"] == OURS]
    assert len(names) == len(set(names)) == 11
    assert not any("error" in row for row in rows_of(out))


def test_a_table(cuda_nn) -> None:
    status, out, _ = cuda_nn("bench", "train", "--model", "gpt-tiny", "--seq", "8", *QUICK[:-1])
    assert status == 0
    assert out.startswith("machine")
    assert "of the best other" in out
    (ours,) = (line for line in out.splitlines() if line.startswith("train gpt-tiny") and ": " not in line)
    assert "tokens/s" in ours
    assert native.missing() or "train gpt-tiny 4 x 8: the step was recorded\n" in out


@pytest.mark.parametrize("words", [("train", "--model", "gpt-tiny", "--seq", "8"),
                                   ("decode", "--model", "tiny", "--prompt", "4", "--new", "4",
                                    "--prefill", "0")], ids=lambda words: words[0])
def test_rows_say_why_a_step_was_not_recorded(cuda_nn, monkeypatch: pytest.MonkeyPatch,
                                              words: tuple[str, ...]) -> None:
    monkeypatch.setenv("NN_BACKEND", "reference")
    status, out, _ = cuda_nn("bench", *words, *QUICK)
    (row,) = (row for row in rows_of(out) if row["library"] == OURS)
    assert status == 0
    assert row["recorded"] is False
    assert len(row["not_recorded"]) > 10
    _, text, _ = cuda_nn("bench", *words, *QUICK[:-1])
    assert f"the step was not recorded: {row['not_recorded']}\n" in text


def test_the_start(cuda_nn) -> None:
    status, out, _ = cuda_nn("bench", "startup", "--preset", "tiny", *QUICK)
    assert status == 0
    assert [row["name"] for row in rows_of(out)] == ["start python", "import numpy", "import nn",
                                                    "first token of tiny"]


def test_the_processes_of_startup_take_turns(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(startup._Processes, "_once", lambda worker: turns.append(worker.command[2]))
    monkeypatch.setattr(startup, "PEAK", startup.PEAK.replace("/proc", "/no/such"))
    status, out, _ = cuda_nn("bench", "startup", "--preset", "tiny", *QUICK[2:], "--samples", "2")
    assert status == 0
    assert turns[:4] == ["", "import numpy", "import nn", startup.FIRST_TOKEN]
    assert turns.count("import nn") >= 2
    assert [row["peak_rss_mb"] for row in rows_of(out)] == [None] * 4
    status, table, _ = cuda_nn("bench", "startup", "--preset", "tiny", *QUICK[:-1])
    assert (status, table.count("None")) == (0, 0)


def test_the_processes_of_startup_have_the_threads_that_rows_say() -> None:
    assert startup._run(startup._python("import os; print(os.environ['NN_THREADS'])"), 3) == "3\n"


def test_threads_of_the_whole_model(cuda_nn) -> None:
    words = ("bench", "--preset", "gpt-tiny", "--batch-size", 1, "--seq-len", 4, "--repeat", 1)
    for count in (1, 2):
        status, out, err = cuda_nn(*words, "--threads", count)
        assert (status, err) == (0, "")
        assert f"{count} thread" in out
    assert cuda_nn(*words, "--threads", -1)[0] == 2


@pytest.mark.parametrize(("words", "message"), [
    (("train", "--model", "gpt3"), "model: 'gpt3' is not known"),
    (("train", "--dtype", "q8_0"), "dtype: 'q8_0' is not known"),
    (("train", "--batch", "0"), "batch: 0"),
    (("decode", "--dtype", "f23"), "did you mean 'f32'?"),
    (("decode", "--model", "tiny", "--new", "0", "--prefill", "0"), "new or prefill of 1 or more"),
    (("cpu", "--op", "softmix"), "'softmix' is not the beginning of any; there are rms_norm forward"),
    (("cpu", "--peers", "tensorflow"), "peers: 'tensorflow' is not known"),
    (("cpu", "--samples", "0"), "samples: 0"),
    (("cpu", "--dtype", "f16"), "dtype: 'f16' is not known"),
    (("startup", "--preset", "large"), "preset: 'large' is not known"),
    (("dcode",), "bench: 'dcode' is not known"),
    (("decode", "--promt", "3"), "Did you mean --prompt?"),
])
def test_wrong_input(cuda_nn, words: tuple[str, ...], message: str) -> None:
    status, _, err = cuda_nn("bench", *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["cpu", "train", "decode", "startup"])
def test_help(cuda_nn, verb: str) -> None:
    status, out, _ = cuda_nn("bench", verb, "--help")
    assert status == 0
    assert f"cuda-nn bench {verb}" in out
    assert "--json" in out


# ---- models ----

def test_parameters_of_the_models() -> None:
    assert models.trained("gpt2-124m", "f32").num_parameters() == 124_475_904
    assert models.trained("moe-bench", "f32").num_parameters() == 53_760_256
    counts = {name: models.weight_bytes(name, "f32") / 4 for name in ("smol-135m", "moe-768x12")}
    assert counts == {"smol-135m": 134_515_008, "moe-768x12": 266_572_032}


# ---- workers ----

def test_a_library_that_fails_says_so_and_the_others_go_on() -> None:
    good = Contender(OURS, "nn.bench.operations", {"small": True})
    bad = [Contender("gone", "nn.bench.no_such_module"),
           Contender("wrong", "nn.bench.training", {"model": "x", "dtype": "f32", "batch": 1, "seq": 1})]
    with workers([good, *bad], 1) as running:
        results = in_turns(running, "softmax forward", Policy(samples=2, least=0.0))
    assert [len(result.samples) for result in results] == [2, 0]
    assert "no_such_module" in results[1].error


class Counted:
    """The samples of a worker's tasks; before that of so many it is killed, as one is that wants too much."""

    def __init__(self, worker: Worker, left: int) -> None:
        self.worker, self.left = worker, left
        self.contender, self.tasks = worker.contender, worker.tasks

    @property
    def error(self) -> str:
        return self.worker.error

    def make(self, task: str) -> dict[str, Any]:
        return self.worker.make(task)

    def sample(self, task: str, least: float) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            self.worker._process.kill()
            self.worker._process.wait()
        return self.worker.sample(task, least)

    def drop(self, task: str) -> None:
        self.worker.drop(task)


def test_a_worker_that_is_killed_has_a_row_that_says_so_and_the_others_go_on() -> None:
    pair = [Contender(name, "nn.bench.operations", {"small": True}) for name in (OURS, "killed")]
    with workers(pair, 1) as (good, bad):
        first = in_turns([good, Counted(bad, 1)], "softmax forward", Policy(samples=2, least=0.0))
        second = in_turns([good, bad], "adamw", Policy(samples=2, least=0.0))
    for alive, killed in (first, second):
        assert len(alive.samples) == 2
        assert "ended with status -9" in report.row("a", "f32", killed, 1)["error"]


def test_a_worker_that_is_killed_between_tasks() -> None:
    with workers([Contender(OURS, "nn.bench.operations", {"small": True})], 1) as (worker,):
        in_turns([worker], "softmax forward", Policy(samples=1, least=0.0))
        worker._process.kill()
        worker._process.wait()
        worker.drop("softmax forward")
        (found,) = in_turns([worker], "adamw", Policy(samples=1, least=0.0))
    assert "ended with status -9" in found.error


class Stand:
    """A worker whose samples are what it is given: (seconds, share of others); it writes down its turns."""

    def __init__(self, *samples: tuple[float, float], name: str = "x", kind: str = "read",
                 turns: list[str] | None = None) -> None:
        self.contender, self.tasks, self.error = Contender(name, ""), ["a"], ""
        self.samples, self.kind, self.turns = iter(samples), kind, [] if turns is None else turns

    def make(self, task: str) -> dict[str, Any]:
        self.turns.append(f"make {self.contender.name}")
        return {"ceiling": self.kind}

    def sample(self, task: str, least: float) -> dict[str, Any]:
        self.turns.append(self.contender.name)
        seconds, others = next(self.samples)
        return {"seconds": seconds, "others": others, "tokens": 0.0, "work": 60.0, "ceiling": self.kind,
                "facts": {}, "peak_rss_mb": 1.0}

    def drop(self, task: str) -> None: ...


def test_disturbed_samples_are_taken_again() -> None:
    stand = Stand(*((1.0, others) for others in (0.5, 0.0, 0.3, 0.0, 0.0)))
    (found,) = in_turns([stand], "a", Policy(samples=3))
    assert (len(found.samples), found.disturbed, found.noisy) == (3, 2, False)


def test_a_machine_that_is_never_quiet_gives_noisy_rows() -> None:
    stand = Stand(*((float(call), 1.0 / call) for call in range(1, 6)))
    rates = iter([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    (found,) = in_turns([stand], "a", Policy(samples=3, retries=4), lambda _: next(rates))
    assert found.noisy
    assert found.samples == (5.0, 4.0, 3.0)                        # the least disturbed ones
    assert found.ceilings == (55.0, 45.0, 35.0)                    # and what was beside these


# ---- ceilings ----

def test_a_ceiling_takes_turns_with_the_samples() -> None:
    turns: list[str] = []

    def read(kind: str) -> float:
        turns.append(kind)
        return 1.0

    stands = [Stand((1.0, 0.0), (1.0, 0.0), name=name, turns=turns) for name in "xy"]
    in_turns(stands, "a", Policy(samples=2), read)
    assert turns == ["make x", "make y", *["read", "x", "read", "y"] * 2, "read"]


def test_a_share_is_of_the_readings_beside_the_sample() -> None:
    """Work of 60: half of what the memory gives, which changes its rate after the second sample."""
    rates = iter([60.0, 60.0, 60.0, 120.0, 120.0, 120.0])
    stand = Stand((2.0, 0.0), (2.0, 0.0), (4 / 3, 0.0), (1.0, 0.0), (1.0, 0.0))
    (found,) = in_turns([stand], "a", Policy(samples=5), lambda _: next(rates))
    assert found.ceilings == (60.0, 60.0, 90.0, 120.0, 120.0)
    assert found.share == pytest.approx(0.5)
    told = report.row("a", "f32", found, 2)
    assert told["percent_of_ceiling"] == pytest.approx(50)
    assert (told["ceiling_rate"], told["ceiling_range"]) == (90.0, [60.0, 120.0])
    assert told["rate"] == pytest.approx(45)                       # of the median sample
    assert (told["ceiling"], told["unit"]) == ("read", "B/s")


def test_the_share_is_the_median_of_the_samples_shares() -> None:
    assert Result("x", "a", (1.0, 2.0, 4.0), (10.0, 2.0, 2.0), details={"work": 2.0}).share == 0.25
    assert Result("x", "a", (1.0,), (0.0,), details={"work": 2.0}).share is None
    assert Result("x", "a", (1.0,), details={"work": 2.0}).share is None


def test_each_is_compared_with_its_own_kind() -> None:
    stands = [Stand((1.0, 0.0), name="x"), Stand((1.0, 0.0), name="y", kind="int8"),
              Stand((1.0, 0.0), name="z", kind="")]
    found = in_turns(stands, "a", Policy(samples=1), {"read": 100.0, "int8": 600.0}.__getitem__)
    assert [each.share for each in found] == [0.6, 0.1, None]
    assert report.row("a", "q8_0", found[1], 1)["ceiling"] == "int8 multiply-adds"
    assert report.row("a", "f32", found[2], 1)["percent_of_ceiling"] is None


def test_ceilings_keep_what_they_reached() -> None:
    class Reading(Stand):
        def sample(self, task: str, least: float) -> dict[str, Any]:
            self.error = "" if (answer := next(self.samples, None)) else "no more memory"
            return {"error": self.error} if answer is None else {
                "seconds": answer[0], "others": answer[1], "work": 60e9, "facts": {"how": "read, 4 streams"},
                "peak_rss_mb": 7.0}

    worker = Reading((1.0, 0.0), (2.0, 0.0), (0.5, 0.3), (1.5, 0.0))
    worker.tasks = ["read", "int8"]
    limits = Ceilings(worker)
    assert [limits.read("read") for _ in range(5)] == [60e9, 30e9, 0.0, 40e9, 0.0]
    assert limits.read("float32") == 0.0
    reached, failed = report.ceiling_rows(limits, 2)
    assert (reached["rate"], reached["ceiling_range"], reached["samples"]) == (60e9, [30e9, 60e9], 3)
    assert (reached["seconds"], reached["high"], reached["peak_rss_mb"]) == (1.0, 2.0, 7.0)
    assert (reached["disturbed"], reached["noisy"]) == (1, False)
    assert failed["error"] == "no more memory"
    for each in (reached, failed):
        assert_has_every_key(each)

    never_quiet = Ceilings(Reading((1.0, 0.5), (2.0, 0.3)))
    never_quiet.seen = {"read": []}
    assert [never_quiet.read("read"), never_quiet.read("read")] == [0.0, 0.0]
    (noisy,) = report.ceiling_rows(never_quiet, 2)
    assert (noisy["rate"], noisy["samples"], noisy["disturbed"], noisy["noisy"]) == (60e9, 2, 0, True)


def test_a_disturbed_reading_is_left_out_of_its_mean() -> None:
    """Readings, 0 where others disturbed them: of five samples the fourth has none beside it that counts."""
    rates = iter([40.0, 0.0, 120.0, 0.0, 0.0, 60.0])
    stand = Stand(*[(1.0, 0.0)] * 5)
    (found,) = in_turns([stand], "a", Policy(samples=5), lambda _: next(rates))
    assert found.ceilings == (40.0, 120.0, 120.0, 0.0, 60.0)
    assert found.share == pytest.approx(statistics.median([1.5, 0.5, 0.5, 1.0]))
    told = report.row("a", "f32", found, 2)
    assert (told["shares"], told["samples"]) == (4, 5)
    assert (told["ceiling_rate"], told["ceiling_range"]) == (90.0, [40.0, 120.0])


def test_a_machine_that_is_never_quiet_gives_no_shares() -> None:
    (found,) = in_turns([Stand((1.0, 0.0))], "a", Policy(samples=1), lambda _: 0.0)
    assert report.row("a", "f32", found, 2)["percent_of_ceiling"] is None


def test_an_action_may_return_the_sample_that_it_took() -> None:
    """A ceiling's: what ran before its first repetition does not disturb it."""
    assert take(lambda: Sample(2.0, 0.5), 10.0) == Sample(2.0, 0.5)


def test_every_key_is_in_rows_of_what_failed() -> None:
    row = report.row("a", "f32", Result("torch", "a", error="gone"), 2)
    assert_has_every_key(row)
    assert (row["error"], row["samples"], row["noisy"]) == ("gone", None, None)


def test_a_table_shows_the_ceiling_beside_the_samples_and_the_highest_of_the_run() -> None:
    details = {"tokens": 0.0, "work": 30e9, "ceiling": "read", "facts": {}, "peak_rss_mb": 2.0}
    mine = report.row("a", "f32", Result(OURS, "a", (1.0, 1.0), (40e9, 40e9), details=details), 2)
    limit = {"name": "read, 4 streams", "library": "ceiling", "dtype": "", "rate": 75e9, "unit": "B/s",
             "ceiling": "read", "ceiling_range": [40e9, 75e9], "noisy": True, "peak_rss_mb": 3.0}
    failed = report.row("a", "f32", Result("torch", "a", error="gone"), 2)
    cells = report.table_rows([mine, failed, limit])
    lines = [dict(zip(report.HEAD, each, strict=True)) for each in cells[1:]]
    assert (lines[0]["of ceiling"], lines[0]["of highest"]) == ("75 % of 40 GB/s", "40 %")
    assert (lines[2]["speed"], lines[2]["fastest to slowest"]) == ("75 GB/s", "75 - 40 (noisy)")
    assert (failed["percent_of_ceiling"], failed["peak_rss_mb"]) == (None, None)


def test_the_way_to_read_is_chosen_in_turns() -> None:
    """The second way is faster at either rate, and slower than the first one was before the rate fell."""
    taken: list[int] = []

    def seconds(way: int) -> float:
        taken.append(way)
        return {1: 2.0, 2: 1.8}[way] * (1 if len(taken) <= 4 else 3)

    assert ceilings.fastest({1: 1, 2: 2}, seconds) == 2
    assert taken == [1, 2] * 5


def test_a_task_says_which_ceiling_counts() -> None:
    def run() -> None: ...

    tasks = [Task(run, flops=2.0, dtype="int8"), Task(run, bytes=3.0), Task(run, tokens=1.0)]
    assert [(task.ceiling, task.work) for task in tasks] == [("int8", 2.0), ("read", 3.0), ("", 0.0)]


@pytest.mark.skipif(bool(native.missing()), reason="the ceilings are the native kernels'")
def test_ceilings_are_measured_with_the_threads_that_rows_say() -> None:
    one = Contender(ceilings.NAME, "nn.bench.ceilings", {"size": 1 << 16, "least": 0.0})
    with workers([one], 1) as (worker,):
        limits = Ceilings(worker)
        assert "read" in limits.seen
        for kind, readings in limits.seen.items():
            limits.read(kind)
            assert readings[0].seconds > 0
        assert "1 thread" in worker.sample("read", 0.0)["facts"]["kernels"]


@pytest.mark.skipif(bool(native.missing()), reason="the ceilings are the native kernels'")
def test_the_ceilings_worker_may_be_killed() -> None:
    both = [Contender(ceilings.NAME, "nn.bench.ceilings", {"size": 1 << 16, "least": 0.0}),
            Contender(OURS, "nn.bench.operations", {"small": True})]
    with workers(both, 1) as (limiting, worker):
        limits = Ceilings(Counted(limiting, 0))
        (found,) = in_turns([worker], "softmax forward", Policy(samples=2, least=0.0), limits.read)
        (row,) = report.ceiling_rows(limits, 1)
    assert (len(found.samples), found.share) == (2, None)
    assert "ended with status -9" in row["error"]


# ---- peers ----

def test_peers_are_chosen_by_library_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Contender("torch eager", "a"), Contender("torch compile", "b")]
    monkeypatch.setattr(suites, "_installed", lambda _: True)
    assert suites.Run(peers=("torch",)).others(both) == both
    assert suites.Run(peers=("torch compile",)).others(both) == both[1:]
    assert suites.Run(peers=("none",)).others(both) == []
    assert isinstance(Result("x", "y", (1.0, 3.0, 2.0)).seconds, float)


# ---- weights that are mapped ----

@pytest.mark.parametrize("form", ["f32", "bf16", "q8_0", "q4_0"])
def test_a_mapped_model_generates_and_its_files_are_written_once(tmp_path: Path, form: str) -> None:
    config = TINY.replace(num_layers=1)
    first, files = weights.mapped(config, form, tmp_path), sorted(tmp_path.iterdir())
    written = [path.read_bytes() for path in files]
    second = weights.mapped(config, form, tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == written
    assert sum(map(len, written)) > 100_000
    choice = SamplingConfig(temperature=0.0, max_tokens=4, eos_ids=())
    third = weights.in_memory(config, form)
    texts = [list(generate(model, [1, 2, 3], choice)) for model in (first, second, third)]
    assert texts[0] == texts[1] == texts[2]
    assert np.isfinite(first([[1, 2, 3]]).numpy().astype(np.float32)).all()


def test_no_room_for_a_mapped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ROOM", 1 << 60)
    with pytest.raises(InputError, match="NN_BENCH_CACHE names another folder"):
        weights.mapped(TINY, "q8_0", tmp_path)
    assert list(tmp_path.iterdir()) == []
