"""Every window once an epoch, in an order that only seed and epoch decide; resuming is exact."""

import itertools
import json

import numpy as np
import pytest

from nn.data import ByteTokenizer, Document, Loader, TokenShard, write_tokens
from nn.data.loader import epoch_order, num_windows
from nn.errors import InputError


def batches(loader: Loader, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(itertools.islice(loader, count))


def equal(left, right) -> bool:
    return all(np.array_equal(np.stack(a), np.stack(b)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("tokens", "seq_len", "windows"), [
    (50_000, 256, 195), (257, 256, 1), (256, 256, 0), (0, 4, 0), (513, 256, 2), (512, 256, 1), (2, 1, 1)])
def test_number_of_windows(tokens, seq_len, windows):
    assert num_windows(tokens, seq_len) == windows


@pytest.mark.parametrize(("size", "seq_len"), [(50, 7), (50, 49), (57, 7), (9, 1)])
def test_an_epoch_reads_every_window_once(size, seq_len):
    loader = Loader(np.arange(size), 1, seq_len, seed=3)
    for _ in range(4):
        epoch = batches(loader, loader.num_windows)
        for inputs, targets in epoch:
            assert np.array_equal((inputs + 1) % size, targets)
            assert np.array_equal((inputs[0, 0] + np.arange(seq_len)) % size, inputs[0])
        predicted = np.concatenate([targets[0] for _, targets in epoch])
        assert len(set(predicted.tolist())) == len(predicted) == (size - 1) // seq_len * seq_len
        starts = np.sort([inputs[0, 0] for inputs, _ in epoch])
        left_over = size - seq_len * loader.num_windows
        assert set(np.diff(starts).tolist()) <= {seq_len, seq_len + left_over}


def test_epochs_differ_in_order_and_in_phase():
    loader = Loader(np.arange(1001), 100, 10, seed=1)
    first, second, third = (batches(loader, 1)[0][0][:, 0] for _ in range(3))
    assert len({int(starts[0]) % 10 for starts in (first, second, third)}) > 1     # cut at different places
    assert not np.array_equal(np.argsort(first), np.argsort(second))
    assert not np.array_equal(first, np.sort(first))


def test_seed_decides():
    def starts(seed: int) -> list[int]:
        return [int(inputs[0, 0]) for inputs, _ in batches(Loader(np.arange(500), 1, 10, seed=seed), 60)]

    assert starts(1) == starts(1)
    assert starts(1) != starts(2)


def test_order_never_changes_between_versions():
    """Recorded values: a changed order would make every saved run resume on other data."""
    order, phase = epoch_order(seed=0, epoch=0, count=8)
    assert (order.tolist(), phase) == ([5, 2, 0, 4, 7, 6, 1, 3], 8678972540140884483)
    order, phase = epoch_order(seed=7, epoch=3, count=5)
    assert (order.tolist(), phase) == ([3, 0, 2, 1, 4], 11924040920779075843)


@pytest.mark.parametrize(("size", "batch_size", "seq_len"),
                         [(50_000, 64, 256), (101, 4, 10), (90, 7, 20), (12, 5, 10)])
def test_resuming_anywhere_continues_exactly(size, batch_size, seq_len):
    tokens = np.random.default_rng(0).integers(0, 60_000, size).astype(np.uint16)
    steps = 3 * num_windows(size, seq_len) // batch_size + 7       # over at least three epoch borders
    loader = Loader(tokens, batch_size, seq_len, seed=5)
    states, expected = [], []
    for _ in range(steps):
        states.append(json.loads(json.dumps(loader.state())))
        expected.append(loader.next())
    for step, state in enumerate(states):
        resumed = Loader(tokens, batch_size, seq_len, seed=5)
        resumed.next()
        resumed.load_state(state)
        assert resumed.state() == state
        assert equal(batches(resumed, min(4, steps - step)), expected[step:step + 4])


def test_state_is_a_few_integers_and_reading_it_changes_nothing():
    loader, untouched = (Loader(np.arange(100), 3, 8) for _ in range(2))
    for _ in range(10):
        state = loader.state()
        assert all(type(value) is int for value in state.values())
        assert len(state) == 5
        loader.state()
        assert equal([loader.next()], [untouched.next()])


def test_batches_of_another_size_read_the_same_windows():
    one, many = Loader(np.arange(100), 1, 8, seed=2), Loader(np.arange(100), 30, 8, seed=2)
    assert np.array_equal(np.concatenate([inputs for inputs, _ in batches(one, 60)]),
                          np.concatenate([inputs for inputs, _ in batches(many, 2)]))
    many.load_state(one.state())
    assert np.array_equal(many.next()[0], np.concatenate([inputs for inputs, _ in batches(one, 30)]))


@pytest.mark.parametrize(("change", "reason"), [
    ({"seed": 9}, "seed: 1, but the run to resume had 9"),
    ({"seq_len": 4}, "seq_len: 8, but the run to resume had 4"),
    ({"num_tokens": 99}, "num_tokens: 100, but the run to resume had 99"),
    ({"position": 12}, "position 12 of epoch 0 is not one of an epoch's 12 windows"),
    ({"position": -1}, "position -1"),
    ({"epoch": -1}, "of epoch -1"),
    ({"extra": 1}, "keys"),
])
def test_a_state_of_another_run_is_refused(change, reason):
    loader = Loader(np.arange(100), 3, 8, seed=1)
    with pytest.raises(InputError, match=reason):
        loader.load_state({**loader.state(), **change})
    with pytest.raises(InputError, match="keys"):
        loader.load_state({})


def test_too_short_names_both_lengths(tmp_path):
    write_tokens(tmp_path / "t", [Document("d", "abc")], ByteTokenizer())
    with pytest.raises(InputError, match="seq_len: 4 needs 5 tokens for one window and the text has 4"):
        Loader(TokenShard(tmp_path / "t"), 1, 4)
    assert Loader(TokenShard(tmp_path / "t"), 1, 3).next()[0].shape == (1, 3)


@pytest.mark.parametrize(("tokens", "batch_size", "seq_len", "reason"), [
    (np.arange(100), 0, 8, "batch_size: 0"), (np.arange(100), 1, 0, "seq_len: 0"),
    (np.arange(100.0), 1, 8, "float64"), (np.arange(100).reshape(2, 50), 1, 8, r"shape \(2, 50\)")])
def test_bad_arguments_are_named(tokens, batch_size, seq_len, reason):
    with pytest.raises(InputError, match=reason):
        Loader(tokens, batch_size, seq_len)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed: -1"):
        Loader(np.arange(100), 1, 8, seed=-1)


def test_batches_from_a_token_file_are_contiguous_int64(tmp_path):
    documents = [Document(str(i), f"document {i}\n" * 9) for i in range(30)]
    write_tokens(tmp_path / "t", documents, ByteTokenizer())
    shard = TokenShard(tmp_path / "t")
    ring = np.concatenate([shard.tokens, shard.tokens]).tobytes()
    for inputs, targets in batches(Loader(shard, 4, 16), 60):
        assert inputs.shape == targets.shape == (4, 16)
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.flags.c_contiguous
        assert targets.flags.c_contiguous
        assert type(inputs) is np.ndarray
        assert all(row.astype(np.uint16).tobytes() in ring for row in np.hstack([inputs, targets[:, -1:]]))


def test_it_is_an_iterator_without_end():
    loader = Loader(np.arange(20), 2, 5)
    assert iter(loader) is loader
    first = next(loader)
    assert not equal([first], [next(loader)])
    assert len(batches(loader, 100)) == 100


def test_a_batch_may_be_larger_than_many_epochs():
    inputs, _ = Loader(np.arange(6), 5000, 5).next()
    assert inputs.shape == (5000, 5)
    assert len(set(inputs[:, 0].tolist())) == 6         # one window an epoch, at every phase
