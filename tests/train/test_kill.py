"""A run killed with SIGKILL at twenty random moments ends with the same bits as one that was left alone.

A moment is a random number of steps after a life has begun plus a random delay, which may fall into a step, a
line of metrics, a checkpoint or its clean-up; or, without any step, into the preparation of the data or the
reading of a checkpoint.  Every life is a process of its own."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nn.config import save
from nn.train import latest_valid
from nn.train.metrics import read_metrics

SOURCE = Path(__file__).parents[2]
LIFE = """
import logging, os, sys
import nn.train.job as job
from nn.config import load
from nn.train import Callback, TrainConfig

class Beat(Callback):
    def on_step(self, record):
        os.write(1, b"step\\n")

job.draw_loss = lambda folder: None          # slower than all the rest
os.write(1, b"born\\n")
config = load(sys.argv[1], TrainConfig)
resume = config.run if os.path.exists(config.run + "/config.yaml") else None
job.train(config, resume=resume, callbacks=[Beat()])
"""


def start(config_file):
    command = [sys.executable, "-c", LIFE, str(config_file)]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=SOURCE, env=one_thread)


def live(config_file, steps, delay):
    """One life, killed after so many steps and a delay."""
    with start(config_file) as child:
        for _ in range(1 + steps):
            child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
    return child.returncode


def write_config(tmp_path, make_config, name):
    config = make_config(run=name, steps=300, checkpoint_every=2, eval_every=25, keep_last=2, warmup=10)
    path = tmp_path / f"{name}.yaml"
    save(config, path)
    return path, Path(config.run)


def without_times(run):
    records = read_metrics(run / "metrics.jsonl")
    for record in records:
        del record["tokens_per_second"]
    return records


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path, make_config):
    straight_config, straight = write_config(tmp_path, make_config, "straight")
    with start(straight_config) as child:
        child.communicate()
    assert child.returncode == 0

    config, run = write_config(tmp_path, make_config, "killed")
    rng = random.Random(20)
    moments = [(rng.randrange(1, 8), rng.uniform(0.0, 0.006)) for _ in range(14)]
    moments += [(0, rng.uniform(0.0, 0.04)) for _ in range(6)]
    rng.shuffle(moments)
    assert [live(config, *moment) for moment in moments] == [-9] * 20
    with start(config) as child:
        child.communicate()
    assert child.returncode == 0

    assert len(json.loads((run / "manifest.json").read_text())["starts"]) >= 15
    assert [record["step"] for record in without_times(run)] == list(range(1, 301))
    assert without_times(run) == without_times(straight)
    found, expected = latest_valid(run / "checkpoints"), latest_valid(straight / "checkpoints")
    assert found.step == expected.step == 300
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (found.path / name).read_bytes() == (expected.path / name).read_bytes(), name
    assert np.isfinite(found.tensors["model"]["norm.weight"]).all()
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in straight.iterdir())
    assert sorted(os.listdir(run / "checkpoints")) == sorted(os.listdir(straight / "checkpoints"))
