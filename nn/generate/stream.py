"""Tokens in, complete characters out.

A token may end in the middle of a character, and a stop string may span tokens.  A character is emitted
when its last byte is there; text that may be the beginning of a stop string is held back until that is
decided.  However the same bytes are split into tokens, the same text comes out.

Try: python -c "from nn.generate import TextStream; from nn.data import ByteTokenizer;
s = TextStream(ByteTokenizer()); print([s.push(b) for b in 'aé€'.encode()])" """

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """The part of a tokenizer that streaming needs."""

    def token_bytes(self, id: int, /) -> bytes: ...


class TextStream:
    """`push` each token, then `flush` once.  Bytes that cannot be UTF-8 become U+FFFD at once: all pushed
    together is bytes.decode(errors="replace")."""

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self.stopped = False  # a stop string was met; nothing more comes out
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token: int) -> str:
        """The text that this token completes; often empty."""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """What is still held back, at the end; an unfinished character becomes one U+FFFD."""
        text = self._emit(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _emit(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        # (end, start): the stop string completed first counts, or the result would depend on the split
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        cut = min(found)[1] if found else len(text) - self._beginning(text)
        self.stopped, self._held = bool(found), "" if found else text[cut:]
        return text[:cut]

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)


def text_pieces(tokens: Iterable[int], stream: TextStream) -> Iterator[str]:
    """The text of the tokens, piece by piece, none empty; takes no further token once a stop string was
    met."""
    for token in tokens:
        if piece := stream.push(token):
            yield piece
        if stream.stopped:
            return
    if piece := stream.flush():
        yield piece
