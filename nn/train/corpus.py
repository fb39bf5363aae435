"""The text of a run, ready to train on: tokenizer, token files, and what is known about the held-out part.

Everything lands in the run folder (`tokenizer.json`, `tokens/`), so that a resumed run reads the very same
tokens even if the source has changed since.

    corpus = prepare(config, run.path);  Loader(corpus.train, config.batch_size, config.seq_len)"""

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.data import (
    ByteTokenizer,
    Document,
    Tokenizer,
    TokenShard,
    data_hash,
    load_tokenizer,
    read_documents,
    split,
    train_bpe,
    write_tokens,
)
from nn.eval import compressed_bits_per_byte
from nn.files import read_json, replacing
from nn.train.config import TrainConfig

log = logging.getLogger("nn.train")


@dataclass(frozen=True)
class Corpus:
    """`info`: "data_hash" of all documents; "train" and "held_out" with the "documents", "bytes" and "tokens"
    of each; "gzip" and "xz", the bits per byte that these need for the held-out text."""

    tokenizer: Tokenizer
    train: TokenShard
    held_out: TokenShard
    info: dict[str, Any]

    @functools.cached_property
    def token_sizes(self) -> np.ndarray:
        """Bytes of text that each token id stands for; none for the end-of-text token."""
        ids = range(self.tokenizer.vocab_size)
        sizes = np.array([len(self.tokenizer.token_bytes(i)) for i in ids], np.int64)
        sizes[self.tokenizer.eos_id] = 0
        return sizes

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Bytes of text behind these tokens."""
        return int(self.token_sizes[np.asarray(tokens, np.int64)].sum())

    @property
    def bytes_per_token(self) -> float:
        """Of the training text: turns a loss in nats per token into bits per byte."""
        return self.train.info.text_bytes / self.train.info.count


def prepare(config: TrainConfig, folder: Path) -> Corpus:
    """Read, split, train the tokenizer, write the token files; or take what an earlier start of this run
    left."""
    if not (folder / "tokens" / "info.json").is_file():
        train, held_out = split(read_documents(config.data, note=log.warning), config.held_out_fraction)
        tokenizer = _tokenizer(config, train)
        tokenizer.save(folder / "tokenizer.json")
        _write_tokens(folder / "tokens", train, held_out, tokenizer)
    return load(folder)


def load(folder: Path) -> Corpus:
    """The corpus of an existing run folder."""
    tokens = folder / "tokens"
    info = read_json(tokens / "info.json")
    train, held_out = (TokenShard(tokens / f"{name}.tokens") for name in ("train", "held_out"))
    for shard in (train, held_out):
        shard.verify()
    return Corpus(load_tokenizer(folder / "tokenizer.json"), train, held_out, info)


def _tokenizer(config: TrainConfig, documents: list[Document]) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return train_bpe((document.text for document in documents), config.vocab_size)


def _write_tokens(folder: Path, train: list[Document], held_out: list[Document],
                  tokenizer: Tokenizer) -> None:
    """Both token files and what is known about them; the folder appears when all of it is there."""
    info: dict[str, Any] = {"data_hash": data_hash(sorted([*train, *held_out]))}
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, documents in [("train", train), ("held_out", held_out)]:
            shard = write_tokens(temporary / f"{name}.tokens", documents, tokenizer)
            info[name] = {"documents": shard.documents, "bytes": shard.text_bytes, "tokens": shard.count}
        info |= compressed_bits_per_byte("".join(document.text for document in held_out).encode())
        (temporary / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
