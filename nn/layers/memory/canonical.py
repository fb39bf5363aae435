"""Token ids that mean the same word made one: "Apple", " apple" and "APPLE" share their n-grams.

    table = canonical_ids([tokenizer.decode([i]) for i in range(len(tokenizer))])       # [V], ids below V'"""

import re
import unicodedata
from collections.abc import Sequence

LONE_SPACE = "\ue000"      # a private character: no text has it, so a token that is one space survives
UNKNOWN = "\ufffd"         # what a decoder makes of bytes that are no character


def normalized(text: str) -> str:
    """NFKC, NFD, marks dropped, each character lower case, white space one space, none at the ends; text of
    which nothing is left stays as it was"""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    plain = "".join(c.lower() for c in plain if not unicodedata.category(c).startswith("M"))
    plain = re.sub(r"[ \t\r\n]+", " ", plain)
    plain = LONE_SPACE if plain == " " else plain
    return plain.strip().replace(LONE_SPACE, " ") or text


def canonical_ids(texts: Sequence[str], raw: Sequence[str] | None = None) -> tuple[int, ...]:
    """The canonical id of every token, numbered as they first appear.  texts: each token decoded; raw: its
    string in the vocabulary, which stands for it where decoding gives no character."""
    numbers: dict[str, int] = {}
    keys = (raw[i] if raw and UNKNOWN in text else text if UNKNOWN in text else normalized(text)
            for i, text in enumerate(texts))
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
