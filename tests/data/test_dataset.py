"""Windows by index are exact, shuffling is seeded, and the last batch follows its rule."""

import numpy as np
import pytest

from nn.data import ByteTokenizer, DataLoader, Document, TextDataset, TokenShard, write_tokens
from nn.errors import InputError


def test_windows_are_exact():
    dataset = TextDataset(list(range(100, 123)), seq_len=5)
    assert len(dataset) == 4
    for i, (x, y) in enumerate(dataset):
        assert x.tolist() == list(range(100 + 5 * i, 105 + 5 * i))
        assert y.tolist() == (x + 1).tolist()
        assert x.dtype == y.dtype == np.int64
    assert dataset[-1][0].tolist() == dataset[3][0].tolist()
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"window {index} of 4"):
            dataset[index]


def test_50000_tokens_give_195_windows_and_25_batches_of_8():
    dataset = TextDataset(np.arange(50_000), seq_len=256)
    assert len(dataset) == 195
    loader = DataLoader(dataset, batch_size=8)
    sizes = [len(x) for x, _ in loader]
    assert sizes == [8] * 24 + [3]
    assert len(loader) == 25
    dropping = DataLoader(dataset, batch_size=8, drop_last=True)
    assert [len(x) for x, _ in dropping] == [8] * 24
    assert len(dropping) == 24
    for drop_last in (False, True):
        assert len(DataLoader(dataset, batch_size=5, drop_last=drop_last)) == 39


def test_without_shuffling_windows_come_in_order():
    dataset = TextDataset(np.arange(41), seq_len=4)
    for _ in range(2):
        x = np.concatenate([x for x, _ in DataLoader(dataset, batch_size=3)])
        assert x.ravel().tolist() == list(range(40))


def test_shuffling_is_seeded_and_new_in_every_pass():
    dataset = TextDataset(np.arange(401), seq_len=4)

    def passes(seed: int) -> list[list[int]]:
        loader = DataLoader(dataset, batch_size=7, shuffle=True, seed=seed)
        return [[int(start) for x, _ in loader for start in x[:, 0]] for _ in range(3)]

    assert passes(1) == passes(1) != passes(2)
    first, second, third = passes(1)
    assert first != second != third != first
    assert sorted(first) == sorted(second) == list(range(0, 400, 4))


def test_a_token_file_is_a_dataset_too(tmp_path):
    write_tokens(tmp_path / "t", [Document("d", "abcdef")], ByteTokenizer())
    dataset = TextDataset(TokenShard(tmp_path / "t"), seq_len=3)
    assert [(bytes(x.tolist()), y.tolist()) for x, y in dataset] == [
        (b"abc", [98, 99, 100]), (b"def", [101, 102, 258])]


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="needs 6 tokens for one window and the text has 5"):
        TextDataset([1, 2, 3, 4, 5], seq_len=5)
    with pytest.raises(InputError, match="the text has 0"):
        TextDataset([], seq_len=5)
    with pytest.raises(InputError, match="batch_size: 0"):
        DataLoader(TextDataset([1, 2, 3], seq_len=1), batch_size=0)
