"""Every token is scored exactly once, whatever the windows and batches; and the sums have the right units."""

import gzip
import lzma
import math

import numpy as np
import pytest

from nn.errors import InputError
from nn.eval import bits_per_byte, compressed_bits_per_byte, negative_log_likelihood, perplexity
from nn.eval.bits_per_byte import spread, windows
from nn.models import MoETransformer, MoETransformerConfig
from nn.tensor import no_grad

PREFIX = 7


class Bigram:
    """log p(token | previous token) from a table: its exact value is known for any text, however it is
    cut."""

    training = True

    def __init__(self, vocab=8):
        logits = np.random.default_rng(0).standard_normal((vocab, vocab))
        self.log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.modes = []

    def train(self, on=True):
        self.training = on

    def eval(self):
        self.train(False)

    def loss(self, inputs, targets, *, valid_tokens=None, aux_scale=1.0):
        self.modes.append(self.training)
        scored = targets != -100
        total = -self.log_p[inputs[scored], targets[scored]].sum() / valid_tokens
        return None, {"loss": float(total)}

    def nats(self, tokens):
        return -sum(self.log_p[a, b] for a, b in zip([PREFIX, *tokens[:-1]], tokens, strict=True))


def text(n, vocab=8, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, n).astype(np.uint16)


def model(**changes):
    settings = {"vocab_size": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_experts": 2,
                "top_k": 1, "intermediate_size": 8, "max_seq_len": 16, "init_std": 0.5, "router_jitter": 0.2}
    return MoETransformer(MoETransformerConfig(**settings | changes), seed=3, dtype="float64")


def token_by_token(model, tokens, found):
    """The plain loop: one forward pass per window, one logit row per scored token."""
    total = 0.0
    sequence = np.concatenate([[PREFIX], tokens]).astype(np.int64)
    for w in found:
        with no_grad():
            logits = model(sequence[None, w.begin:w.end]).numpy()[0]
        for position in range(w.score, w.end):
            row = logits[position - w.begin]
            total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[tokens[position]]
    return total


@pytest.mark.parametrize("overlap", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 6, 17, 40])
def test_windows_score_every_token_exactly_once(n, overlap):
    found = windows(n, 5, overlap)
    assert [i for w in found for i in range(w.score, w.end)] == list(range(n))
    assert all(w.begin <= w.score < w.end and w.end - w.begin == min(5, n) for w in found)
    assert all(w.score - w.begin >= overlap - 1 for w in found[1:])


def test_windows_of_a_worked_example():
    """Seven tokens, windows of four, two of context: the inputs are [P,0,1,2], then [2,3,4,5] of which 3 are
    scored."""
    assert windows(7, 4, overlap=2) == [(0, 0, 4), (3, 4, 7)]


@pytest.mark.parametrize("overlap", [0, 6])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(InputError, match="overlap"):
        windows(10, 5, overlap)


@pytest.mark.parametrize("n", [1, 3, 8, 50])
@pytest.mark.parametrize("seq_len", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_model_of_one_token_of_context_gives_the_same_whatever_the_cut(n, seq_len, batch_size):
    bigram, tokens = Bigram(), text(n)
    nats = negative_log_likelihood(bigram, tokens, seq_len=seq_len, batch_size=batch_size, prefix_id=PREFIX)
    assert nats == pytest.approx(bigram.nats(tokens), rel=1e-12)


@pytest.mark.parametrize("overlap", [1, 3])
def test_equals_a_direct_loop_over_tokens_for_a_transformer(overlap):
    m, tokens = model(), text(61)
    expected = token_by_token(m.eval(), tokens, windows(61, 16, overlap))
    m.train()
    for batch_size in (1, 3, 64):
        nats = negative_log_likelihood(m, tokens, seq_len=16, batch_size=batch_size, prefix_id=PREFIX,
                                       overlap=overlap)
        assert nats == pytest.approx(expected, rel=1e-9)


def test_the_order_of_the_windows_does_not_matter():
    m, tokens = model(), text(100)
    found = windows(100, 16)
    settings = {"seq_len": 16, "batch_size": 4, "prefix_id": PREFIX}
    forward = negative_log_likelihood(m, tokens, **settings, chosen=found)
    backward = negative_log_likelihood(m, tokens, **settings, chosen=found[::-1])
    assert backward == pytest.approx(forward, rel=1e-12)


def test_bits_per_byte_and_perplexity_have_their_units():
    bigram, tokens = Bigram(), text(30)
    nats = bigram.nats(tokens)
    assert bits_per_byte(bigram, tokens, 77, 8, 4, prefix_id=PREFIX) == pytest.approx(nats / math.log(2) / 77)
    assert perplexity(bigram, tokens, 8, 4, prefix_id=PREFIX) == pytest.approx(math.exp(nats / 30))


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token():
    uniform = Bigram()
    uniform.log_p = np.full((8, 8), -math.log(8))
    assert bits_per_byte(uniform, text(40), 40, 8, 4, prefix_id=PREFIX) == pytest.approx(3.0)
    assert perplexity(uniform, text(40), 8, 4, prefix_id=PREFIX) == pytest.approx(8.0)


@pytest.mark.parametrize("before", [True, False])
def test_evaluation_is_without_noise_and_restores_the_mode(before):
    bigram = Bigram()
    bigram.train(before)
    negative_log_likelihood(bigram, text(9), seq_len=4, batch_size=2, prefix_id=PREFIX)
    assert bigram.modes == [False, False]
    assert bigram.training is before


def test_evaluation_leaves_no_gradients_and_the_mode_even_after_an_error():
    m = model()
    with pytest.raises(InputError):
        negative_log_likelihood(m, text(40) + np.uint16(100), seq_len=16, batch_size=2, prefix_id=PREFIX)
    assert m.training
    negative_log_likelihood(m, text(40), seq_len=16, batch_size=2, prefix_id=PREFIX)
    assert all(p.grad is None for p in m.parameters())


def test_a_sample_of_windows_is_spread_over_the_text():
    found = windows(1000, 10)
    assert spread(found, 0) == found
    assert spread(found, 10**9) == found
    chosen = spread(found, 50)
    assert [w.begin for w in chosen] == [0, 200, 400, 600, 800]
    assert spread(found, 1) == found[:1]
    assert spread([], 100) == []


@pytest.mark.parametrize("call", [
    lambda: bits_per_byte(Bigram(), text(3), 0, 8, 4, prefix_id=PREFIX),
    lambda: perplexity(Bigram(), text(0), 8, 4, prefix_id=PREFIX),
    lambda: compressed_bits_per_byte(b""),
])
def test_nothing_to_measure_is_an_error(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize("data", [b"x", b"hello, hello " * 400, np.random.default_rng(0).bytes(70_000)])
def test_compressors_are_gzip_9_and_xz_9(data):
    bits = compressed_bits_per_byte(data)
    assert bits["gzip"] == 8 * len(gzip.compress(data, 9)) / len(data)
    assert bits["xz"] == pytest.approx(8 * len(lzma.compress(data, preset=9)) / len(data), abs=0.01)
