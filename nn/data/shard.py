"""Token files: a 4096-byte JSON header, then tokens as little-endian uint16 (uint32 for large vocabularies).

Every document is followed by the end-of-text token.  A file is written aside and renamed, so it is whole or
absent; opening one maps it into memory and refuses it, by name, if it is longer or shorter than promised.

    info = write_tokens("train.tokens", documents, tokenizer)
    shard = TokenShard("train.tokens")              # shard.tokens[i], len(shard), shard.info.text_bytes"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nn.data.documents import Document
from nn.data.tokenizer import Tokenizer
from nn.errors import InputError
from nn.files import replacing

HEADER_BYTES = 4096     # one memory page: the tokens behind it are aligned
FORMAT = "cuda-nn tokens 1"
_AGAIN = "delete the file and write it again"
_BATCH = 8 << 20        # characters tokenized at a time: enough to occupy every core, little memory


@dataclass(frozen=True)
class ShardInfo:
    """What the header of a token file holds."""

    count: int          # tokens, end-of-text tokens included
    documents: int      # documents, hence end-of-text tokens
    text_bytes: int     # UTF-8 bytes of the text, what bits per byte divide by
    vocab_size: int     # of the tokenizer; every token is below it
    eos_id: int         # the end-of-text token
    dtype: str          # "uint16" or "uint32"
    sha256: str         # of the tokens as they lie in the file


class TokenShard:
    """A token file, memory-mapped: `.tokens` is a read-only 1-D array, fetched from the disk when used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.info = _read_header(self.path)
        self.tokens = np.memmap(self.path, _stored(self.info.dtype), "r", HEADER_BYTES, (self.info.count,))

    def __len__(self) -> int:
        return self.info.count

    def verify(self) -> None:
        """Read all tokens and compare their hash: finds damage that leaves the length as it was."""
        if hashlib.sha256(self.tokens.data).hexdigest() != self.info.sha256:
            raise InputError(f"{self.path}: not the tokens that were written (their hash differs); {_AGAIN}")


def write_tokens(path: str | os.PathLike[str], documents: Iterable[Document],
                 tokenizer: Tokenizer) -> ShardInfo:
    """Tokenize documents into a token file, with the end-of-text token after each."""
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    info = ShardInfo(0, 0, 0, tokenizer.vocab_size, tokenizer.eos_id, dtype, "")
    digest = hashlib.sha256()
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(b" " * HEADER_BYTES)
        for text, ids in _tokenized(documents, tokenizer):
            data = np.array([*ids, tokenizer.eos_id], _stored(dtype)).tobytes()
            file.write(data)
            digest.update(data)
            info = replace(info, count=info.count + len(ids) + 1, documents=info.documents + 1,
                           text_bytes=info.text_bytes + len(text.encode()))
        if not info.documents:
            raise InputError(f"{path}: there are no documents to write; give some text")
        info = replace(info, sha256=digest.hexdigest())
        file.seek(0)
        file.write(json.dumps({"format": FORMAT, **asdict(info)}).encode().ljust(HEADER_BYTES - 1) + b"\n")
    return info


def _stored(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _tokenized(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    for batch in _batches(documents):
        yield from zip(batch, tokenizer.encode_batch(batch), strict=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for _, text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_header(path: Path) -> ShardInfo:
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; give a token file") from None
    info = _parse_header(path, header)
    promised = HEADER_BYTES + info.count * np.dtype(info.dtype).itemsize
    if size != promised:
        raise InputError(f"{path}: {size:,} bytes where its header promises {promised:,}; {_AGAIN}")
    return info


def _parse_header(path: Path, header: bytes) -> ShardInfo:
    try:
        fields = json.loads(header)
        if fields.pop("format") != FORMAT or len(header) != HEADER_BYTES:
            raise ValueError
        info = ShardInfo(**fields)
        if info.dtype not in ("uint16", "uint32") or type(info.count) is not int or info.count < 1:
            raise ValueError
        return info
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = f"not a token file (\"{FORMAT}\"), or cut off in its header"
        raise InputError(f"{path}: {reason}; {_AGAIN}") from None
