"""Canonical token texts against the published normalizer, built from Hugging Face's tokenizers.

Characters are those of Unicode 3.2: to their tables, marks that came after version 9 are none."""

import unicodedata

import pytest
from tokenizers import Regex, normalizers

from nn.layers.memory.canonical import LONE_SPACE, normalized

THEIRS = normalizers.Sequence([
    normalizers.NFKC(), normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(),
    normalizers.Replace(Regex(r"[ \t\r\n]+"), " "), normalizers.Replace(Regex(r"^ $"), LONE_SPACE),
    normalizers.Strip(), normalizers.Replace(LONE_SPACE, " ")])


def theirs(text: str) -> str:
    return THEIRS.normalize_str(text) or text


@pytest.mark.parametrize("first", [*range(0x20, 0x3000, 0x400), 0xF900, 0xFC00])
def test_every_character(first: int) -> None:
    """Alone, and within a word"""
    for code in range(first, first + 0x400):
        if unicodedata.ucd_3_2_0.category(chr(code)) == "Cn":
            continue
        for text in (chr(code), f" A{chr(code)}B"):
            assert normalized(text) == theirs(text), f"{text!r}, U+{code:04X}"


TEXTS = [" ", "  ", "\n", " \t\r\n ", "", "ΟΔΥΣΣΕΥΣ", "İstanbul", "  Déjà\u00a0vu ", "ﬃ", "ｆｕｌｌ",
         "한국어", "नमस्ते", "\u200b", "é", "e\u0301", "a \n b"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert normalized(text) == theirs(text)
