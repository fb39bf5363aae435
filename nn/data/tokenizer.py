"""Text to token numbers and back, exactly: plain bytes, or byte-level BPE (Sennrich et al. 2016, on bytes as
in GPT-2), trained and run by the `tokenizers` library, which is imported where it is used.

    tokenizer = train_bpe(texts, vocab_size=2048)       # tokenizer.decode(tokenizer.encode("text")) == "text"
    tokenizer.save("tokenizer.json");                   load_tokenizer("tokenizer.json")

Text that spells a special token, such as <|endoftext|>, is text: only `encode(text, specials=True)` makes the
token itself of it."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nn.errors import InputError
from nn.files import replacing

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")    # in other people's files

# Pieces that merges do not cross.  Bytes per token with 2,048 tokens on the Python standard library (8.3 MB
# to train on, 463 KB to measure on) and, in brackets, on prose (pydoc's topics, half and half):
#   GPT-2 3.22 (3.46) -> cl100k 3.22 (3.47) -> a line end and the next line's indentation as one piece 3.29
#   (3.49) -> joined to the signs before it 3.41 (3.54) -> a word keeps a space and a sign before it 3.42
#   (3.57, used).  Single digits: the same.  A space after a sign: 3.44 (3.54).
PATTERN = "|".join((
    r" ?[^\s\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",              # a word, with a space and a sign before it
    r" ?\p{N}{1,3}",                                     # up to three digits
    r" ?[^\s\p{L}\p{M}\p{N}]+(?:[ \t]*[\r\n]\s*)?",      # signs, and a line end with the indentation after it
    r"[ \t]*[\r\n]\s*",                                  # a line end with the indentation after it
    r" +(?= )",                                          # spaces; the last one goes to the next piece
    r"\s+",
))


class Tokenizer(Protocol):
    """What the rest of the program needs of a tokenizer.  Token numbers are 0 .. vocab_size − 1."""

    vocab_size: int
    eos_id: int         # the token that ends a text

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Token numbers; with `specials`, the names of special tokens in the text become those tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of many texts, on every core."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD, special tokens nothing."""

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for, maybe a part of a character; a special token stands for nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load_tokenizer` reads."""


class _TableTokenizer(ABC):
    """What follows from a table of every token's bytes and the names of the special tokens."""

    def __init__(self, table: list[bytes], specials: Mapping[str, int], eos_id: int) -> None:
        self._table, self.specials, self.eos_id = table, dict(specials), eos_id
        self.vocab_size = len(table)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of many texts, special tokens spelt out."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        if not specials:
            return self.encode_batch([text])[0]
        names = sorted(self.specials, key=len, reverse=True)        # the longest that fits
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        plain = self.encode_batch(parts[0::2])
        between = [[self.specials[name]] for name in parts[1::2]] + [[]]
        return [*chain.from_iterable(chain.from_iterable(zip(plain, between, strict=True)))]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._table):
            raise InputError(f"id: {id}; this tokenizer's tokens are 0 to {len(self._table) - 1}")
        return self._table[id]


class ByteTokenizer(_TableTokenizer):
    """Token b is byte b; then padding 256, beginning of text 257 and end of text 258."""

    def __init__(self) -> None:
        table = [bytes([b]) for b in range(256)] + [b""] * 3
        super().__init__(table, {"<|pad|>": 256, "<|bos|>": 257, END_OF_TEXT: 258}, eos_id=258)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(_utf8(text)) for text in texts]

    def save(self, path: str | os.PathLike[str]) -> None:
        _write(path, json.dumps({"version": "1.0", "model": {"type": "bytes"}}) + "\n")


class BPETokenizer(_TableTokenizer):
    """Byte-level BPE around a `tokenizers.Tokenizer`, from `train_bpe` or `load_tokenizer`."""

    def __init__(self, backend: "tokenizers.Tokenizer", eos: str = END_OF_TEXT) -> None:
        added = backend.get_added_tokens_decoder()
        specials = {token.content: id for id, token in added.items() if token.special}
        if eos not in specials:
            raise InputError(f"eos: {eos!r} is not a special token here; give one of {sorted(specials)}")
        backend.encode_special_tokens = True    # the library's words for: text that spells one is text
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        table = _table(backend.get_vocab(with_added_tokens=False), added)
        super().__init__(table, specials, specials[eos])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            _utf8(text)
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def save(self, path: str | os.PathLike[str]) -> None:
        _write(path, self._backend.to_str(pretty=True) + "\n")


def train_bpe(texts: Iterable[str], vocab_size: int, *, max_chars: int = 64 << 20) -> BPETokenizer:
    """Learn merges: 256 bytes, then merges in the order learnt, then <|endoftext|>.  Deterministic.

    `vocab_size` counts all of them; there are fewer if no pair is left that occurs twice.  If the texts have
    more than `max_chars` characters, every n-th is used: a million characters take 0.4 s on two cores, and
    merges learnt from an eighth of the standard library cost only 4 % more tokens than those from all."""
    from tokenizers import AddedToken, pre_tokenizers, trainers
    if vocab_size < 257:
        raise InputError(f"vocab_size: {vocab_size}; give 257 or more (256 bytes and {END_OF_TEXT})")
    everything = list(texts)
    chosen = everything[::max(1, -(-sum(map(len, everything)) // max_chars))]
    for text in chosen:
        _utf8(text)
    backend = _untrained()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(chosen, trainer, length=len(chosen))
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return BPETokenizer(backend)


def _untrained() -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    return backend


def load_tokenizer(path: str | os.PathLike[str], *, eos: str | None = None) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder: ours, or byte-level BPE in Hugging Face's format.

    `eos` is the name of the token that ends a text, where the file has none of the usual names."""
    file = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
    text = _read(file)
    try:
        content = json.loads(text)
        kind = content["model"]["type"]
    except (ValueError, TypeError, KeyError):
        reason = "not JSON with a \"model\" and its \"type\""
        raise InputError(f"tokenizer: {file}: {reason}; give a {FILE_NAME}") from None
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "BPE":
        raise InputError(f"tokenizer: {file}: a {kind} model; give one for bytes or byte-level BPE")
    return _load_bpe(file, content, eos)


def _load_bpe(file: Path, content: dict[str, Any], eos: str | None) -> BPETokenizer:
    import tokenizers
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:      # the library raises nothing more specific
        way_out = "the file is damaged, or needs a newer tokenizers library"
        raise InputError(f"tokenizer: {file}: {error}; {way_out}") from None
    for token in content.get("added_tokens") or []:     # renumbered by the library if the vocabulary has gaps
        if backend.token_to_id(token["content"]) != token["id"]:
            reason = f"{token['content']!r} has number {token['id']}, where the vocabulary does not end"
            raise InputError(f"tokenizer: {file}: {reason}; put the token into the vocabulary, too")
    names = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    try:
        return BPETokenizer(backend, eos or next((name for name in _END_NAMES if name in names), END_OF_TEXT))
    except InputError as error:
        raise InputError(f"tokenizer: {file}: {error}") from None


def byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins for bytes: itself where Latin-1 shows it, else the next code point from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _table(vocab: Mapping[str, int], added: Mapping[int, Any]) -> list[bytes]:
    """Every token's bytes.  Numbers that a vocabulary leaves free stand for nothing."""
    alphabet = byte_alphabet()
    table = [b""] * (1 + max([*vocab.values(), *added]))
    for token, id in vocab.items():
        if id not in added:
            try:
                table[id] = bytes(alphabet[char] for char in token)
            except KeyError:
                reason = f"token {token!r} is not in the byte alphabet"
                raise InputError(f"{reason}; give byte-level BPE") from None
    for id, token in added.items():
        table[id] = b"" if token.special else token.content.encode()
    return table


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:     # what Python makes of command-line bytes that are not UTF-8
        reason = f"character {error.start} ({text[error.start]!r}) is half of a surrogate pair"
        raise InputError(f"text: {reason}; give valid Unicode") from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"tokenizer: {file}: {reason}; give a {FILE_NAME} or a folder with one") from None
    except UnicodeDecodeError:
        raise InputError(f"tokenizer: {file}: not UTF-8 text; give a {FILE_NAME}") from None


def _write(path: str | os.PathLike[str], text: str) -> None:
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
