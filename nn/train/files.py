"""Files that are either whole or absent: written aside, flushed to the disk, then renamed.

    with replacing(path) as temporary: temporary.write_text("...")    # path appears whole, or not at all"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Force a file's contents, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write: it takes `path`'s place if the block succeeds, and disappears if it
    fails."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a file or a folder, present or not; what cannot be deleted stays until the next clean-up."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder.  The caller holds the run's lock: nobody else is writing
    there."""
    for path in folder.glob(".tmp-*"):
        remove(path)
