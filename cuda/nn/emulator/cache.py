"""The cache folder: what is built once and kept, under a hash of everything that it was made from.

    cache.entry("modules", key, make)     # the folder of that entry; make(folder) fills it where there is
    none

The folder is $CUDA_NN_CACHE, else $XDG_CACHE_HOME/cuda-nn, else ~/.cache/cuda-nn.  It may be deleted at any
time.
Processes and threads may build at once: an entry is made under a lock, in a folder beside its place, and then
renamed."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cuda.nn.emulator.errors import EmulatorError

KEPT_DAYS = 30  # an entry that nobody used for so long goes


def root() -> Path:
    """The cache folder.  Its name comes from the environment at every call."""
    if given := os.environ.get("CUDA_NN_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "cuda-nn"


def digest(parts: Iterable[str | bytes]) -> str:
    """A hash of all parts and of where each ends."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def entry(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of an entry.  `make` gets an empty folder and fills it; what it raises leaves no entry."""
    place = root() / kind / key
    if _used(place):
        return place
    make_folder(place.parent)
    with _lock(kind, key):
        if _used(place):
            return place
        with tempfile.TemporaryDirectory(prefix=".making-", dir=place.parent) as folder:
            made = Path(folder) / "entry"
            made.mkdir()
            make(made)
            with contextlib.suppress(FileExistsError):
                made.rename(place)
    return place


def has(kind: str, key: str) -> bool:
    """Whether the entry is there."""
    return (root() / kind / key).is_dir()


def tidy(kind: str) -> None:
    """Delete the entries that nobody used for KEPT_DAYS."""
    oldest = time.time() - KEPT_DAYS * 86400
    for place in (root() / kind).glob("*"):
        with contextlib.suppress(OSError):
            if place.stat().st_mtime < oldest:
                shutil.rmtree(place)


def _used(place: Path) -> bool:
    """Whether the entry is there; marks it as used now."""
    try:
        os.utime(place)
    except PermissionError:
        return True  # somebody else's cache, readable only
    except OSError:
        return False
    return True


def make_folder(folder: Path) -> None:
    """Make a folder of the cache; EmulatorError where it, or a file in it, cannot be made."""
    try:
        (root() / "locks").mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EmulatorError(
            f"cache folder {folder} cannot be made or written to ({error.strerror}); name another one in "
            "CUDA_NN_CACHE"
        ) from None


@contextlib.contextmanager
def _lock(kind: str, key: str) -> Iterator[None]:
    """One of 64 locks: enough that two builds seldom wait for each other without need, and few files."""
    path = root() / "locks" / f"{kind}-{int(key[:2], 16) % 64:02}"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file closes, also when the process dies
        yield
