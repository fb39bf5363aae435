"""A token file holds every token of every document, appears whole or not at all, is refused if changed."""

import errno

import numpy as np
import pytest

from nn.data import ByteTokenizer, Document, TokenShard, write_tokens
from nn.data import shard as shard_module
from nn.data.shard import HEADER_BYTES
from nn.errors import InputError

DOCUMENTS = [Document("a", "héllo\n"), Document("b", ""), Document("c", "x" * 100)]


class LargeTokenizer(ByteTokenizer):
    """Bytes, each shifted to the end of a large vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.eos_id = vocab_size - 1

    def encode_batch(self, texts):
        return [[self.vocab_size - 2 - b for b in text.encode()] for text in texts]


class FullDisk(ByteTokenizer):
    """The first batch can be written, the second cannot."""

    calls = 0

    def encode_batch(self, texts):
        self.calls += 1
        if self.calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().encode_batch(texts)


def test_tokens_are_the_documents_each_with_its_end(tmp_path):
    info = write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    shard = TokenShard(tmp_path / "t")
    expected = [token for _, text in DOCUMENTS for token in [*text.encode(), 258]]
    assert shard.tokens.tolist() == expected
    assert len(shard) == len(expected)
    assert shard.info == info
    assert (info.count, info.documents, info.text_bytes) == (len(expected), 3, 107)
    assert (info.vocab_size, info.eos_id, info.dtype) == (259, 258, "uint16")
    shard.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32"), (151_936, "uint32")])
def test_tokens_take_two_bytes_if_they_fit(tmp_path, vocab_size, dtype):
    tokenizer = LargeTokenizer(vocab_size)
    info = write_tokens(tmp_path / "t", DOCUMENTS, tokenizer)
    shard = TokenShard(tmp_path / "t")
    assert info.dtype == str(shard.tokens.dtype) == dtype
    assert shard.tokens[6:9].tolist() == [vocab_size - 2 - ord("\n"), vocab_size - 1, vocab_size - 1]
    assert (tmp_path / "t").stat().st_size == HEADER_BYTES + info.count * (2 if dtype == "uint16" else 4)


def test_many_batches_write_the_same_file(tmp_path, monkeypatch):
    documents = [Document(str(i), "word " * i) for i in range(50)]
    write_tokens(tmp_path / "one", documents, ByteTokenizer())
    monkeypatch.setattr(shard_module, "_BATCH", 300)
    sizes = [sum(map(len, batch)) for batch in shard_module._batches(documents)]
    assert all(300 <= size < 300 + 5 * 50 for size in sizes[:-1])
    assert len(sizes) > 10
    write_tokens(tmp_path / "many", iter(documents), ByteTokenizer())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_tokens_cannot_be_written_to_by_accident(tmp_path):
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    with pytest.raises(ValueError, match="read-only"):
        TokenShard(tmp_path / "t").tokens[0] = 1


def test_a_failure_leaves_what_was_there_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "_BATCH", 1)
    with pytest.raises(OSError, match="No space left"):
        write_tokens(tmp_path / "t", DOCUMENTS, FullDisk())
    assert list(tmp_path.iterdir()) == []
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    before = (tmp_path / "t").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_tokens(tmp_path / "t", DOCUMENTS[::-1], FullDisk())
    assert (tmp_path / "t").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_nothing_to_write_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no documents to write"):
        write_tokens(tmp_path / "t", [], ByteTokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 1, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 2, -1, -2])
def test_a_cut_file_is_refused_by_name(tmp_path, length):
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(data[:length])
    with pytest.raises(InputError, match="write it again") as error:
        TokenShard(tmp_path / "t")
    assert str(error.value).startswith(f"{tmp_path / 't'}: ")


def test_a_longer_file_is_refused(tmp_path):
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    with open(tmp_path / "t", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(InputError, match="4,318 bytes where its header promises 4,316"):
        TokenShard(tmp_path / "t")


@pytest.mark.parametrize("change", [
    (b"cuda-nn tokens 1", b"cuda-nn tokens 9"),
    (b'"uint16"', b'"uint17"'),
    (b'"count": 110', b'"count": 0  '),
    (b'"count": 110', b'"count": "x"'),
    (b'"count"', b'"total"'),
    (b'{"format"', b'["format"'),
    (b'{"format"', b'\xff"format"'),
])
def test_a_header_of_something_else_is_refused(tmp_path, change):
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    data = (tmp_path / "t").read_bytes()
    assert data.count(change[0]) == 1
    (tmp_path / "t").write_bytes(data.replace(*change))
    with pytest.raises(InputError, match="not a token file"):
        TokenShard(tmp_path / "t")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nothing: no such file"):
        TokenShard(tmp_path / "nothing")


def test_a_changed_token_is_found_by_verify(tmp_path):
    write_tokens(tmp_path / "t", DOCUMENTS, ByteTokenizer())
    data = bytearray((tmp_path / "t").read_bytes())
    data[HEADER_BYTES + 20] ^= 1
    (tmp_path / "t").write_bytes(data)
    shard = TokenShard(tmp_path / "t")
    with pytest.raises(InputError, match="hash differs"):
        shard.verify()


def test_the_same_documents_give_the_same_bytes(tmp_path):
    infos = [write_tokens(tmp_path / name, DOCUMENTS, ByteTokenizer()) for name in ("one", "two")]
    assert infos[0] == infos[1]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert np.array_equal(TokenShard(tmp_path / "one").tokens, TokenShard(tmp_path / "two").tokens)
