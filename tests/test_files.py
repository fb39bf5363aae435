"""nn.files: whole or absent, whatever happens in between."""

import errno
import os
from pathlib import Path

import pytest

from nn.files import remove, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "box") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("1")
    assert names(tmp_path) == ["box"]


def write_half(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_flushed_before_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b))[1])
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert events[:2] == ["flush", "rename"]


def test_remove_takes_files_folders_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "x").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "y").write_text("1")
    for name in ("link", "folder", "missing"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["keep"]
    assert (tmp_path / "keep" / "x").exists()
