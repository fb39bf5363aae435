"""A run's text: split, tokenized, measured, and kept with the run."""

import json

import pytest

from nn.data import TokenShard, data_hash, read_documents
from nn.errors import InputError
from nn.eval import compressed_bits_per_byte
from nn.train import corpus as corpus_module
from nn.train.corpus import load, prepare


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_bytes_are_those_of_the_text_however_they_are_counted(make_config, folder, text_file, kind):
    text_file.write_text(text_file.read_text() + "\nÄpfel, 林檎 and \U0001f34e\n" * 20, encoding="utf-8")
    corpus = prepare(make_config(tokenizer=kind, vocab_size=300), folder)
    for name, shard in [("train", corpus.train), ("held_out", corpus.held_out)]:
        assert corpus.num_bytes(shard.tokens) == corpus.info[name]["bytes"] == shard.info.text_bytes
        assert len(shard) == corpus.info[name]["tokens"]
    assert corpus.info["train"]["bytes"] + corpus.info["held_out"]["bytes"] == text_file.stat().st_size
    assert corpus.bytes_per_token == pytest.approx(corpus.info["train"]["bytes"] / len(corpus.train))


def test_the_marks_are_those_of_the_held_out_text(make_config, folder):
    corpus = prepare(make_config(), folder)
    eos, text = corpus.tokenizer.eos_id, corpus.held_out.tokens
    held_out = bytes(text[text != eos].astype("uint8"))
    marks = compressed_bits_per_byte(held_out)
    assert {name: corpus.info[name] for name in ("gzip", "xz")} == marks


def test_the_hash_is_that_of_the_documents(make_config, folder, text_file):
    text_file.unlink()
    source = text_file.with_name("texts")
    source.mkdir()
    for i in range(30):
        (source / f"{i}.txt").write_text(f"document number {i}")
    corpus = prepare(make_config(data=str(source)), folder)
    assert corpus.info["data_hash"] == data_hash(read_documents(source))


def test_a_second_start_reads_what_the_first_wrote(make_config, folder, text_file):
    first = prepare(make_config(), folder)
    text_file.write_text("something else entirely")
    second = prepare(make_config(), folder)
    assert second.info == first.info
    assert (second.train.tokens == first.train.tokens).all()
    assert load(folder).info == first.info


def test_a_start_killed_while_preparing_leaves_nothing_that_looks_finished(make_config, folder, monkeypatch):
    calls = []

    def killed(path, documents, tokenizer):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, documents, tokenizer)

    real = corpus_module.write_tokens
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "write_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(make_config(), folder)
    assert not (folder / "tokens").exists()
    prepare(make_config(), folder)
    found = {path.name for path in (folder / "tokens").iterdir()}
    assert found == {"held_out.tokens", "info.json", "train.tokens"}
    TokenShard(folder / "tokens" / "train.tokens").verify()
    json.loads((folder / "tokens" / "info.json").read_text())


def test_unreadable_data_is_an_input_error(make_config, folder, tmp_path):
    with pytest.raises(InputError, match="data"):
        prepare(make_config(data=str(tmp_path / "absent.txt")), folder)
