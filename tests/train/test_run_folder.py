"""Run folders: what is in them, who may write there, and which one is the newest."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nn.config import load
from nn.errors import InputError
from nn.train import RunFolder, TrainConfig, newest_run, preset, train
from nn.train.machine import git_commit
from nn.train.run_folder import load_config


def test_a_new_run_gets_a_folder_named_after_data_and_time(make_config, tmp_path):
    config = replace(make_config(), run="")
    with RunFolder.create(config) as first, RunFolder.create(config) as second:
        assert first.path.parent == tmp_path / "runs"
        assert re.fullmatch(r"text-\d{8}-\d{6}", first.path.name)
        assert second.path != first.path


def test_the_configuration_is_stored_whole(make_config):
    config = make_config()
    with RunFolder.create(config) as run:
        assert load(run.path / "config.yaml", TrainConfig) == config
        assert load_config(run.path) == config
    with RunFolder.open(run.path) as again:
        assert again.config == config


def test_a_moved_run_knows_its_new_place(make_config, tmp_path):
    with RunFolder.create(make_config()) as run:
        pass
    moved = run.path.rename(tmp_path / "elsewhere")
    with RunFolder.open(moved) as again:
        assert again.config.run == str(moved)


def test_an_existing_run_is_not_overwritten(make_config):
    config = make_config()
    with RunFolder.create(config) as run:
        pass
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        RunFolder.create(replace(config, steps=99))
    assert (run.path / "config.yaml").read_bytes() == before
    with RunFolder.open(run.path):      # and its lock was not kept
        pass


def test_two_runs_never_share_a_folder(make_config):
    config = make_config()
    with RunFolder.create(config) as run:
        for attempt in (lambda: RunFolder.create(config), lambda: RunFolder.open(run.path)):
            with pytest.raises(InputError, match=f"being trained by process {os.getpid()}; wait"):
                attempt()
    RunFolder.open(run.path).close()


def test_the_lock_holds_between_processes_and_ends_with_them(make_config):
    config = make_config()
    with RunFolder.create(config) as run:
        pass
    code = ("import sys; from nn.train import RunFolder; run = RunFolder.open(sys.argv[1]);"
            "print('locked', flush=True); sys.stdin.read()")
    child = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True)
    try:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {child.pid}"):
            RunFolder.open(run.path)
    finally:
        child.kill()
        child.wait()
    RunFolder.open(run.path).close()


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, path):
    with pytest.raises(InputError, match="holds no run"):
        RunFolder.open(tmp_path / path)


def test_the_newest_run_is_the_one_used_last(make_config, tmp_path):
    runs = tmp_path / "runs"
    for name in ("runs/a", "runs/b", "runs/c"):
        RunFolder.create(make_config(run=name)).close()
    assert newest_run(runs) == runs / "c"
    os.utime(runs / "c" / ".lock", ns=(0, 0))
    RunFolder.open(runs / "a").close()
    assert newest_run(runs) == runs / "a"


def test_without_any_run_there_is_no_newest(tmp_path):
    (tmp_path / "runs" / "not a run").mkdir(parents=True)
    for runs in (tmp_path / "runs", tmp_path / "absent"):
        with pytest.raises(InputError, match="no run in"):
            newest_run(runs)


def test_the_manifest_tells_every_start(make_config):
    with RunFolder.create(make_config(seed=17)) as run:
        run.record_start(0, "abc")
    with RunFolder.open(run.path) as run:
        run.record_start(40, "abc")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["seed"] == 17
    assert manifest["data_hash"] == "abc"
    assert [start["step"] for start in manifest["starts"]] == [0, 40]
    start = manifest["starts"][0]
    assert start["command"] == sys.argv
    assert set(start["versions"]) >= {"python", "numpy", "cuda-nn"}
    assert start["machine"]["cpu"]
    assert start["machine"]["usable_cores"] >= 1
    assert start["date"].endswith("+00:00")
    assert os.uname().nodename not in json.dumps(start["machine"])


def test_the_commit_is_that_of_the_source_or_none():
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", commit)


def test_leftovers_of_killed_writers_are_removed(make_config):
    with RunFolder.create(make_config()) as run:
        pass
    (run.path / ".tmp-1-config.yaml").write_text("half")
    (run.path / ".tmp-1-tokens").mkdir()
    with RunFolder.open(run.path):
        assert not list(run.path.glob(".tmp-*"))


def test_a_run_whose_text_cannot_be_read_leaves_nothing(tmp_path):
    """The next --resume must not find it."""
    config = replace(preset("smoke"), data=str(tmp_path / "absent.txt"), runs=str(tmp_path / "runs"))
    with pytest.raises(InputError, match="absent.txt"):
        train(config)
    assert list((tmp_path / "runs").iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="absent.txt"):
        train(replace(config, run=str(mine)))
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
