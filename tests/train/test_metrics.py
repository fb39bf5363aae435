"""metrics.jsonl: whole lines, each step once, cut back to where a run continues."""

import errno
import json
import os

import pytest

from nn.train.metrics import MetricsLog, read_metrics


def write(path, steps, after_step=0):
    with MetricsLog(path, after_step) as log:
        for step in steps:
            log.write({"step": step, "loss": 1.0 / step})


def steps(path):
    return [record["step"] for record in read_metrics(path)]


def test_one_line_per_step_as_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        assert steps(path) == [1]


@pytest.mark.parametrize("after", range(6))
def test_continuing_cuts_what_the_checkpoint_does_not_know(tmp_path, after):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4, 5])
    write(path, range(after + 1, 8), after_step=after)
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("tail", [b'{"step": 4, "lo', b"\x00\x00\x00", b'{"step": 4}', b"{]\n"])
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    with open(path, "ab") as file:
        file.write(tail)
    write(path, [4, 5], after_step=4)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    write(path, [1])
    assert steps(path) == [1]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    real = os.pwrite
    with MetricsLog(path) as log:
        log.write({"step": 1})
        with monkeypatch.context() as patch:
            calls = []

            def pwrite(descriptor, data, offset):
                calls.append(offset)
                if len(calls) == 1:
                    return real(descriptor, data[:5], offset)
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(OSError, match="No space left"):
                log.write({"step": 2})
        assert path.read_bytes() == b'{"step": 1}\n'
        log.write({"step": 2})
    assert steps(path) == [1, 2]
