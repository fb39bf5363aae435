"""Every text comes back exactly; special tokens come only where they are asked for; files are checked."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise

import pytest

from nn.data import BPETokenizer, ByteTokenizer, load_tokenizer, read_documents, train_bpe
from nn.data.tokenizer import END_OF_TEXT, byte_alphabet
from nn.errors import InputError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for name, text in read_documents("stdlib") if name.startswith("json/")]


@pytest.fixture(scope="module")
def bpe(texts) -> BPETokenizer:
    return train_bpe(texts, 600)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return ByteTokenizer() if request.param == "bytes" else bpe


def random_texts(count: int) -> list[str]:
    """Every kind of character next to every other: spaces, accents, marks, CJK, emoji, controls."""
    rng = random.Random(0)
    kinds = [" ", "  ", "\n", "\r\n", "\t", "\r", "\x00", "\x0b", "\x0c", "\x85", "\u2028", "\u3000",
             "_", "'s", "def", "Self", "...", "):\n    ", "\U0010ffff", "\ufffd", "\ufeff", "1", "234567",
             "\U0001f469\u200d\U0001f467", "²", "½", "e\u0301", "नमस्ते", "ß", "漢字", "한글"]
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) if rng.random() < 0.3 else rng.choice(kinds)
                    for _ in range(rng.randrange(40))) for _ in range(count)]


# --- any tokenizer

def test_round_trip_is_exact(tokenizer, texts):
    for text in [*random_texts(400), *texts, "", " ", "    x", "\r\na\r\n", END_OF_TEXT]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert all(0 <= id < tokenizer.vocab_size for id in ids)


def test_batch_equals_one_by_one(tokenizer):
    texts = random_texts(50)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_specials_come_only_when_asked_for(tokenizer):
    text = f"a {END_OF_TEXT}{END_OF_TEXT} b{END_OF_TEXT}"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    ids = tokenizer.encode(text, specials=True)
    assert ids.count(tokenizer.eos_id) == 3
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "a  b"
    assert tokenizer.encode("a b", specials=True) == tokenizer.encode("a b")
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


def test_bytes_that_are_no_text_decode_to_the_replacement_character(tokenizer):
    first, second = ([id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == byte]
                     for byte in (b"\xc3", b"\xa9"))
    assert tokenizer.decode(first + second) == "é"
    assert tokenizer.decode(first) == tokenizer.decode(second) == "\ufffd"


def test_every_byte_has_a_token(tokenizer):
    table = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    assert {bytes([b]) for b in range(256)} <= set(table)
    proper = [token for token in table if token]
    assert len(set(proper)) == len(proper)


@pytest.mark.parametrize("id", [-1, 10**6])
def test_numbers_that_are_no_token_are_refused(tokenizer, id):
    with pytest.raises(InputError, match=f"id: {id}; .* tokens are 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([0, id])


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(InputError, match="text: character 1"):
        tokenizer.encode("a\udcff")


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = load_tokenizer(path)
        assert type(loaded) is type(tokenizer)
        assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        for text in [*random_texts(50), f"plain {END_OF_TEXT}"]:
            assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode(END_OF_TEXT, specials=True) == [tokenizer.eos_id]


# --- bytes

def test_byte_tokens_are_the_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 10]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (259, 258)
    assert tokenizer.encode(f"<|bos|>a<|pad|>{END_OF_TEXT}", specials=True) == [257, 97, 256, 258]


# --- byte-level BPE

def model(tokenizer: BPETokenizer, tmp_path) -> dict:
    tokenizer.save(tmp_path / "model.json")
    return json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["model"]


def test_training_merges_the_most_frequent_pair(tmp_path):
    """Counts es 9, est 9, lo 7, low 7, ew 6: worked out by hand."""
    words = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    merges = model(train_bpe(words, 257 + 5), tmp_path)["merges"]
    assert [tuple(pair) for pair in merges] == [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w"), ("e", "w")]


def test_encoding_applies_merges_by_rank(bpe, tmp_path):
    content = model(bpe, tmp_path)
    ranks = {tuple(pair): rank for rank, pair in enumerate(content["merges"])}

    def by_hand(word: str) -> list[int]:        # ASCII letters: their own stand-ins, and one piece
        parts = list(word)
        while True:
            rank, at = min(((ranks.get(pair, 10**9), i) for i, pair in enumerate(pairwise(parts))),
                           default=(10**9, 0))
            if rank == 10**9:
                return [content["vocab"][part] for part in parts]
            parts[at:at + 2] = [parts[at] + parts[at + 1]]

    rng = random.Random(1)
    words = ["".join(rng.choice("aabcdeeefnorst") for _ in range(rng.randrange(1, 15))) for _ in range(300)]
    words += ["decode", "encoder", "selfselfself", "return", "raise"]
    assert [bpe.encode(word) for word in words] == [by_hand(word) for word in words]
    assert sum(len(by_hand(word)) for word in words) < 0.8 * sum(map(len, words))       # merges took place


@pytest.mark.parametrize(("text", "expected"), [
    ("def f(self):\n        return x", ["def", " f", "(self", "):\n        ", "return", " x"]),
    ("a_name.append(12345)", ["a", "_name", ".append", "(", "123", "45", ")"]),
    ("x =  1\r\n\r\n\ty", ["x", " =", " ", " 1", "\r\n\r\n\t", "y"]),
    ("don't \"say\"  so.  ", ["don", "'t", ' "say', '"', " ", " so", ".", " ", " "]),
    ("नमस्ते दुनिया", ["नमस्ते", " दुनिया"]),
    ("#!---\n\n\n", ["#!---\n\n\n"]),
])
def test_pieces_that_merges_do_not_cross(bpe, text, expected):
    alphabet = byte_alphabet()
    found = [bytes(alphabet[char] for char in piece).decode()
             for piece, _ in bpe._backend.pre_tokenizer.pre_tokenize_str(text)]
    assert found == expected


def test_training_is_deterministic_even_between_processes(bpe, texts, tmp_path):
    train_bpe(texts, 600).save(tmp_path / "here.json")
    bpe.save(tmp_path / "before.json")
    script = ("import sys; from nn.data import *\n"
              "texts = [text for name, text in read_documents('stdlib') if name.startswith('json/')]\n"
              "train_bpe(texts, 600).save(sys.argv[1])")
    run_python(script, tmp_path / "there.json", PYTHONHASHSEED="7", TOKENIZERS_PARALLELISM="false")
    assert len({(tmp_path / f"{name}.json").read_bytes() for name in ("here", "before", "there")}) == 1


def test_vocabulary_has_the_size_asked_for_or_what_the_text_gives(bpe):
    assert (bpe.vocab_size, bpe.eos_id) == (600, 599)
    tiny = train_bpe(["abab", "abab", "xyz"], 1000)
    assert tiny.vocab_size == 256 + 2 + 1           # ab, abab; what occurs once is not merged
    assert train_bpe([], 257).vocab_size == 257
    assert tiny.decode(tiny.encode("anything")) == "anything"


def test_long_corpora_are_sampled_evenly(texts, tmp_path):
    total = sum(map(len, texts))
    train_bpe(texts, 400, max_chars=total // 3).save(tmp_path / "sampled.json")
    train_bpe(texts[::4], 400).save(tmp_path / "every_fourth.json")
    train_bpe(texts, 400, max_chars=total).save(tmp_path / "limit.json")
    train_bpe(texts, 400).save(tmp_path / "all.json")
    files = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert files["sampled"] == files["every_fourth"] != files["all"]
    assert files["limit"] == files["all"]


@pytest.mark.parametrize("size", [0, 256])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size):
    with pytest.raises(InputError, match=f"vocab_size: {size}; give 257 or more"):
        train_bpe(["text"], size)


def test_byte_alphabet_is_gpt2s():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert [alphabet[char] for char in "ĠĊaÿŃ"] == [32, 10, 97, 255, 173]


# --- other people's files

def added(id: int, content: str, special: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, "special": special, **flags}


def foreign(tmp_path, **changes):
    """A file as Hugging Face writes it, of byte-level BPE that knows "a", "b" and "ab"; number 3 is free."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    content = {"version": "1.0", **nothing,
               "added_tokens": [added(5, "</s>", special=True), added(6, "<tool>", special=False)],
               "pre_tokenizer": byte_level, "decoder": byte_level,
               "model": {"type": "BPE", "merges": ["a b"],
                         "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 4, "</s>": 5, "<tool>": 6}}}
    content.update(changes)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_byte_level_files_of_others_are_read(tmp_path):
    tokenizer = load_tokenizer(foreign(tmp_path))
    assert tokenizer.encode("ab a") == [4, 2, 0]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (5, 7)
    assert tokenizer.decode([4, 2, 6, 5, 3]) == "ab <tool>"
    assert tokenizer.encode("ab</s>a", specials=True) == [4, 5, 0]


def test_the_longest_special_token_wins(tmp_path):
    model = {"type": "BPE", "merges": [], "vocab": {"a": 0, "b": 1}}
    tokens = [added(2, "</s>", special=True), added(3, "</s>ab", special=True)]
    tokenizer = load_tokenizer(foreign(tmp_path, added_tokens=tokens, model=model))
    assert tokenizer.encode("a</s>abb</s>a", specials=True) == [0, 3, 1, 2, 0]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"added_tokens": []}, "not a special token here"),
    ({"added_tokens": [added(9, "<new>", special=True)]}, "'<new>' has number 9"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "a WordPiece model"),
    ({"model": {"type": "BPE", "vocab": {"▁a": 0, "</s>": 5, "<tool>": 6}, "merges": []}}, "'▁a' is not in"),
    ({"model": {"type": "BPE"}}, "the file is damaged"),
    ({"model": None}, 'not JSON with a "model"'),
])
def test_files_of_another_kind_are_refused_by_name(tmp_path, changes, reason):
    path = foreign(tmp_path, **changes)
    with pytest.raises(InputError, match=reason) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"tokenizer: {path}: ")
    assert "\n" not in str(error.value)


def test_unreadable_files_are_refused_by_name(bpe, tmp_path):
    whole = tmp_path / "whole.json"
    bpe.save(whole)
    (tmp_path / "cut.json").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "binary.json").write_bytes(b"\xff\x00")
    (tmp_path / "folder").mkdir()
    for name, reason in {"cut.json": "not JSON", "binary.json": "not UTF-8", "missing.json": "no such file",
                         "folder": "no such file"}.items():
        with pytest.raises(InputError, match=reason) as error:
            load_tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(InputError, match="eos: '<end>' is not a special token"):
        load_tokenizer(whole, eos="<end>")


# --- importing

def run_python(script: str, *arguments, **environment: str) -> str:
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=variables).stdout


def test_importing_loads_no_tokenizer_library_and_writes_no_environment():
    script = ("import os, sys; before = dict(os.environ)\n"
              "import nn.data; nn.data.ByteTokenizer().encode('a'); print('tokenizers' in sys.modules)\n"
              "nn.data.train_bpe(['a'], 257); print(dict(os.environ) == before)")
    assert run_python(script).split() == ["False", "True"]
