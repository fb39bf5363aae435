"""What models are to predict: masked tokens, spans, shifted targets."""

import numpy as np
import pytest

from nn.data.objectives import masked_lm, shift_right, span_corruption
from nn.errors import InputError


def test_shifting_a_counting_sequence() -> None:
    labels = np.array([[5, 6, 7, 8], [9, -100, 11, -100], [-100, -100, -100, -100]])
    assert shift_right(labels, start_id=1, pad_id=2).tolist() == [[1, 5, 6, 7], [1, 9, 2, 11], [1, 2, 2, 2]]
    assert shift_right([[4], [5]], start_id=1, pad_id=0).tolist() == [[1], [1]]
    assert shift_right(np.zeros((2, 0), int), start_id=1, pad_id=0).shape == (2, 0)
    assert shift_right([[7, -1, 3]], 1, 0, ignore_index=-1).tolist() == [[1, 7, 0]]
    with pytest.raises(InputError, match=r"labels: shape \[3\] of int64; expected integers \[B,T\]"):
        shift_right(np.arange(3), 1, 0)


IDS = np.random.default_rng(0).integers(10, 1000, (200, 100))


def test_masked_lm_masks_what_it_says() -> None:
    """15 % of the tokens; 80 % of these masked, 10 % another id, 10 % as they are; within four deviations"""
    inputs, labels = masked_lm(IDS, mask_id=3, vocab_size=1000)
    chosen = labels != -100
    assert np.array_equal(labels[chosen], IDS[chosen])
    assert np.array_equal(inputs[~chosen], IDS[~chosen])
    assert inputs.dtype == IDS.dtype
    n = int(chosen.sum())
    assert n / IDS.size == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / IDS.size))
    masked, kept = inputs[chosen] == 3, inputs[chosen] == IDS[chosen]
    other = ~masked & ~kept
    for share, part in ((0.8, masked), (0.1, kept), (0.1, other)):
        assert part.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n) + 2e-3)
    drawn = inputs[chosen][other]
    assert drawn.min() < 60
    assert drawn.max() > 940


@pytest.mark.parametrize("stored", ["uint8", "uint16", "int8", "uint32"])
def test_narrow_types_of_ids(stored: str) -> None:
    """Corpora store ids in two bytes or one: labels of -100, and ids that do not fit, are not wrapped."""
    ids = (IDS % 100).astype(stored)
    found = masked_lm(ids, mask_id=999, vocab_size=1000)
    for array, right in zip(found, masked_lm(ids.astype(int), mask_id=999, vocab_size=1000), strict=True):
        np.testing.assert_array_equal(array, right)
    assert found[1].min() == -100
    assert found[0].max() == 999
    inputs, labels = span_corruption(ids[0], sentinels=range(999, 900, -1), random=np.random.default_rng(0))
    assert inputs.max() == labels[0] == 999


def test_masked_lm_leaves_special_tokens_alone() -> None:
    ids = np.where(np.arange(100) % 4 == 0, 7, IDS)
    inputs, labels = masked_lm(ids, mask_id=3, vocab_size=1000, special_ids=(7, 8), rate=1.0)
    assert np.array_equal(labels == -100, ids == 7)
    assert (inputs[ids == 7] == 7).all()


def test_masked_lm_of_few_tokens() -> None:
    rows = IDS[:50, :3]
    _, labels = masked_lm(rows, mask_id=3, vocab_size=1000, at_least_one=True)
    assert ((labels != -100).sum(axis=1) >= 1).all()
    _, plain = masked_lm(rows, mask_id=3, vocab_size=1000)
    assert not (plain != -100).any(axis=1).all()
    taken = (plain != -100).any(axis=1)
    assert np.array_equal(labels[taken], plain[taken])                # rows that had one stay as they were
    _, none = masked_lm(np.full((2, 3), 7), mask_id=3, vocab_size=1000, special_ids=(7,), at_least_one=True)
    assert (none == -100).all()


def test_masked_lm_is_a_function_of_seed_and_step() -> None:
    def of(**place: int) -> bytes:
        return b"".join(part.tobytes() for part in masked_lm(IDS, mask_id=3, vocab_size=1000, **place))

    assert of() == of(seed=0, step=0)
    assert len({of(), of(seed=1), of(step=1)}) == 3


@pytest.mark.parametrize("options", [{"rate": 1.1}, {"rate": -0.1}, {"mask_id": 1000}])
def test_masked_lm_refuses(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="rate: .*, mask_id: "):
        masked_lm(IDS, **{"mask_id": 3, "vocab_size": 1000} | options)     # type: ignore[arg-type]


SENTINELS = range(1999, 1900, -1)


@pytest.mark.parametrize("length", [2, 3, 7, 20, 512])
@pytest.mark.parametrize("density", [0.15, 0.5, 0.9])
def test_spans_put_back_give_the_text(length: int, density: float) -> None:
    ids = np.random.default_rng(length).integers(10, 1000, length)
    sentinels, random = range(9999, 5000, -1), np.random.default_rng(1)
    inputs, labels = span_corruption(ids, sentinels=sentinels, density=density, random=random)
    spans: dict[int, list[int]] = {}
    for token in labels:
        spans.setdefault(int(token), []) if token > 5000 else spans[list(spans)[-1]].append(int(token))
    restored = [t for token in inputs for t in (spans[int(token)] if token > 5000 else [int(token)])]
    assert restored == ids.tolist()
    used = [int(token) for token in inputs if token > 5000]
    assert used == list(sentinels[: len(used)])
    assert [*used, sentinels[len(used)]] == list(spans)
    assert spans[int(labels[-1])] == []
    assert all(spans[sentinel] for sentinel in used)
    hidden = sum(map(len, spans.values()))
    assert hidden == min(max(round(length * density), 1), length - 1)
    if length == 512 and density == 0.15:
        assert len(used) == round(hidden / 3.0)


def test_spans_refuse() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(InputError, match="sentinels: 3 are too few for 8 spans"):
        span_corruption(np.arange(160), sentinels=[1, 2, 3], random=random)
    with pytest.raises(InputError, match=r"ids: shape \[1\]"):
        span_corruption([4], sentinels=SENTINELS, random=random)
    with pytest.raises(InputError, match="density: 0.0"):
        span_corruption([4, 5], sentinels=SENTINELS, random=random, density=0.0)
