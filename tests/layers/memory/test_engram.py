"""Engram against its equations in NumPy and the published hashing, number by number."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.layers.auxiliary import collect
from nn.layers.linear import Embedding, Linear
from nn.layers.memory.canonical import canonical_ids, normalized
from nn.layers.memory.engram import Engram, EngramSettings
from nn.layers.memory.hashing import HashTables, hash_tables, multipliers, primes_from
from nn.ops.roots import signed_sqrt
from nn.optim.adamw import AdamW
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken
from tests.gradients import check

random = np.random.default_rng
SMALL = {"hidden_size": 6, "vocab_size": 11, "engram_vocab_size": (11, 13), "n_head_per_ngram": 2,
         "n_embed_per_ngram": 4}


def build(**options: Any) -> Engram:
    return shaken(Engram(EngramSettings.create(**SMALL | options), "float64"), 0)


def given(length: int = 8, streams: int = 1, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    draw = random(seed)
    shape = (2, length, 6) if streams == 1 else (2, length, streams, 6)
    return draw.standard_normal(shape), draw.integers(0, 11, (2, length))


def run(block: Engram, x: np.ndarray, ids: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return np.asarray(block(Tensor(x), ids=ids, **options)[0].data)


# ---- hashing ----


def test_golden_hashes() -> None:
    ids = np.array([[0, 0, 4, 9, 2, 9, 4, 9]])
    rows = HashTables((3, 5, 7), ((11,), (13,))).lookup(ids)[0]
    assert rows[:, 0].tolist() == [1, 4, 10, 6, 0, 4]
    assert (rows[:, 1] - 11).tolist() == [12, 2, 3, 7, 8, 9]


def test_golden_multipliers() -> None:
    assert multipliers(1, 3, 1000) == (7593627661414631, 479593001838623, 3563315849468963)
    assert multipliers(15, 3, 1000) == (2865651367968763, 5551170510236881, 5343936160617101)


def test_golden_primes() -> None:
    first, last = (hash_tables(layer, (1, 15), (1000, 1000), 2, 1000) for layer in (1, 15))
    assert first.primes == ((1009, 1013), (1019, 1021))
    assert last.primes == ((1031, 1033), (1039, 1049))
    assert primes_from(1, 4, {3}) == (2, 5, 7, 11)


def test_products_never_overflow() -> None:
    for ids in (1, 2, 1000, 129_280, 2**31):
        for m in multipliers(7, 5, ids):
            assert m % 2 == 1
            assert (ids - 1) * m < 2**63


def in_integers(settings: EngramSettings, ids: np.ndarray) -> np.ndarray:
    """Rows by Python's integers, entry by entry"""
    tables = settings.tables
    rows = np.zeros((*ids.shape, tables.heads), int)
    canonical = settings.canonical or range(settings.vocab_size)
    for b, t in np.ndindex(ids.shape):
        seen = [canonical[ids[b, t - k] if t >= k else settings.pad_id] for k in range(settings.max_ngram)]
        column = start = 0
        for n, primes in enumerate(tables.primes, start=2):
            mix = 0
            for k in range(n):
                mix ^= int(seen[k]) * tables.multipliers[k]
            for prime in primes:
                rows[b, t, column] = start + mix % prime
                column, start = column + 1, start + prime
    return rows


@pytest.mark.parametrize("options", [
    {}, {"canonical": (0, 1, 2, 0, 1, 3, 3, 4, 5, 6, 2), "pad_id": 6}, {"layer": 15, "layer_ids": (1, 15)},
    {"max_ngram": 4, "engram_vocab_size": (5, 7, 11), "n_head_per_ngram": 1}])
def test_lookup_is_exact(options: dict[str, Any]) -> None:
    block, (_, ids) = build(**options), given()
    rows, tail = block.lookup(ids, block.init_state(2).ids)
    assert np.array_equal(rows, in_integers(block.settings, ids))
    assert rows.max() < block.settings.tables.rows == block.table.shape[0]
    again, _ = block.lookup(ids[:, 5:], block.lookup(ids[:, :5], block.init_state(2).ids)[1])
    assert np.array_equal(again, rows[:, 5:])
    assert tail.shape == (2, block.settings.max_ngram - 1)


def test_equal_n_grams_have_equal_rows_wherever_they_stand() -> None:
    block = build()
    ids = np.array([[1, 5, 7, 3, 5, 7, 3, 9]])
    rows, _ = block.lookup(ids, block.init_state(1).ids)
    assert np.array_equal(rows[0, 3], rows[0, 6])                  # 5 7 3
    assert np.array_equal(rows[0, 2, :2], rows[0, 5, :2])          # 5 7, behind different tokens
    assert not np.array_equal(rows[0, 2, 2:], rows[0, 5, 2:])


def test_a_token_changes_the_lookups_of_max_ngram_tokens() -> None:
    block, (_, ids) = build(), given()
    before, _ = block.lookup(ids, block.init_state(2).ids)
    ids[:, 3] = (ids[:, 3] + 1) % 11
    after, _ = block.lookup(ids, block.init_state(2).ids)
    changed = (before != after).any(axis=(0, 2))
    assert changed[3:6].all()
    assert not changed[:3].any()
    assert not changed[6:].any()


def test_collisions_are_as_rare_as_chance_has_it() -> None:
    """M distinct bigrams in a table of N rows are expected to meet N (1 − (1 − 1/N)^M) of them."""
    settings = EngramSettings.create(**SMALL | {"vocab_size": 500, "engram_vocab_size": (1000, 1000)})
    ids = random(0).integers(0, 500, (1, 4001))
    pairs = len({tuple(pair) for pair in np.stack([ids[0, :-1], ids[0, 1:]], 1).tolist()})
    rows = settings.tables.lookup(np.concatenate([[[0]], ids], axis=1))[0, 1:, 0]
    size = settings.tables.primes[0][0]
    assert abs(len(np.unique(rows)) - size * (1.0 - (1.0 - 1.0 / size) ** pairs)) < 20


def test_negative_ids_pass_and_large_ones_are_named() -> None:
    block = build(canonical=tuple(range(10, -1, -1)))
    rows, tail = block.lookup(np.array([[-1, -100, 3]]), block.init_state(1).ids)
    assert rows.min() >= 0
    assert rows.max() < block.settings.tables.rows
    assert tail.tolist() == [[-100, 7]]
    with pytest.raises(ValueError, match=r"ids: 11 is outside 0 \.\.\. 10"):
        block.lookup(np.array([[11]]), block.init_state(1).ids)


def test_padding_is_what_stands_before_the_first_token() -> None:
    block, (_, ids) = build(), given()
    mask = np.arange(8)[None, :] >= np.array([[0], [3]])
    rows, _ = block.lookup(ids, block.init_state(2).ids, mask)
    alone, _ = block.lookup(ids[1:, 3:], block.init_state(1).ids)
    assert np.array_equal(rows[1, 3:], alone[0])


def test_canonical_ids() -> None:
    texts = ["Apple", " apple", "APPLÉ", "banana", " ", "\n", "", "ﬁ", "fi", "\ufffd", "x\ufffd"]
    assert [normalized(t) for t in ("  É\t\n", " ", "", "ﬁ")] == ["e", " ", "", "fi"]
    assert canonical_ids(texts, raw=list("abcdefghijk")) == (0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6)
    assert canonical_ids(texts)[9:] == (5, 6)


# ---- the layer ----


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("dilation", [0, 1])
def test_the_equations(streams: int, dilation: int) -> None:
    block, (x, ids) = build(n_streams=streams, kernel_size=3, dilation=dilation), given(streams=streams)
    w = {name: p.data for name, p in block.named_parameters().items()}
    e = w["table"][in_integers(block.settings, ids)].reshape(2, 8, 8)
    h = x.reshape(2, 8, streams, 6)
    k = rms((e @ w["k_proj.weight"].T + w["k_proj.bias"]).reshape(h.shape), w["k_norm.weight"], 1e-6)
    s = (k * rms(h, w["q_norm.weight"], 1e-6)).sum(-1, keepdims=True) / np.sqrt(6)
    alpha = 1.0 / (1.0 + np.exp(-np.sign(s) * np.sqrt(np.maximum(np.abs(s), 1e-6))))
    v = alpha * (e @ w["v_proj.weight"].T + w["v_proj.bias"])[:, :, None]
    c = rms(v, w["conv_norm.weight"], 1e-5).reshape(2, 8, streams * 6)
    mixed = np.zeros_like(c)
    for t in range(8):
        for j in range(3):
            if (source := t - (2 - j) * (dilation or 3)) >= 0:
                mixed[:, t] += w["conv.weight"][:, j] * c[:, source]
    expected = (v + (mixed / (1.0 + np.exp(-mixed))).reshape(v.shape)).reshape(x.shape)
    close(run(block, x, ids), expected, 1e-12)


@pytest.mark.parametrize("streams", [1, 2])
def test_decoding_with_streams_is_prefill(streams: int) -> None:
    block, (x, ids) = build(n_streams=streams), given(12, streams)
    whole, state = run(block, x, ids), block.init_state(2)
    for t in range(12):
        with no_grad():
            y, state = block(Tensor(x[:, t : t + 1]), ids=ids[:, t : t + 1], state=state)
        close(y.data[:, 0], whole[:, t], 1e-12)


def test_the_convolution_starts_silent() -> None:
    """Zeros: y = v, of one token alone"""
    block = Engram(EngramSettings.create(**SMALL), "float64")
    block.initialize(0)
    x, ids = given()
    assert not block.conv.weight.data.any()
    y = run(block, x, ids)
    x[:, :5] += 1.0
    assert np.array_equal(run(block, x, ids)[:, 5:], y[:, 5:])


def test_a_closed_gate_adds_nothing() -> None:
    """α = 0: the baseline without a memory"""
    block, (x, ids) = build(), given()
    block._gate = lambda e, h: Tensor(np.zeros((*h.shape[:3], 1)))          # type: ignore[method-assign]
    assert not run(block, x, ids).any()


def test_with_the_gate_fixed_and_no_convolution_it_is_linear_in_what_was_found() -> None:
    block, (x, ids) = build(), given()
    block._gate = lambda e, h: Tensor(np.full((*h.shape[:3], 1), 0.3))      # type: ignore[method-assign]
    block.conv.weight.data = np.zeros_like(block.conv.weight.data)
    block.v_proj.bias.data = np.zeros_like(block.v_proj.bias.data)
    once = run(block, x, ids)
    block.table.data = 2.0 * block.table.data
    close(run(block, x, ids), 2.0 * once, 1e-12)


def test_the_table_has_the_counts_as_gradient_where_every_slot_has_one() -> None:
    block, (_, ids) = build(), given()
    rows, _ = block.lookup(ids, block.init_state(2).ids)
    ops.take(block.table, rows).sum().backward()
    counts = np.bincount(rows.reshape(-1), minlength=block.table.shape[0])
    assert np.array_equal(block.table.grad, np.repeat(counts[:, None], 2, axis=1))


def test_the_signed_root() -> None:
    x = np.array([-4.0, -1e-7, 0.0, 1e-7, 0.25])
    close(signed_sqrt(Tensor(x)).data, np.array([-2.0, -1e-3, 0.0, 1e-3, 0.5]), 1e-15)
    leaf = Tensor(x, requires_grad=True)
    signed_sqrt(leaf).sum().backward()
    close(leaf.grad, np.array([0.25, 0.0, 0.0, 0.0, 1.0]), 1e-15)
    check(signed_sqrt, np.array([[-2.0, 0.3], [0.7, -0.4]]))


def test_figures_and_penalties() -> None:
    block, (x, ids) = build(gate_coef=0.1, table_coef=0.01), given()
    mask = np.arange(8)[None, :] >= np.array([[0], [3]])
    with collect() as heard, no_grad():
        block(Tensor(x), ids=ids, mask=mask)
    rows, _ = block.lookup(ids, block.init_state(2).ids, mask)
    touched = block.table.data[np.unique(rows)]
    totals, figures = heard.totals(), dict(heard.figures)
    close(np.asarray(totals["engram/gate"].data), 0.1 * np.asarray(figures["engram/gate"]), 1e-6)
    close(np.asarray(totals["engram/table"].data), np.asarray(0.01 * (touched**2).sum()), 1e-6)
    gate = block._gate(Tensor(block.table.data[rows].reshape(2, 8, 8)), Tensor(x[:, :, None])).data[..., 0, 0]
    close(np.asarray(figures["engram/gate"]), np.asarray(gate[mask].mean()), 1e-12)
    assert figures["engram/distinct_rows"].shape == (4,)


def test_counts_of_the_published_configuration() -> None:
    """Layers 1 and 15, five rows per id, 8 heads, 1024 values per token"""
    s = EngramSettings(hidden_size=2560, layer=15, layer_ids=(1, 15))
    assert s.tables.heads == 16
    assert s.width == 1024
    assert min(map(min, s.tables.primes)) > 5 * 129_280
    flops = s.flops(1, 1)
    assert flops == {"projections": 2 * 1024 * 2560 * 2, "conv": 2 * 2560 * 4}
    assert s.parameters(active=True)["table"] == 1024


def test_it_learns_what_two_tokens_say_and_one_does_not() -> None:
    """A chain in which each token is a fixed function of the two before: learned with the memory alone"""
    draw, size = random(0), 8
    follow, ids = draw.permuted(np.tile(np.arange(size), (size, 1)), axis=1), draw.integers(0, size, (16, 2))
    for _ in range(22):
        ids = np.concatenate([ids, follow[ids[:, -2], ids[:, -1]][:, None]], axis=1)
    losses = []
    for remembers in (False, True):
        embed, head = Embedding(size, 16, std=0.5), Linear(16, size, std=0.2)
        memory = Engram(EngramSettings.create(hidden_size=16, vocab_size=size, engram_vocab_size=(200, 200),
                                              n_head_per_ngram=2, n_embed_per_ngram=16, init_std=0.2))
        parts = {"embed": embed, "head": head} | ({"memory": memory} if remembers else {})
        named = {f"{name}.{key}": p for name, part in parts.items()
                 for key, p in part.initialize(1).named_parameters().items()}
        optimizer = AdamW(named, lr=0.03)
        for _ in range(60):
            h = embed(ids[:, 1:-1])
            h = h + memory(h, ids=ids[:, 1:-1])[0] if remembers else h
            loss = ops.cross_entropy(head(h).reshape(-1, size), ids[:, 2:].reshape(-1)).mean()
            for p in named.values():
                p.grad = None
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert losses[1] < 0.2


@pytest.mark.parametrize(("options", "named"), [
    ({"engram_vocab_size": (5,)}, "engram_vocab_size"), ({"n_embed_per_ngram": 3}, "n_embed_per_ngram"),
    ({"pad_id": 11}, "pad_id"), ({"canonical": (1, 2)}, "canonical"),
    ({"layer": 2, "layer_ids": (1,)}, "layer_ids")])
def test_bad_settings_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EngramSettings.create(**SMALL | options)
