"""Checkpoints: exact, complete or absent, checked when read, and never in the way of the ones before."""

import builtins
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from nn.errors import InputError
from nn.train.checkpoint import checkpoints, latest_valid, load_checkpoint, save_checkpoint

SOURCE = Path(__file__).parents[2]


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((3, 5)).astype(np.float32),
        "half": rng.standard_normal((4, 2)).astype(ml_dtypes.bfloat16),
        "double": rng.standard_normal(7),
        "steps": np.asarray(12, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "turned": rng.standard_normal((6, 4)).astype(np.float16).T,
        "special": np.array([np.nan, np.inf, -0.0], np.float32),
        "name with \"quotes\" and ünïcode": np.arange(5, dtype=np.uint16),
        "flags": np.array([True, False]),
    }


def save(folder, step, seed=0, **options):
    tensors = {"model": arrays(seed), "optimizer": {"m": np.full(9, step, np.float32)}}
    return save_checkpoint(folder, step, tensors, {"loader": {"position": step}}, **options)


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_every_dtype_and_shape_comes_back_to_the_bit(tmp_path):
    path = save(tmp_path, 100)
    assert path.name == "step_000100"
    found = load_checkpoint(path)
    same_bits(found.tensors["model"], arrays())
    assert found.step == 100
    assert found.state == {"loader": {"position": 100}}
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_the_files_are_safetensors_as_that_library_understands_them(tmp_path):
    path = save(tmp_path, 1)
    same_bits(load_file(path / "model.safetensors"), arrays())
    header = int.from_bytes((path / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


def test_reading_works_with_pickle_disabled(tmp_path, monkeypatch):
    path = save(tmp_path, 1)

    def forbidden(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    load_checkpoint(path)


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in range(10, 70, 10):
        save(tmp_path, step, keep_last=2, best=20 if step >= 20 else None)
    assert sorted(checkpoints(tmp_path)) == [20, 50, 60]


def test_nothing_else_is_left_in_the_folder(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=1)
    assert os.listdir(tmp_path) == ["step_000003"]


def test_a_step_can_be_written_again(tmp_path):
    save(tmp_path, 5, seed=0)
    save(tmp_path, 5, seed=1)
    same_bits(load_checkpoint(tmp_path / "step_000005").tensors["model"], arrays(1))


def test_steps_from_a_future_that_was_refused_disappear_and_the_new_one_stays(tmp_path):
    save(tmp_path, 300, keep_last=1)
    save(tmp_path, 250, keep_last=1)
    assert sorted(checkpoints(tmp_path)) == [250]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_is_used(tmp_path, caplog, name, spoil):
    save(tmp_path, 10, seed=1)
    newest = save(tmp_path, 20, seed=2)
    spoil(newest / name)
    with pytest.raises(InputError, match=f"step_000020.*{name}.*(truncated|corrupted|changed|missing|JSON)"):
        load_checkpoint(newest)
    found = latest_valid(tmp_path)
    assert found.step == 10
    same_bits(found.tensors["model"], arrays(1))
    assert "step_000020" in caplog.text
    assert name in caplog.text


def test_every_single_truncation_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model": {"w": np.ones(3, np.float32)}}, {})
    for name in ("model.safetensors", "state.json"):
        whole = (path / name).read_bytes()
        for length in range(len(whole) - (name == "state.json")):
            (path / name).write_bytes(whole[:length])
            with pytest.raises(InputError, match=name):
                load_checkpoint(path)
        (path / name).write_bytes(whole)
    load_checkpoint(path)


def test_a_value_changed_within_state_json_is_noticed(tmp_path):
    path = save(tmp_path, 7)
    state = json.loads((path / "state.json").read_text())
    state["state"]["loader"]["position"] = 8
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"state\.json was changed"):
        load_checkpoint(path)


def test_all_damaged_is_an_error_not_a_new_beginning(tmp_path):
    for step in (1, 2):
        truncate(save(tmp_path, step) / "model.safetensors")
    with pytest.raises(InputError, match="2 checkpoints, all damaged"):
        latest_valid(tmp_path)


def test_no_checkpoint_is_none(tmp_path):
    assert latest_valid(tmp_path) is None
    assert latest_valid(tmp_path / "absent") is None


class FullDisk:
    """A file on a disk with room for so many bytes, all files together."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        fits = min(len(data), self.room[0])
        self.room[0] -= fits
        self.file.write(data[:fits])
        if fits < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fits

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.file.close()


@pytest.mark.parametrize("room", [0, 5, 500, 1050, 1100, 1300, 1370])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_nothing_half_written(tmp_path, monkeypatch, room):
    size = sum(file.stat().st_size for file in save(tmp_path, 1, seed=1).iterdir())
    assert room < size
    left = [room]

    def open_on_full_disk(path, mode="r", **options):
        file = builtins.open(path, mode, **options)         # noqa: SIM115 (the caller closes it)
        return FullDisk(file, left) if "w" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr("nn.train.checkpoint.open", open_on_full_disk, raising=False)
        with pytest.raises(OSError, match=r"step 2 not written .*No space left.*ones are intact") as caught:
            save(tmp_path, 2, keep_last=1)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["step_000001"]
    same_bits(latest_valid(tmp_path).tensors["model"], arrays(1))
    save(tmp_path, 2, seed=2)
    assert latest_valid(tmp_path).step == 2


@pytest.mark.parametrize("operation", ["fsync", "replace", "rename"])
def test_a_disk_that_fails_late_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, operation):
    """Some file systems report a full disk only when flushing or renaming."""
    save(tmp_path, 1, seed=1)
    save(tmp_path, 2, seed=2)

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2, seed=3)
    assert latest_valid(tmp_path).step == 2
    same_bits(latest_valid(tmp_path).tensors["model"], arrays(2))
    assert sorted(os.listdir(tmp_path)) == ["step_000001", "step_000002"]


LIMITED = """
import resource, sys
import numpy as np
from nn.train.checkpoint import save_checkpoint
folder = sys.argv[1]
save_checkpoint(folder, 1, {"model": {"w": np.ones(1000, np.float32)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(folder, 2, {"model": {"w": np.ones(100_000, np.float32)}}, {})
except OSError as error:
    print(error)
"""


def test_a_real_limit_on_file_size_leaves_the_earlier_checkpoint(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=SOURCE, check=True)
    assert "step 2 not written (File too large)" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert os.listdir(tmp_path) == ["step_000001"]
    np.testing.assert_array_equal(latest_valid(tmp_path).tensors["model"]["w"], np.ones(1000, np.float32))


def test_what_a_killed_writer_left_is_cleaned_by_the_next_save(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".tmp-99999-step_000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert latest_valid(tmp_path).step == 1
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_000001", "step_000002"]


def test_everything_is_flushed_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    """The order a power cut needs: files, their folder, then the name, then the folder that holds the
    name."""
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def replace(source, target):
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = save(tmp_path / "checkpoints", 3)
    files = {"model.safetensors", "optimizer.safetensors", "state.json"}
    at = events.index("rename")
    assert files <= set(events[:at])
    assert events[at - 1].endswith(path.name)
    assert events[at + 1] == "checkpoints"
