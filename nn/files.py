"""Files that are either whole or absent: written aside, flushed to the disk, then renamed.

    with replacing(path) as temporary: temporary.write_text("...")      # path appears complete, or not at all
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nn.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write, file or folder: takes `path`'s place if the block succeeds, else goes."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def sync(path: Path) -> None:
    """Force a file's contents, or a folder's list of names, onto the disk."""
    posix = os.name == "posix"
    if path.is_dir() and not posix:      # elsewhere a folder cannot be opened, nor needs to be
        return
    descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)      # Windows flushes what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, present or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder.  The caller sees to it that nobody else writes there."""
    for path in folder.glob(".tmp-*"):
        remove(path)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if the file holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value
