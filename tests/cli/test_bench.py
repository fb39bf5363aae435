"""cuda-nn bench cpu, train, decode, startup: rows, their fields, what is said of wrong options.  Tiny sizes;
nothing here asserts a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn.backends import native
from nn.bench import models, startup, suites, weights
from nn.bench.report import OURS
from nn.bench.runs import Contender, Policy, Result, in_turns, workers
from nn.errors import InputError
from nn.generate import SamplingConfig, generate
from nn.models.presets import TINY

QUICK = ("--samples", "1", "--seconds", "0", "--threads", "1", "--peers", "none", "--json")
REQUIRED = {"name", "library", "dtype", "threads", "low", "high", "samples", "disturbed", "peak_rss_mb",
            "date", "machine"}


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


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
        assert REQUIRED | {speed} <= row.keys()
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
        if not native.missing():
            assert row["percent_of_ceiling"] > 0
            assert row["ceiling"] in ("read", "multiply-adds")
    ceilings = [row for row in rows if row["library"] == "ceiling"]
    assert bool(ceilings) == (native.missing() is None)
    assert all(row["rate"] > 0 for row in ceilings)


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


def test_disturbed_samples_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.0, 0.3, 0.0, 0.0])

    class Stand:
        contender, tasks, error = Contender("x", ""), ["a"], ""

        def sample(self, task: str, least: float) -> dict[str, Any]:
            return {"seconds": 1.0, "others": next(shares)}

        def drop(self, task: str) -> None: ...

    (found,) = in_turns([Stand()], "a", Policy(samples=3))         # type: ignore[list-item]
    assert (len(found.samples), found.disturbed, found.noisy) == (3, 2, False)


def test_a_machine_that_is_never_quiet_gives_noisy_rows() -> None:
    class Stand:
        contender, tasks, error = Contender("x", ""), ["a"], ""
        calls = 0

        def sample(self, task: str, least: float) -> dict[str, Any]:
            self.calls += 1
            return {"seconds": float(self.calls), "others": 1.0 / self.calls}

        def drop(self, task: str) -> None: ...

    (found,) = in_turns([Stand()], "a", Policy(samples=3, retries=4))      # type: ignore[list-item]
    assert found.noisy
    assert sorted(found.samples) == [3.0, 4.0, 5.0]                # the least disturbed ones


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
