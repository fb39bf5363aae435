"""Streamed text equals decoding everything at once, for every way to split the same bytes into tokens."""

import itertools
import random

import pytest

from nn.generate import TextStream
from nn.generate.stream import text_pieces


class Pieces:
    """A tokenizer whose token i stands for the i-th piece of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, id):
        return self.pieces[id]


def streamed(pieces, stop=()):
    """(what each push gave, what flush gave)"""
    stream = TextStream(Pieces(pieces), stop)
    return [stream.push(i) for i in range(len(pieces))], stream.flush()


def text(pieces, stop=()):
    pushed, rest = streamed(pieces, stop)
    return "".join(pushed) + rest


def splits(data):
    """Every way to cut the bytes into non-empty pieces."""
    for cuts in itertools.product([False, True], repeat=max(0, len(data) - 1)):
        borders = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(data)]
        yield [data[a:b] for a, b in itertools.pairwise(borders)]


def random_split(data, rng):
    cuts = [rng.randint(0, len(data)) for _ in range(rng.randint(0, len(data) + 2))]
    borders = sorted([0, len(data), *cuts])
    return [data[a:b] for a, b in itertools.pairwise(borders)]  # some pieces are empty


@pytest.mark.parametrize("data", ["aé€🦊", "🦊🦊x", "\0\x7fß", "e\u0301\ufffd"])
def test_every_split_of_valid_text(data):
    for pieces in splits(data.encode()):
        assert text(pieces) == data


@pytest.mark.parametrize("data", [
    b"\xff\xfe", b"a\x80b", b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\xa6", b"\xf0\x28\x8c\xbc",
    b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xc3\xc3\xa9", b"\xf0\x9f\xe2\x82\xac",
    b"\xe2\x82\xe2\x82\xac\xf0",
])
def test_every_split_of_invalid_bytes(data):
    for pieces in splits(data):
        assert text(pieces) == data.decode("utf-8", errors="replace")


def test_random_unicode_and_random_bytes():
    rng = random.Random(0)
    for _ in range(2000):
        if rng.random() < 0.5:
            kinds = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0x10000, 0x10FFFF)]
            data = "".join(chr(rng.randint(*rng.choice(kinds))) for _ in range(rng.randrange(9))).encode()
        else:
            lead = b"\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x8a\xff\xed\xa0a"
            data = bytes(rng.choice([rng.randrange(256), rng.choice(lead)]) for _ in range(rng.randrange(13)))
        assert text(random_split(data, rng)) == data.decode("utf-8", errors="replace")


def test_a_character_comes_with_its_last_byte_and_no_replacement_before_it():
    pushed, rest = streamed([bytes([b]) for b in "a€🦊".encode()])
    assert pushed == ["a", "", "", "€", "", "", "", "🦊"]
    assert rest == ""


def test_an_invalid_byte_is_replaced_at_once_and_an_unfinished_one_at_the_end():
    assert streamed([b"\xff", b"\xe2", b"\x82", b"a"]) == (["\ufffd", "", "", "\ufffda"], "")
    assert streamed([b"\xe2", b"\x82"]) == (["", ""], "\ufffd")


def cut(data, stop):
    """The text before the stop string that is completed first."""
    for end in range(len(data) + 1):
        starts = [end - len(s) for s in stop if data[:end].endswith(s)]
        if starts:
            return data[: min(starts)]
    return data


@pytest.mark.parametrize(("data", "stop"), [
    ("abcab", ["ca"]), ("aabaab", ["aab"]), ("ababac", ["abac"]), ("abcd", ["abcd", "bc"]),
    ("xyz", ["z", "yz", "xyz"]), ("aaaa", ["aaa"]), ("é€é", ["€é"]), ("abc", ["abcd"]), ("abc", []),
    ("abc", ["a"]),
])
def test_stop_strings_in_every_split(data, stop):
    for pieces in splits(data.encode()):
        assert text(pieces, stop) == cut(data, stop)


def test_stop_strings_in_random_text():
    rng = random.Random(1)
    for _ in range(3000):
        data = "".join(rng.choice("ab€") for _ in range(rng.randint(0, 12)))
        stop = ["".join(rng.choices("ab€", k=rng.randint(1, 4))) for _ in range(rng.randrange(4))]
        assert text(random_split(data.encode(), rng), stop) == cut(data, stop)


def test_text_that_may_begin_a_stop_string_is_held_back():
    assert streamed([b"a", b"\n", b"b", b"\n", b"\n", b"c"], ["\n\n"]) == (["a", "", "\nb", "", "", ""], "")
    assert streamed([b"a\n"], ["\n\n"]) == (["a"], "\n")
    assert streamed([b"\xe2"], ["\ufffd"]) == ([""], "")  # completed by the flush


def test_stopped_says_so_and_ends_the_pieces():
    stream = TextStream(Pieces([b"a", b"b", b"STOP", b"c"]), ["STOP"])
    taken = []
    pieces = list(text_pieces((taken.append(i) or i for i in range(4)), stream))
    assert (pieces, stream.stopped, taken) == (["a", "b"], True, [0, 1, 2])
    assert stream.push(3) == stream.flush() == ""


def test_pieces_are_never_empty_and_end_with_the_flush():
    stream = TextStream(Pieces([b"\xe2", b"", b"\x82", b"\xac", b"\xf0"]))
    assert list(text_pieces(range(5), stream)) == ["€", "\ufffd"]
    assert not stream.stopped
