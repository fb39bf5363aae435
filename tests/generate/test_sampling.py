"""Each filter against a definition written as a plain loop; what is drawn, and how often."""

import math

import numpy as np
import pytest

from nn.backends.reference.drawing import cooled as temperature
from nn.backends.reference.drawing import draw, min_p, top_p, weights
from nn.backends.reference.drawing import largest as top_k
from nn.errors import InputError, NonFiniteError
from nn.generate import SamplingConfig, sample
from nn.generate.sampling import repetition_penalty
from nn.random import bits, derive

RNG = np.random.default_rng(0)
EXAMPLE = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32))


def integer_weights(logits):
    return weights(temperature(np.asarray(logits, dtype=np.float32), 1.0))


def draws(logits, config, rows, steps):
    """How often each id is drawn from the same logits by many rows in many steps."""
    logits = np.tile(np.asarray(logits, dtype=np.float32), (rows, 1))
    ids = [sample(logits, [[]] * rows, config, step) for step in range(steps)]
    return np.bincount(np.concatenate(ids), minlength=logits.shape[1])


def tied_logits(rows, vocab):
    """Few distinct values, so that most cuts fall among ties; some entries -inf."""
    z = RNG.integers(-3, 3, size=(rows, vocab)).astype(np.float32)
    z[RNG.random(z.shape) < 0.1] = -np.inf
    z[:, 0] = 1
    return z


# --- the filters, one by one ---


def test_published_example():
    """p = [.5, .3, .15, .05]: top-p 0.7 keeps two tokens, min-p 0.2 three."""
    w = integer_weights(EXAMPLE)
    assert (top_p(w, 0.7) > 0).tolist() == [[True, True, False, False]]
    assert (min_p(w, 0.2) > 0).tolist() == [[True, True, True, False]]


def test_weights_are_probabilities():
    z = RNG.normal(size=(4, 1000)).astype(np.float32) * 5
    w = integer_weights(z)
    p = np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(w / w.sum(axis=1, keepdims=True), p, rtol=1e-5, atol=1e-9)
    assert (w.max(axis=1) == 2**32).all()


@pytest.mark.parametrize("k", [1, 2, 7, 39])
def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_ties(k):
    z = tied_logits(20, 40)
    ids, kept = top_k(z, k)
    assert ids.shape == (20, k)
    for row, got, values in zip(z, ids, kept, strict=True):
        expected = sorted(range(40), key=lambda v: (-row[v], v))[:k]
        assert got.tolist() == sorted(expected)
        assert np.array_equal(values, row[got])


@pytest.mark.parametrize("k", [0, 40, 41])
def test_top_k_off(k):
    z = tied_logits(3, 40)
    ids, kept = top_k(z, k)
    assert ids is None
    assert kept is z


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999999])
def test_top_p_keeps_the_shortest_prefix_and_the_lowest_ids_among_ties(p):
    for z in (tied_logits(20, 40), RNG.normal(size=(20, 40)) * 4, np.zeros((1, 40))):
        for row in integer_weights(z):
            need, total, expected = p * int(row.sum()), 0, []
            for v in sorted(range(40), key=lambda v: (-row[v], v)):
                if expected and total >= need:
                    break
                expected.append(v)
                total += int(row[v])
            kept = top_p(row[None], p)[0]
            assert np.flatnonzero(kept).tolist() == sorted(v for v in expected if row[v])
            assert np.array_equal(kept[expected], row[expected])


def test_top_p_is_exact_where_the_share_falls_between_and_on_weights():
    assert top_p(np.array([[2, 3, 2]]), 0.5).tolist() == [[2, 3, 0]]  # 3 of 7 are not half
    assert top_p(np.array([[1, 2, 1]]), 0.5).tolist() == [[0, 2, 0]]  # 2 of 4 are


def test_a_tiny_temperature_leaves_the_maxima():
    z = np.array([[1.0, 5.0, 4.999, 5.0], [-3e38, 3e38, 0.0, 3e38]], dtype=np.float32)
    for t in (5e-324, 1e-300, 1e-38):
        assert weights(temperature(z, t)).tolist() == [[0, 2**32, 0, 2**32]] * 2


def test_min_p_is_relative_to_the_likeliest():
    z = RNG.normal(size=(5, 200)).astype(np.float32) * 2
    w = integer_weights(z)
    for p in (0.05, 0.3, 1.0):
        p_v = np.exp(z - z.max(axis=1, keepdims=True))
        assert np.array_equal(min_p(w, p) > 0, p_v >= p)
    assert min_p(w, 0) is w
    assert top_p(w, 1) is w


def test_repetition_penalty_is_sign_aware_and_counts_an_id_once():
    z = np.array([[2.0, -2.0, 0.0, 3.0, -np.inf], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    out = repetition_penalty(z, [[0, 1, 2, 0, 0, 4], []], 2.0)
    assert out.tolist() == [[1.0, -4.0, 0.0, 3.0, -np.inf], [1.0] * 5]
    assert z[0, 0] == 2  # the caller's logits are left alone
    config = SamplingConfig(temperature=0, repetition_penalty=2.0)
    assert sample(z, [[3, 3], [0]], config, 0).tolist() == [0, 1]
    for history in ([5], [-1]):
        with pytest.raises(InputError, match="history"):
            repetition_penalty(z[:1], [history], 2.0)


# --- the draw ---


def test_draw_is_exact_at_every_border():
    """Words that land just below and on a border fall on its two sides; no word reaches a weight of 0."""
    w = np.array([[0, 2**31, 0, 2**32, 2**31 - 1, 0]])
    total = int(w.sum())
    running = np.cumsum(w[0])
    for at in (1, 3):
        border = -(-int(running[at]) * 2**32 // total)  # first word past this entry
        pair = draw(np.repeat(w, 2, axis=0), np.array([border - 1, border], dtype=np.uint32))
        assert pair.tolist() == [at, {1: 3, 3: 4}[at]]
    assert draw(w, np.array([0], dtype=np.uint32)) == 1
    assert draw(w, np.array([2**32 - 1], dtype=np.uint32)) == 4


def test_draw_agrees_with_unbounded_integers():
    w = RNG.integers(0, 2**32, size=(50, 1000))
    words = RNG.integers(0, 2**32, size=50).astype(np.uint32)
    for row, word, got in zip(w, words, draw(w, words), strict=True):
        target = int(word) * int(row.sum()) >> 32
        assert got == np.flatnonzero(np.cumsum(row) > target)[0]


def test_impossible_tokens_are_never_drawn():
    """Of 1000 tokens only every 100th is possible; every word of a coarse grid lands on one of them."""
    w = np.zeros((4096, 1000), dtype=np.int64)
    w[:, 50::100] = 1
    words = np.linspace(0, 2**32 - 1, 4096).astype(np.uint32)
    assert set(draw(w, words)) == set(range(50, 1000, 100))


# --- the whole chain ---


@pytest.mark.parametrize("config", [
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=1e-6),
    SamplingConfig(temperature=1e-300),
    SamplingConfig(top_k=1),
    SamplingConfig(top_p=1e-9),
    SamplingConfig(min_p=1.0),
], ids=lambda c: f"t={c.temperature} k={c.top_k} p={c.top_p} m={c.min_p}")
def test_limits_are_greedy(config):
    z = RNG.normal(size=(8, 300)).astype(np.float32) * 3
    for step in range(20):
        assert np.array_equal(sample(z, [[]] * 8, config, step), z.argmax(axis=1))


def test_greedy_ties_go_to_the_lowest_id():
    z = np.array([[0, 5, 5, 1], [-np.inf, -np.inf, 2, 2]], dtype=np.float32)
    for config in (SamplingConfig(temperature=0), SamplingConfig(top_k=1), SamplingConfig(top_p=1e-9)):
        assert sample(z, [[], []], config, 0).tolist() == [1, 2]


@pytest.mark.parametrize(("config", "allowed"), [
    (SamplingConfig(temperature=1, top_k=2), {0, 1}),
    (SamplingConfig(temperature=1, top_p=0.7), {0, 1}),
    (SamplingConfig(temperature=1, min_p=0.2), {0, 1, 2}),
    (SamplingConfig(temperature=1, top_k=3, top_p=0.7), {0, 1}),
    (SamplingConfig(temperature=1, top_k=2, top_p=0.9, min_p=0.7), {0}),
    (SamplingConfig(temperature=1), {0, 1, 2, 3}),
])
def test_exactly_the_allowed_tokens_are_drawn(config, allowed):
    assert set(np.flatnonzero(draws(EXAMPLE[0], config, rows=50, steps=10))) == allowed


@pytest.mark.parametrize(("rows", "steps"), [(3000, 2), (6, 1000)])
@pytest.mark.parametrize(("config", "kept"), [
    (SamplingConfig(temperature=1.0), 6),
    (SamplingConfig(temperature=0.5, seed=7), 6),
    (SamplingConfig(temperature=2.0, top_k=4), 4),
])
def test_frequencies_follow_the_softmax(config, kept, rows, steps):
    """Chi-square over 6,000 draws; 25.7 is the 0.01 % point for 5 degrees of freedom."""
    z = np.array([1.0, 0.5, 0.0, -0.5, -1.0, -1.5])
    p = np.exp(z / config.temperature) * (np.arange(6) < kept)
    p /= p.sum()
    expected = 6000 * p
    counts = draws(z, config, rows, steps)
    assert (counts[kept:] == 0).all()
    assert ((counts - expected)[:kept] ** 2 / expected[:kept]).sum() < 25.7


def test_rows_do_not_depend_on_the_batch():
    z = RNG.normal(size=(5, 50)).astype(np.float32)
    config = SamplingConfig(temperature=1.5, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
    history = [RNG.integers(0, 50, size=n).tolist() for n in (0, 1, 5, 9, 2)]
    for step in range(20):
        whole = sample(z, history, config, step)
        picked = [3, 0, 4]
        some = sample(z[picked], [history[i] for i in picked], config, step, rows=picked)
        assert some.tolist() == whole[picked].tolist()


def test_seed_row_and_step_all_matter():
    z = np.zeros((1, 10_000), dtype=np.float32)
    def one(seed, row, step):
        return int(sample(z, [[]], SamplingConfig(seed=seed), step, rows=[row])[0])
    ids = {one(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63, 0, 0)]}
    assert len(ids) == 5
    assert one(0, 0, 0) == one(0, 0, 0)


def written_out(logits, history, c, step, row):
    """The documented rule for one row, in Python's own integers."""
    z = {v: float(x) for v, x in enumerate(logits)}
    for v in set(history):
        z[v] = z[v] * c.repetition_penalty if z[v] < 0 else z[v] / c.repetition_penalty
    z = {v: np.float32(x) for v, x in z.items()}
    top = max(z.values())
    z = {v: (x - top) / np.float32(c.temperature) for v, x in z.items()}
    order = sorted(z, key=lambda v: (-z[v], v))[: c.top_k or None]
    w = {v: round(math.exp(z[v]) * 2**32) for v in order}
    order = sorted(w, key=lambda v: (-w[v], v))
    total, held, nucleus = sum(w.values()), 0, []
    for v in order:
        if held < max(1, math.ceil(c.top_p * total)):
            nucleus.append(v)
            held += w[v]
    kept = {v: w[v] for v in sorted(nucleus) if w[v] >= round(c.min_p * 2**32)}
    target = int(bits(derive(c.seed, "sampling"), row, step)) * sum(kept.values()) >> 32
    for v, weight in kept.items():
        target -= weight
        if target < 0:
            return v
    raise AssertionError


def test_the_whole_chain_follows_the_written_rule():
    for step in range(200):
        config = SamplingConfig(
            temperature=float(RNG.uniform(0.2, 2)), top_k=int(RNG.integers(0, 30)),
            top_p=float(RNG.uniform(0.3, 1)), min_p=float(RNG.choice([0, 0.02, 0.2])),
            repetition_penalty=float(RNG.choice([1.0, 0.5, 1.5])), seed=int(RNG.integers(2**63)),
        )
        z = tied_logits(2, 30) if step % 2 else RNG.normal(size=(2, 30)).astype(np.float32)
        history = RNG.integers(0, 30, size=(2, 4)).tolist()
        expected = [written_out(z[i], history[i], config, step, i) for i in range(2)]
        assert sample(z, history, config, step).tolist() == expected


def test_golden_tokens():
    """Any backend, any version: these logits and this seed give these tokens."""
    z = np.arange(64, dtype=np.float32) * 37 % 64 / 16
    config = SamplingConfig(seed=42, temperature=0.9, top_k=32, top_p=0.9)
    golden = [34, 62, 24, 43, 36, 38, 38, 36]
    assert [int(sample(z[None], [[]], config, step)[0]) for step in range(8)] == golden
    assert [written_out(z, [], config, step, 0) for step in range(8)] == golden


def test_logits_without_a_maximum_are_refused():
    for value, words in ((np.nan, "NaN"), (np.inf, r"\+inf")):
        z = np.zeros((3, 7), dtype=np.float32)
        z[1, 4] = value
        for config in (SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(top_k=2)):
            with pytest.raises(NonFiniteError, match=f"row 1 hold {words}"):
                sample(z, [[]] * 3, config, 0)
    with pytest.raises(NonFiniteError, match="nothing above -inf"):
        sample(np.full((1, 5), -np.inf), [[]], SamplingConfig(), 0)
    for shape in ((5,), (1, 2, 5), (1, 0)):
        with pytest.raises(InputError, match="logits: shape"):
            sample(np.zeros(shape), [[]], SamplingConfig(), 0)


@pytest.mark.parametrize("vocab", [1, 2, 2048, 151_936])
def test_any_vocabulary_size(vocab):
    z = RNG.normal(size=(2, vocab)).astype(np.float16) * 4
    top = z.max(axis=1)
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}):
        config = SamplingConfig(**options)
        ids = sample(z, [[], []], config, 0)
        assert ((ids >= 0) & (ids < vocab)).all()
        if config.min_p:
            assert (z[[0, 1], ids] >= top + config.temperature * math.log(0.1) - 1e-2).all()


def test_an_empty_batch_gives_no_tokens():
    for config in (SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(top_k=2, top_p=0.5)):
        assert sample(np.zeros((0, 5)), [], config, 0).shape == (0,)
