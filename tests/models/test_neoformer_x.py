"""NeoFormerX against its equations in NumPy; its past, its memory, its presets, and what it writes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.config import load, save
from nn.generate import SamplingConfig, generate_batch
from nn.layers.rotary import RopeScaling
from nn.models import LanguageModel
from nn.models.neoformer_config import PRESETS, NeoFormerXConfig, preset, sizes
from nn.models.neoformer_x import NeoFormerX
from nn.optim import AdamW
from nn.tensor import no_grad
from tests.blocks.harness import check_slopes, close, shaken

SMALL: dict[str, Any] = {"vocab_size": 19, "d_model": 16, "nhead": 4, "kv_heads": 2, "layers": 2,
                         "mem_size": 3, "rules": 3, "rdim": 5, "max_seq_len": 32, "ffn_size": 12}
KINDS: dict[str, dict[str, Any]] = {
    "base": {}, "plus": {"norm": "rmsnorm", "ffn": "swiglu"}, "no NSB": {"nsb": False},
    "no RMC": {"rmc": False}, "neither": {"rmc": False, "nsb": False},
    "multi-query": {"kv_heads": 1}, "multi-head": {"kv_heads": 4},
    "residual": {"rmc_residual": True, "rope_base": 50.0}}
WRITTEN = {"options": {"rmc": {"differentiable_write": True, "segment": 3, "write_lr": 0.5}}}


def build(dtype: str = "float64", **changes: Any) -> NeoFormerX:
    """With weights far enough from their start that every part matters"""
    return shaken(NeoFormerX(NeoFormerXConfig(**SMALL | changes), dtype=dtype), 1)


def text(batch: int = 2, length: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 19, (batch, length))


def run(model: NeoFormerX, ids: np.ndarray, **options: Any) -> tuple[np.ndarray, Any, Any]:
    with no_grad():
        logits, past, delta = model(ids, **options)
    return logits.data, past, delta


every = pytest.mark.parametrize("kind", KINDS)


# ---- by its equations ----


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


class Formula:
    """The document, in NumPy; `seen[i, j]`: whether the token at i looks at the one at j"""

    def __init__(self, model: NeoFormerX, seen: np.ndarray) -> None:
        self.w = {name: p.data for name, p in model.named_parameters().items()}
        self.c, self.seen = model.model_config, seen

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        h = self.w["embed_tokens.weight"][ids]
        h = self.rmc(h) if self.c.rmc else h
        h = self.nsb(h) if self.c.nsb else h
        for i in range(self.c.layers):
            layer = f"body.layers.{i}"
            h = h + self.attention(f"{layer}.mixer", self.norm(f"{layer}.connection.norms.0", h))
            h = h + self.ffn(f"{layer}.feed_forward.ffn", self.norm(f"{layer}.connection.norms.1", h))
        return self.norm("norm", h) @ self.w["embed_tokens.weight"].T

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if self.c.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.w[f"{name}.weight"]
        return y + self.w[f"{name}.bias"] if self.c.norm == "layernorm" else y

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def rmc(self, h: np.ndarray) -> np.ndarray:
        summary = np.cumsum(h, axis=1) / np.arange(1, h.shape[1] + 1)[:, None]
        r = softmax(self.linear("prelude.0.read", summary)) @ self.w["prelude.0.memory"]
        y = self.linear("prelude.0.proj", np.concatenate([h, r], -1))
        return h + y if self.c.rmc_residual else y

    def nsb(self, h: np.ndarray) -> np.ndarray:
        name = f"prelude.{int(self.c.rmc)}"
        rules = self.w[f"{name}.rules"]
        s = softmax(self.linear(f"{name}.query", h) @ rules.T) @ rules
        return h + self.linear(f"{name}.fc2", silu(self.linear(f"{name}.fc1", np.concatenate([h, s], -1))))

    def attention(self, name: str, n: np.ndarray) -> np.ndarray:
        batch, length, width = n.shape
        size = width // self.c.nhead
        q, k, v = (self.linear(f"{name}.{x}_proj", n).reshape(batch, length, -1, size) for x in "qkv")
        shared = self.c.nhead // self.c.kv_heads
        q, k, v = self.turned(q), np.repeat(self.turned(k), shared, axis=2), np.repeat(v, shared, axis=2)
        scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(size)
        o = softmax(np.where(self.seen, scores, -np.inf)) @ v.transpose(0, 2, 1, 3)
        return self.linear(f"{name}.o_proj", o.transpose(0, 2, 1, 3).reshape(batch, length, width))

    def turned(self, x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[1])[:, None, None] * self.c.rope_base ** (-np.arange(half) / half)
        a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def ffn(self, name: str, n: np.ndarray) -> np.ndarray:
        up = self.linear(f"{name}.up_proj", n)
        inner = silu(self.linear(f"{name}.gate_proj", n)) * up if self.c.ffn == "swiglu" else silu(up)
        return self.linear(f"{name}.down_proj", inner)


CAUSAL = np.tri(9, dtype=bool)


@every
def test_the_equations(kind: str) -> None:
    model, ids = build(**KINDS[kind]), text()
    close(run(model, ids)[0], Formula(model, CAUSAL)(ids), 1e-10)


@every
def test_the_future_changes_nothing_to_the_bit(kind: str) -> None:
    model, ids, other = build(**KINDS[kind]), text(), text(seed=5)
    whole, _, _ = run(model, ids)
    for t in (1, 4, 8):
        changed = np.concatenate([ids[:, :t], other[:, t:]], axis=1)
        assert np.array_equal(run(model, changed)[0][:, :t], whole[:, :t])


def test_the_documents_own_summary_shows_the_future() -> None:
    """Hence for study alone: it cannot be continued, and each token written costs a pass."""
    model, ids = build(rmc_pool="global"), text()
    whole, past, _ = run(model, ids)
    assert past is None
    ids[:, 8] = (ids[:, 8] + 1) % 19
    assert np.abs(run(model, ids)[0][:, :8] - whole[:, :8]).max() > 1e-3
    with pytest.raises(ValueError, match="it has no state to continue"):
        run(model, ids[:, :1], past=run(build(), ids)[1])
    assert model.generate(ids, max_new=2, seed=0).shape == (2, 11)


# ---- past ----


@pytest.mark.parametrize("changes", [*KINDS.values(), WRITTEN, {"kv_heads": 1} | WRITTEN],
                         ids=[*KINDS, "written", "written, multi-query"])
def test_cached_logits_are_the_uncached_ones(changes: dict[str, Any]) -> None:
    model, ids = build(**changes), text()
    whole, _, _ = run(model, ids)
    for cuts in ([5], [1, 2, 3, 4], [7, 8], [0, 4, 4]):
        past, parts = None, []
        for start, end in pairwise([0, *cuts, 9]):
            logits, past, delta = run(model, ids[:, start:end], past=past)
            parts.append(logits)
            assert delta is None
        close(np.concatenate(parts, axis=1), whole, 1e-10)


def test_the_past_is_a_pair_per_block_and_one_more() -> None:
    model, ids = build(), text()
    _, past, _ = run(model, ids)
    assert isinstance(past, list)
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in past)
    shapes = [[x.shape for x in pair] for pair in past]
    assert shapes == [[(2, 2, 9, 4)] * 2] * 2 + [[(2, 1, 1, 16), (2, 1, 1, 2)]]
    close(past[2][0][:, 0, 0], model.embed_tokens.weight.data[ids].sum(axis=1), 1e-12)
    assert past[2][1].tolist() == [[[[9, 9]]]] * 2


def test_a_past_stays_as_it_is() -> None:
    """It can be continued twice, also by more than one token."""
    model, ids, other = build(), text(), text(seed=1)
    _, past, _ = run(model, ids[:, :5])
    before = [[x.copy() for x in pair] for pair in past]
    for rest in (ids[:, 5:], other[:, 5:7], ids[:, 5:]):
        whole = np.concatenate([ids[:, :5], rest], axis=1)
        close(run(model, rest, past=past)[0], run(model, whole)[0][:, 5:], 1e-10)
    assert all(np.array_equal(x, y) for pair, old in zip(past, before, strict=True)
               for x, y in zip(pair, old, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@every
def test_training_gives_the_same_past(kind: str, checkpointing: bool) -> None:
    """While gradients are recorded, too; the logits have theirs."""
    model, ids = build(**KINDS[kind]), text()
    model.gradient_checkpointing = checkpointing
    _, expected, _ = run(model, ids[:, :6])
    logits, past, _ = model(ids[:, :6])
    for pair, other in zip(past, expected, strict=True):
        for x, y in zip(pair, other, strict=True):
            close(x, y, 1e-12)
    rest, _, _ = model(ids[:, 6:], past=past)
    close(rest.data, run(model, ids)[0][:, 6:], 1e-10)
    assert not rest.requires_grad
    logits.sum().backward()
    detached = {"prelude.0.write_weight", "prelude.0.write_bias"} if model.rmc else set()
    assert {name for name, p in model.named_parameters().items() if p.grad is None} == detached


def test_trimming_as_the_document_says() -> None:
    """Oldest keys go; positions and the memory's mean go on: attention without those keys, nothing else."""
    model, ids, keep = build(), text(), 3
    _, past, _ = run(model, ids[:, :6])
    past = [(k[:, :, -keep:, :], v[:, :, -keep:, :]) for k, v in past]
    logits, past, _ = run(model, ids[:, 6:8], past=past)
    seen = CAUSAL.copy()
    seen[6:, :3] = False
    close(logits, Formula(model, seen)(ids)[:, 6:8], 1e-10)
    assert past[0][0].shape == (2, 2, 5, 4)
    past = [(k[:, :, -1:, :], v[:, :, -1:, :]) for k, v in past]
    seen[8, :7] = False
    close(run(model, ids[:, 8:], past=past)[0], Formula(model, seen)(ids)[:, 8:], 1e-10)


def test_without_a_memory_a_plain_list_of_keys_and_values_will_do() -> None:
    """Its positions are then 0 ... L−1."""
    model, ids = build(rmc=False), text()
    _, past, _ = run(model, ids[:, :6])
    close(run(model, ids[:, 6:], past=past[:2])[0], run(model, ids)[0][:, 6:], 1e-10)


@every
def test_padding_changes_nothing(kind: str) -> None:
    model, ids = build(**KINDS[kind]), text(3, 9)
    mask = np.arange(9)[None, :] >= np.array([0, 2, 5])[:, None]
    first, past, _ = run(model, ids[:, :7], mask=mask[:, :7])
    second, past, _ = run(model, ids[:, 7:8], past=past, mask=mask[:, :8])
    third, _, _ = run(model, ids[:, 8:], past=past, mask=mask)
    found = np.concatenate([first, second, third], axis=1)
    for b, start in enumerate((0, 2, 5)):
        close(found[b, start:], run(model, ids[b : b + 1, start:])[0][0], 1e-10)


def test_both_modes_and_packed_rows() -> None:
    """Two texts in one row get what each gets by itself; there is no past, and nothing to write."""
    model, ids = build(), text(1, 9)
    whole, past, _ = run(model, ids, mode="recurrent")
    close(whole, run(model, ids, mode="chunk")[0], 1e-12)
    assert past is not None
    segments = np.array([[1] * 4 + [2] * 5])
    packed, past, _ = run(model, ids, segment_ids=segments)
    assert past is None
    alone = [run(model, ids[:, :4])[0], run(model, ids[:, 4:])[0]]
    close(packed, np.concatenate(alone, axis=1), 1e-10)
    with pytest.raises(ValueError, match="update: packed rows have no summary to write"):
        run(model, ids, segment_ids=segments, update=True)


def test_no_cache_is_no_past() -> None:
    assert run(build(), text(), use_cache=False)[1] is None


def test_what_is_no_past_is_refused() -> None:
    model, ids = build(), text()
    _, past, _ = run(model, ids[:, :4])
    with pytest.raises(ValueError, match=r"past: 2 entries; expected \(K, V\) of each of the 2 blocks and"):
        run(model, ids[:, 4:], past=past[:2])
    with pytest.raises(ValueError, match=r"past\[1\]: V has shape \[2, 2, 3, 4\]; .* = \[2, 2, 4, 4\]"):
        run(model, ids[:, 4:], past=[past[0], (past[1][0], past[1][1][:, :, 1:]), past[2]])
    with pytest.raises(ValueError, match=r"past\[0\]: K has shape \[2, 2, 4, 4\]; .* = \[1, 2, 4, 4\]"):
        run(model, ids[:1, 4:], past=past)
    with pytest.raises(ValueError, match="exceed the context of 32"):
        run(model, text(2, 29), past=past)
    blocks, (sums, seen) = past[:2], past[2]
    for rest in ((sums[:1], seen), (sums, seen[:1]), (sums[..., :0], seen), (sums[:, 0], seen)):
        with pytest.raises(ValueError, match=r"past\[2\]: .*expected \[2, 1, 1, 16\] and \[2, 1, 1, 2\]"):
            run(model, ids[:, 4:], past=[*blocks, rest])
    with pytest.raises(ValueError, match=r"past\[2\]: .*expected \[2, 1, 1, 0\]"):
        run(build(rmc=False), ids[:, 4:], past=past)


# ---- memory ----


def test_a_write_moves_the_memory_when_it_is_applied() -> None:
    model, ids = build(), text()
    before = model.rmc.memory.data.copy()
    _, _, delta = run(model, ids, update=True)
    assert np.array_equal(model.rmc.memory.data, before)
    c = model.embed_tokens.weight.data[ids].mean(axis=1)
    w = softmax(c @ model.rmc.write_weight.data.T + model.rmc.write_bias.data)
    close(delta, w[:, :, None] * c[:, None, :], 1e-12)
    model.rmc.apply_update(delta.mean(0), lr=0.01)
    close(model.rmc.memory.data, before + 0.01 * (delta.mean(0) - w.mean(0)[:, None] * before), 1e-12)
    added = build(rmc_write="add")
    _, _, delta = run(added, ids, update=True)
    added.rmc.apply_update(delta, lr=0.01)
    close(added.rmc.memory.data, before + 0.01 * delta.mean(0), 1e-12)


def test_no_write_unless_asked_for() -> None:
    model = build()
    assert run(model, text())[2] is None
    assert run(build(rmc=False), text(), update=True)[2] is None
    model.generate(text(), max_new=2, seed=0)
    assert model.rmc.delta is None


def test_the_loop_of_the_document_learns() -> None:
    """Cross-entropy, optimizer, then the write; the memory's weights do not decay."""
    model = NeoFormerX(NeoFormerXConfig(**SMALL), seed=1)
    ids = np.random.default_rng(4).permutation(19)[:13][None]
    x, y = ids[:, :-1], ids[:, 1:]
    optimizer = AdamW(model.named_parameters(), lr=2e-2)
    assert not model.rmc.memory.decay
    for _ in range(40):
        before = model.rmc.memory.data.copy()
        logits, _, delta = model(x, update=True)
        loss = ops.cross_entropy(logits.reshape(-1, 19), y.reshape(-1)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stepped = model.rmc.memory.data.copy()
        model.rmc.apply_update(delta.mean(0), lr=0.01)
        assert not np.array_equal(before, stepped), "the optimizer trains the memory,"
        assert not np.array_equal(stepped, model.rmc.memory.data), "and the write moves it"
    assert loss.item() < 0.05
    assert model.generate(ids[:, :4], max_new=9, temp=0).tolist() == ids.tolist()


@pytest.mark.parametrize("changes", [{}, KINDS["plus"], {"rmc_residual": True} | WRITTEN],
                         ids=["base", "plus", "written"])
def test_gradients(changes: dict[str, Any]) -> None:
    """Of the loss by every parameter, against differences"""
    model, ids = build(**changes), text()

    def loss() -> Any:
        return model.loss(ids[:, :-1], ids[:, 1:], mode="chunk")[0]

    loss().backward()
    found = {name: (p.data, p.grad) for name, p in model.named_parameters().items() if p.grad is not None}
    assert len(found) >= len(model.parameters()) - 2                   # write_weight, write_bias
    check_slopes(lambda: loss().item(), found, tolerance=1e-5)


# ---- generation ----


def test_generation_by_hand() -> None:
    """The likeliest token, one after the other, by the past that forward gives"""
    model, ids = build("float32"), text(2, 5)
    logits, past, _ = run(model, ids)
    found = [ids]
    for _ in range(6):
        found.append(logits[:, -1:].argmax(-1))
        logits, past, _ = run(model, found[-1], past=past)
    assert np.array_equal(model.generate(ids, max_new=6, temp=0), np.concatenate(found, axis=1))


def test_arguments_mean_what_the_generation_loop_calls_otherwise() -> None:
    model, ids = build("float32"), text(2, 5)
    config = SamplingConfig(temperature=1.3, top_k=7, top_p=0.8, repetition_penalty=1.2, max_tokens=8,
                            seed=11)
    rows = generate_batch(model, ids.tolist(), config)
    found = model.generate(ids, 8, 1.3, 7, 0.8, 1.2, 11)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.concatenate([ids, rows], axis=1))
    assert np.array_equal(found, model.generate(ids.tolist(), 8, 1.3, 7, 0.8, 1.2, 11))
    assert not np.array_equal(found, model.generate(ids, 8, 1.3, 7, 0.8, 1.2, seed=12))
    texts = {model.generate(ids, max_new=8, temp=5.0, top_k=None).tobytes() for _ in range(3)}
    assert len(texts) == 3, "without a seed another text every time"


def test_rows_that_met_eos_are_filled_up_with_it() -> None:
    model, ids = build("float32"), text(3, 5)
    free = model.generate(ids, max_new=12, temp=0)
    eos = int(free[0, 8])                                               # met by the first row, or earlier
    found = model.generate(ids, max_new=12, temp=0, eos=eos)
    for row, whole in zip(found, free, strict=True):
        at = np.flatnonzero(whole[5:] == eos)
        end = 5 + int(at[0]) if len(at) else len(row)
        assert np.array_equal(row[:end], whole[:end])
        assert (row[end:] == eos).all()
    assert np.array_equal(model.generate(ids, max_new=12, temp=0, eos=[eos]), found)
    assert model.generate(ids[:1], max_new=12, temp=0, eos=eos).shape[1] <= 9


def test_a_full_context_is_halved_and_the_text_stays_whole() -> None:
    """By the caches: keys are forgotten as `past` would be trimmed; or read anew from position 0"""
    ids = text(2, 6)
    for trim in ("cache", "recompute"):
        model = build("float32", max_seq_len=8)
        found = model.generate(ids, max_new=9, temp=0, trim=trim)
        assert found.shape == (2, 15)
        assert np.array_equal(found[:, :6], ids)
        logits, past, _ = run(model, ids)
        held = 6
        for t in range(6, 15):
            new = logits[:, -1:].argmax(-1)
            assert np.array_equal(found[:, t : t + 1], new), (trim, t)
            if held == 8 and trim == "recompute":
                _, past, _ = run(model, found[:, t - 4 : t])
            elif held == 8:
                past = [(k[:, :, -4:, :], v[:, :, -4:, :]) for k, v in past]
            held = (4 if held == 8 else held) + 1
            logits, past, _ = run(model, new, past=past)
    assert build("float32", max_seq_len=8).generate(text(1, 11), max_new=1, seed=0).shape == (1, 12)
    with pytest.raises(ValueError, match="trim: 'half' is not known"):
        model.generate(ids, trim="half")
    with pytest.raises(ValueError, match=r"x: shape \[3\] of int64; expected integers \[batch, length\]"):
        model.generate([1, 2, 3])


# ---- configurations ----


def by_hand(d: int, layers: int, heads: int, groups: int, matrices: int, norm: int) -> int:
    """matrices: of a feed-forward; norm: parameters of a norm / d"""
    v, inner, attention = 100277, 4 * d, 2 * d * d + 2 * d * d * groups // heads
    rmc = 32 * d + 2 * 32 * (d + 1) + d * (2 * d + 1)
    nsb = 32 * 32 + 32 * (d + 1) + d * (d + 32) + d * d
    return v * d + layers * (attention + matrices * d * inner + 2 * norm * d) + norm * d + rmc + nsb


DIMENSIONS = {"125M": (768, 12, 12, 3), "350M": (1024, 24, 16, 4), "760M": (1536, 32, 16, 4)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_dimensions_and_size_and_allocate_nothing(name: str) -> None:
    config, plus = preset(name), name.endswith("-plus")
    d, layers, heads, groups = DIMENSIONS[name.removesuffix("-plus")]
    assert (config.d_model, config.layers, config.nhead, config.kv_heads) == (d, layers, heads, groups)
    assert (config.mem_size, config.rules, config.rdim) == (32, 32, 32)
    assert (config.norm, config.ffn) == (("rmsnorm", "swiglu") if plus else ("layernorm", "silu"))
    model = NeoFormerX(config)
    shape = (3, 1) if plus else (2, 2)
    expected = by_hand(d, layers, heads, groups, *shape)
    assert model.num_parameters() == config.num_parameters() == sum(config.counts().values()) == expected
    assert not any(p.allocated for p in model.parameters())


def test_the_numbers_of_the_document() -> None:
    counts = {name: config.num_parameters() for name, config in PRESETS.items()}
    assert counts == {"125M": 153_853_024, "350M": 371_385_440, "760M": 956_634_208, "125M-plus": 182_145_376,
                      "350M-plus": 471_998_560, "760M-plus": 1_258_524_256}
    smaller = [preset(name, vocab_size=50257).num_parameters() for name in ("125M", "350M", "760M")]
    assert smaller == [115_437_664, 320_164_960, 879_803_488]
    assert preset("125M").counts() == {"blocks": 74_356_224, "memory": 2_484_064, "embedding": 77_012_736}
    near = preset("125M-plus", ffn_size=2048).num_parameters()              # 8/3 d: as large as two matrices
    assert near == 153_853_024 - 25 * 768
    table = sizes()
    assert all(f"{count:,}" in table for count in counts.values())
    assert len(table.splitlines()) == 7


def test_heads_and_groups_of_the_presets() -> None:
    found = [(c.d_model // c.nhead, c.nhead // c.kv_heads) for c in (preset(name) for name in DIMENSIONS)]
    assert found == [(64, 4), (64, 4), (96, 4)]
    assert all(preset(name).kv_heads == preset(name).nhead // 4 for name in DIMENSIONS)


@pytest.mark.parametrize(("changes", "message"), [
    ({"nhead": 3}, "d_model: 16 does not give 3 heads an even number"),
    ({"nhead": 16, "kv_heads": 4}, "d_model: 16 does not give 16 heads an even number"),
    ({"kv_heads": 3}, "kv_heads: 3 does not divide nhead = 4"),
    ({"ffn": "swigloo"}, "ffn: 'swigloo' is not known; did you mean 'swiglu'"),
    ({"norm": "rms"}, "norm: 'rms' is not known"),
    ({"rmc_pool": "mean"}, r"rmc_pool: 'mean' is not known.*known: causal, global"),
    ({"rmc_write": "set"}, "rmc_write: 'set' is not known"),
    ({"layers": 0}, "layers: 0 is not positive"),
    ({"ffn_size": -1}, "ffn_size: -1 is negative"),
    ({"options": {"engram": {}}}, "options: 'engram' is not known"),
    ({"rope_base": -1.0}, "rope_base: -1.0 is negative; 0 means no positions"),
])
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeoFormerXConfig(**SMALL | changes)


def test_a_preset_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="preset: '125' is not known; did you mean '125M'"):
        preset("125")
    with pytest.raises(ValueError, match=r"NeoFormerXConfig.layer: unknown setting; did you mean 'layers'"):
        preset("125M", layer=3)
    with pytest.raises(ValueError, match="NeoFormerXConfig.core: unknown setting"):
        preset("125M", core=None)


def test_files_hold_a_configuration_and_weights_open_as_a_language_model(tmp_path: Path) -> None:
    config = NeoFormerXConfig(**SMALL, rope_scaling=RopeScaling("ntk", factor=4.0), **WRITTEN)
    save(config, tmp_path / "model.yaml")
    assert load(tmp_path / "model.yaml", NeoFormerXConfig) == config
    model, ids = build(), text()
    opened = LanguageModel(model.config, dtype="float64")
    opened.load_state_dict(model.state_dict())
    with no_grad():
        assert np.array_equal(opened(ids).data, run(model, ids)[0])


def test_rope_is_stretched_by_the_configuration() -> None:
    stretched = RopeScaling("ntk", factor=4.0)
    config = NeoFormerXConfig(**SMALL, rope_base=500.0, rope_scaling=stretched)
    attention: Any = config.core.stack.layers()[0].blocks["mixer"]
    assert (attention.rope_theta, attention.rope_scaling, attention.max_seq_len) == (500.0, stretched, 32)


def test_weights_start_as_told() -> None:
    model = NeoFormerX(NeoFormerXConfig(vocab_size=500, d_model=128, nhead=4, kv_heads=1, layers=8))
    for name, parameter in model.named_parameters().items():
        values = parameter.data
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert abs(values.std() / (0.02 / 4.0) - 1.0) < 0.03, name          # / sqrt(2 · 8)
        elif name == "prelude.0.memory":
            assert abs(values.std() / 0.01 - 1.0) < 0.03
        elif name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1.0).all(), name
        elif values.size > 4000:
            assert abs(values.std() / 0.02 - 1.0) < 0.05, name
    ids = np.random.default_rng(0).integers(0, 500, (4, 33))
    assert abs(model.loss(ids[:, :-1], ids[:, 1:])[1]["loss"] - np.log(500)) < 0.1
