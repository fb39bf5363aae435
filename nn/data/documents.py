"""Text to learn from: a source becomes a list of named documents, the same list on every machine.

    "stdlib"        source code of the running Python's standard library: real text, needs no download
    a folder        every text file in it, one document each; its .jsonl files are read as below
    FILE.jsonl      one JSON object per line; its "text" (or another key) is a document
    any other file  consecutive pieces of at most 16 Ki characters, FILE#0000 and so on

Files are ordered by name and documents split by a hash of their names, so that neither depends on the
locale or the file system.

Try: python -c "from nn.data import *; print(*map(len, split(read_documents('stdlib'))))" """

import hashlib
import json
import logging
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from nn.errors import InputError

log = logging.getLogger("nn.data")

PIECE = 16 << 10  # characters of a document cut from one long file

# Installed packages differ between machines; tests and code-page tables are long and say little; the
# others are applications, or text that has nothing to do with Python.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "encodings", "idlelib", "lib2to3",
                "turtledemo", "pydoc_data"}
_GENERATED = ("_sysconfigdata", "config-")      # written when Python is built, with that machine's paths
_GIVE = "give a readable text file, a folder of them, a .jsonl file, or \"stdlib\""


class Document(NamedTuple):
    """A text and a name that is unique in its corpus and independent of where the corpus lies."""

    name: str
    text: str


Parts = tuple[list[Document], list[Document]]   # train, held out


def read_documents(source: str | os.PathLike[str], *, key: str = "text",
                   note: Callable[[str], object] = log.warning) -> list[Document]:
    """The documents of a source, files ordered by name, those without text left out.

    `key` names the text in a JSONL object.  `note` is told, in one line, how many files were skipped."""
    skipped: Counter[str] = Counter()
    found = [document for document in _read(source, key, skipped) if document.text]
    if skipped:
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items()))
        note(f"data: {source}: skipped {reasons}")
    if not found:
        raise InputError(f"data: {source}: no text in it; {_GIVE}")
    return found


def data_hash(documents: Iterable[Document]) -> str:
    """SHA-256 over names and texts, ordered by name: the same documents give the same, however they came."""
    digest = hashlib.sha256()
    for name, text in sorted(documents):
        for part in (_name_bytes(name), text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)       # "ab", "c" is not "a", "bc"
    return digest.hexdigest()


def split(documents: Iterable[Document], held_out_fraction: float = 0.05) -> Parts:
    """(train, held_out) by a hash of the names: a document's side does not depend on what else there is.

    Too few documents for both sides to get one: the document nearest to the border is cut in two."""
    if not 0 < held_out_fraction < 1:
        raise InputError(f"held_out_fraction: {held_out_fraction}; give a share between 0 and 1")
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if _place(document) < held_out_fraction else train).append(document)
    return (train, held_out) if train and held_out else _share_one(train, held_out, held_out_fraction)


def pieces(document: Document, size: int = PIECE) -> list[Document]:
    """Consecutive parts of at most `size` characters, cut after a blank line, else a line, else anywhere."""
    name, text = document
    ends = [0]
    while ends[-1] < len(text):
        ends.append(_break(text, ends[-1], ends[-1] + size))
    return [Document(f"{name}#{i:04}", text[a:b]) for i, (a, b) in enumerate(pairwise(ends))]


def _break(text: str, begin: int, end: int) -> int:
    if end >= len(text):
        return len(text)
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, begin, end)
        if found >= 0:
            return found + len(mark)
    return end


def _place(document: Document) -> float:
    """A place in [0, 1), uniform over names: first one of twenty buckets, then a place within it."""
    value = int.from_bytes(hashlib.sha256(_name_bytes(document.name)).digest()[:4], "big")
    return (value % 20 + value / 2**32) / 20


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")      # file names need not be UTF-8


def _share_one(train: list[Document], held_out: list[Document], fraction: float) -> Parts:
    """One side is empty: the document nearest to it gives it a part, as long as its share of all the text."""
    total = sum(len(text) for _, text in train + held_out)
    if held_out:
        name, text = max(held_out, key=_place)
        border = min(len(text), max(1, round((1 - fraction) * total)))
    elif train:
        name, text = min(train, key=_place)
        border = max(0, len(text) - max(1, round(fraction * total)))
    else:
        raise InputError("documents: there are none to split; give at least one")
    if len(train) + len(held_out) == 1:     # then neither side may take it all
        if len(text) < 2:
            raise InputError(f"data: {name}: one character cannot be split in two parts; give more text")
        border = min(max(border, 1), len(text) - 1)
    border = text.rfind("\n", 0, border) + 1 or border      # the start of that line, unless it is the first
    return (_replace(train, name, Document(f"{name}#head", text[:border])),
            _replace(held_out, name, Document(f"{name}#tail", text[border:])))


def _replace(documents: list[Document], name: str, part: Document) -> list[Document]:
    return [document for document in documents if document.name != name] + [part] * bool(part.text)


def _read(source: str | os.PathLike[str], key: str, skipped: Counter[str]) -> Iterable[Document]:
    if source == "stdlib":
        return _read_stdlib(Path(sysconfig.get_path("stdlib")), skipped)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, key, skipped)
    if _is_jsonl(path):
        return _read_jsonl(path, path.name, key)
    return pieces(Document(path.name, _text(path, _bytes(path))))


def _read_stdlib(root: Path, skipped: Counter[str]) -> Iterator[Document]:
    import tokenize
    for path in _files(root, lambda name: name in _NOT_LIBRARY or name.startswith(_GENERATED)):
        if path.suffix == ".py":
            try:
                with tokenize.open(path) as file:       # in the encoding that the file itself declares
                    yield Document(path.relative_to(root).as_posix(), file.read())
            except (SyntaxError, UnicodeDecodeError):
                skipped["in an unknown encoding"] += 1
            except OSError as error:
                raise _unreadable(path, error) from None


def _read_folder(root: Path, key: str, skipped: Counter[str]) -> Iterator[Document]:
    def leave_out(name: str) -> bool:
        if name.startswith("."):
            skipped["hidden"] += 1
        return name.startswith(".") or name == "__pycache__"

    for path in _files(root, leave_out):
        name = path.relative_to(root).as_posix()
        if _is_jsonl(path):
            yield from _read_jsonl(path, name, key)
        elif (text := _text_or_none(path)) is None:
            skipped["not UTF-8 text"] += 1
        else:
            yield Document(name, text)


def _files(root: Path, leave_out: Callable[[str], bool]) -> list[Path]:
    """Every file below `root`, ordered by name; `leave_out` refuses files and folders.  Follows links."""
    def fail(error: OSError) -> None:
        raise _unreadable(error.filename, error)

    found: list[Path] = []
    visited: set[str] = set()       # a link may lead back up
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not leave_out(name))
        found += [Path(folder, name) for name in files if not leave_out(name)]
    return sorted(found, key=lambda path: _name_bytes(path.relative_to(root).as_posix()))


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _read_jsonl(path: Path, name: str, key: str) -> Iterator[Document]:
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        if line.strip():
            yield Document(f"{name}:{number}", _field(line, key, where=f"data: {path}:{number}"))


def _field(line: bytes, key: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: a JSON {type(record).__name__}; give an object with the key \"{key}\"")
    text = record.get(key)
    if not isinstance(text, str):
        others = [name for name, value in record.items() if isinstance(value, str)]
        raise InputError(f"{where}: no text under the key \"{key}\"; the keys with text are {others}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"character {error.start} is half of a surrogate pair; write both halves"
        raise InputError(f"{where}: {reason}") from None
    return text


def _text(path: Path, data: bytes) -> str:
    try:
        if 0 not in data:
            return data.decode("utf-8-sig")     # a byte-order mark is not text
        what, offset = "a zero byte", data.index(0)
    except UnicodeDecodeError as error:
        what, offset = f"byte 0x{data[error.start]:02x}", error.start
    raise InputError(f"data: {path}: not UTF-8 text ({what} at offset {offset}); convert it (iconv -t UTF-8)")


def _text_or_none(path: Path) -> str | None:
    if not path.is_file() or 0 in _bytes(path, limit=8192):     # a pipe; or binary, no need to read all of it
        return None
    try:
        return _text(path, _bytes(path))
    except InputError:
        return None


def _bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: OSError) -> InputError:
    return InputError(f"data: {path}: {(error.strerror or str(error)).lower()}; {_GIVE}")
