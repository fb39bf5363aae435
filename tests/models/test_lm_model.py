"""LMModel (LinearNexus): its blocks, its states, its presets, and what it computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import Tensor, no_grad
from nn.cache import LayerCache
from nn.config import load, save
from nn.generate import SamplingConfig, generate
from nn.layers import registry
from nn.layers.attention import KVCache, MLACache
from nn.layers.attention.window import RingCache
from nn.layers.layer_block import LayerBlock
from nn.layers.ssm import MambaState
from nn.models import LanguageModel
from nn.models.lm_config import (
    DELTA_HYBRID_SMALL,
    GPT_SMALL,
    GPT_TINY,
    JAMBA_SMALL,
    MAMBA2_SMALL,
    MAMBA_SMALL,
    MLA_SMALL,
    PRESETS,
    ModelConfig,
)
from nn.models.lm_model import BLOCKS, LMModel, ModelState, _create_block, create_model
from nn.optim import AdamW
from tests.blocks.harness import close, shaken

SMALL: dict[str, Any] = {"vocab_size": 23, "hidden_size": 16, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2,
                         "intermediate_size": 12, "max_seq_len": 64, "state_size": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "mamba": {"chunk_size": 4}, "mamba2": {"head_dim": 8, "state_size": 4, "chunk_size": 4},
    "sliding_attention": {"window": 3}, "retention": {"chunk_size": 4}, "delta_net": {"chunk_size": 4},
    "gated_delta_net": {"head_dim": 4, "chunk_size": 4}, "gla": {"gate_low_rank": 4, "chunk_size": 4}}
PATTERNS: dict[str, tuple[Any, tuple[str, ...]]] = {      # as given, and the mixers with options
    "gpt": ("attention", ()), "mamba": ("mamba", ("mamba",)), "mla": (["mla"], ()),
    "hybrid": ("MA", ("mamba",)), "three": (["mamba", "attn", "mla"], ("mamba",)),
    "linear": (["retention", "deltanet", "gla"], ("retention", "delta_net", "gla")),
    "second": (["mamba2", "sliding", "gated_deltanet"], ("mamba2", "sliding_attention", "gated_delta_net"))}


def config(pattern: str, **changes: Any) -> ModelConfig:
    blocks, kinds = PATTERNS[pattern]
    return ModelConfig(**SMALL | {"block_pattern": blocks, "options": {kind: OPTIONS[kind] for kind in kinds}}
                       | changes)


def build(pattern: str, dtype: str = "float64", **changes: Any) -> LMModel:
    """With weights far enough from their start that every part matters"""
    return shaken(LMModel(config(pattern, **changes), dtype=dtype), 1)


def text(batch: int = 2, length: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 23, (batch, length))


def run(model: LMModel, ids: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    with no_grad():
        logits, state = model(ids, **options)
    return logits.data, state


every = pytest.mark.parametrize("pattern", PATTERNS)


# ---- what it computes ----


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def turned(x: np.ndarray) -> np.ndarray:
    """[B,T,H,4], pairs (i, i + 2)"""
    angle = np.arange(x.shape[1])[:, None, None] * 10000.0 ** (-np.arange(2) / 2)
    a, b = x[..., :2], x[..., 2:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def test_gpt_by_its_equations() -> None:
    model, ids = build("gpt"), text()
    w = {name: p.data for name, p in model.named_parameters().items()}
    x = w["embed_tokens.weight"][ids]
    for i in range(3):
        own = {name.removeprefix(f"body.layers.{i}."): p for name, p in w.items() if f".{i}." in name}
        n = norm(x, own["connection.norms.0.weight"])
        q, k, v = (np.reshape(n @ own[f"mixer.{name}_proj.weight"].T, (2, 9, -1, 4)) for name in "qkv")
        q, k, v = turned(q), np.repeat(turned(k), 2, axis=2), np.repeat(v, 2, axis=2)
        scores = np.where(np.tri(9)[:, :, None] > 0, np.einsum("bihd,bjhd->bijh", q, k) / 2.0, -np.inf)
        p = np.exp(scores - scores.max(2, keepdims=True))
        o = np.einsum("bijh,bjhd->bihd", p / p.sum(2, keepdims=True), v).reshape(2, 9, 16)
        x = x + o @ own["mixer.o_proj.weight"].T
        n = norm(x, own["connection.norms.1.weight"])
        gate, up = (n @ own[f"feed_forward.ffn.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1.0 + np.exp(-gate)) * up) @ own["feed_forward.ffn.down_proj.weight"].T
    close(run(model, ids)[0], norm(x, w["norm.weight"]) @ w["embed_tokens.weight"].T, 1e-10)


@every
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-9)])
def test_chunks_and_recurrence_agree(pattern: str, dtype: str, rtol: float) -> None:
    """Whole models, in both modes, whole or in parts, one token at a time or several"""
    model, ids = build(pattern, dtype), text()
    whole, _ = run(model, ids, mode="chunk")
    close(run(model, ids, mode="recurrent")[0], whole, rtol)
    for cuts, mode in (([4], None), ([1, 2, 3, 8], None), ([3, 7], "recurrent"), ([0, 5], "chunk")):
        state, parts = model.init_state(2), []
        for start, end in zip([0, *cuts], [*cuts, 9], strict=True):
            logits, state = run(model, ids[:, start:end], state=state, mode=mode)
            parts.append(logits)
        close(np.concatenate(parts, axis=1), whole, rtol)
        assert (state.position, state.length) == (9, 9)


@every
def test_a_state_comes_back_always_and_continues(pattern: str) -> None:
    """Also while gradients are recorded: the logits have theirs, the state is what it is without."""
    model, ids = build(pattern), text()
    logits, state = model(ids[:, :5])
    assert logits.requires_grad
    assert state.position == 5
    rest, _ = model(ids[:, 5:], state=state)
    close(rest.data, run(model, ids)[0][:, 5:], 1e-9)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@every
def test_a_state_can_be_continued_twice_unless_it_is_given_up(pattern: str) -> None:
    model, ids, other = build(pattern), text(), text(seed=1)
    _, state = run(model, ids[:, :5])
    for rest in (ids[:, 5:], other[:, 5:], ids[:, 5:]):
        whole = np.concatenate([ids[:, :5], rest], axis=1)
        close(run(model, rest, state=state)[0], run(model, whole)[0][:, 5:], 1e-9)
    again, same = run(model, ids[:, 5:], state=state, donate=True)
    assert same is state
    assert state.position == 9
    close(again, run(model, ids)[0][:, 5:], 1e-9)


@every
def test_padding_changes_nothing(pattern: str) -> None:
    """Rows with padding in front, then continued, with a mask of the new tokens, of all, or none"""
    model, ids = build(pattern), text(3, 10)
    mask = (np.arange(7)[None, :] >= np.array([0, 2, 5])[:, None]).astype(int)
    alone = [run(model, ids[b : b + 1, 7 - count :])[0][0] for b, count in enumerate(mask.sum(axis=1))]
    for later in (None, np.ones((3, 2), int), np.concatenate([mask, np.ones((3, 2), int)], axis=1)):
        first, state = run(model, ids[:, :7], mask=mask)
        second, state = run(model, ids[:, 7:9], state=state, mask=later)
        third, _ = run(model, ids[:, 9:], state=state)
        found = np.concatenate([first, second, third], axis=1)
        for b, expected in enumerate(alone):
            close(found[b, 10 - len(expected) :], expected, 1e-9)


def test_a_mask_of_another_length_is_refused() -> None:
    model, ids = build("gpt"), text()
    _, state = run(model, ids[:, :4])
    with pytest.raises(ValueError, match=r"mask: shape \[2, 3\]; expected \[2, 2\].*or \[2, 6\]"):
        run(model, ids[:, :2], state=state, mask=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"mask: shape \[1, 2\]; expected \[2, 2\]"):
        run(model, ids[:, :2], state=state, mask=np.ones((1, 2), bool))


@pytest.mark.parametrize("pattern", ["gpt", "three"])
def test_packed_rows(pattern: str) -> None:
    """Two texts in one row get what each gets by itself; there is no state."""
    model, ids = build(pattern), text(1, 9)
    packed, state = run(model, ids, segment_ids=np.array([[1] * 4 + [2] * 5]))
    assert state is None
    close(packed, np.concatenate([run(model, ids[:, :4])[0], run(model, ids[:, 4:])[0]], axis=1), 1e-9)


@every
def test_rows_are_reordered_and_old_tokens_dropped(pattern: str) -> None:
    model, ids = build(pattern), text(3, 9)
    mask = np.arange(6)[None, :] >= np.array([0, 2, 0])[:, None]
    _, state = run(model, ids[:, :6], mask=mask)
    close(run(model, ids[:, 6:], state=state)[0][[2, 1]],
          run(model, ids[[2, 1], 6:], state=_reordered(state, [2, 1]))[0], 1e-10)
    state.trim(6)
    assert state.mask.shape == (3, 6)
    if pattern == "gpt":
        state.trim(4)
        assert (state.length, state.position) == (4, 6)
        assert np.array_equal(state.mask, mask[:, 2:])
        assert run(model, ids[:, 6:], state=state)[0].shape == (3, 3, 23)


@every
def test_a_state_is_saved_and_loaded(pattern: str) -> None:
    """With its mask, into one that is fresh"""
    model, ids = build(pattern), text(2, 9)
    _, state = run(model, ids[:, :6], mask=np.arange(6)[None, :] >= np.array([[0], [2]]))
    loaded = model.init_state(2)
    loaded.load_state_dict(state.state_dict())
    assert (loaded.position, loaded.length) == (6, 6)
    assert np.array_equal(run(model, ids[:, 6:], state=loaded)[0], run(model, ids[:, 6:], state=state)[0])


def _reordered(state: ModelState, rows: list[int]) -> ModelState:
    copy = state.copy()
    copy.reorder(np.array(rows))
    return copy


# ---- states and blocks ----


def test_one_state_per_block_of_the_right_kind() -> None:
    model = build("three")
    state = model.init_state(batch_size=2)
    assert isinstance(state, ModelState)
    assert [type(each) for each in state.block_states] == [MambaState, KVCache, MLACache]
    assert isinstance(build("second").init_state(2).block_states[1], RingCache)
    _, state = run(model, text())
    mamba, cache, latent = state.block_states
    assert mamba.ssm_state.value.shape == (2, 32, 3)
    assert mamba.conv_state.value.shape == (2, 3, 32)
    assert cache.keys.shape == cache.values.shape == (2, 2, 9, 4)
    assert (mamba.position, cache.position, latent.length) == (9, 9, 9)
    assert latent.k.shape == (2, 1, 9, 16 + 2), "one latent and one turned key for all heads"


@every
def test_the_blocks_make_the_model(pattern: str) -> None:
    """One behind the other, each with its own state, the residual inside"""
    model, ids = build(pattern), text()
    state = model.init_state(2)
    with no_grad():
        for part, first in ((ids[:, :5], 0), (ids[:, 5:], 5)):
            x = model.embed_tokens(part)
            for block, layer in zip(model.blocks, state.body.layers, strict=True):
                x, layer.mixer = block(x, state=layer.mixer, mode="chunk")
            logits = model.logits(model.norm(x))
            close(logits.data, run(model, ids)[0][:, first : first + part.shape[1]], 1e-9)
    names = list(model.named_parameters())
    assert [type(block) for block in model.blocks] == [
        BLOCKS.get(kind, LayerBlock) for kind in model.model_config.block_types]
    assert list(model.named_parameters()) == names


def test_blocks_are_made_by_name() -> None:
    """Any registered mixer; the weights are those of a layer of the model."""
    c = ModelConfig(**SMALL)
    for name in ("attn", "mamba", "mla", "M", "retention"):
        block = _create_block(name, c, layer=1).initialize(3)
        x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
        with no_grad():
            y, none = block(Tensor(x))
            assert none is None
            first, state = block(Tensor(x[:, :2]), state=block.init_state(2))
            second, _ = block(Tensor(x[:, 2:]), state=state)
        close(np.concatenate([first.data, second.data], axis=1), y.data, 1e-5)
    with pytest.raises(ValueError, match="block_pattern: 'mambo' is not known.*did you mean 'mamba'"):
        _create_block("mambo", c)


def test_a_block_of_ones_own_is_named_in_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MIXERS, "mine", "nn.layers.attention.linear.retention.Retention")
    model = LMModel(ModelConfig(**SMALL, block_pattern=["mine", "attention"]))
    assert model.model_config.block_types == ("mine", "full_attention", "mine")
    assert run(model, text())[0].shape == (2, 9, 23)


def test_cache_of_a_layer() -> None:
    """zeros, update, get: update leaves the old cache as it was."""
    cache, random = KVCache.zeros(2, 4, 3, 5), np.random.default_rng(0)
    assert cache.get()[0].shape == (2, 3, 0, 5)
    k, v = random.standard_normal((2, 2, 3, 3, 5)).astype(np.float32)
    first = cache.update(k, v)
    second = first.update(k[:, :, :2], v[:, :, :2])                       # beyond its room
    assert (cache.position, first.position, second.position) == (0, 3, 5)
    assert np.array_equal(first.keys, k)
    assert np.array_equal(first.values, v)
    assert np.array_equal(second.get()[0], np.concatenate([k, k[:, :, :2]], axis=2))
    assert isinstance(cache, LayerCache)
    assert KVCache.zeros(1, 2, 1, 4, "bfloat16").keys.dtype == "bfloat16"


# ---- configurations ----


def gpt(v: int, d: int, n: int, f: int) -> int:
    return v * d + n * (4 * d * d + 3 * d * f + 2 * d) + d


def mamba(d: int, rank: int, states: int = 16, taps: int = 4) -> int:
    """One layer: in, convolution, x and dt projections, A, D, out, norm"""
    c = 2 * d
    selected = c * (rank + 2 * states) + (rank + 1) * c
    return 2 * c * d + c * (taps + 1) + selected + c * (states + 1) + c * d + d


def mamba2(d: int, states: int = 128, width: int = 64, taps: int = 4) -> int:
    c, heads = 2 * d, 2 * d // width
    return d * (2 * c + 2 * states + heads) + (c + 2 * states) * (taps + 1) + 3 * heads + c + c * d + d


def mla(d: int, heads: int, rank: int, nope: int, rope: int, v: int) -> int:
    return d * heads * (nope + rope) + d * (rank + rope) + rank + rank * heads * (nope + v) + heads * v * d


COUNTS = {
    "gpt-small": gpt(50257, 768, 12, 3072),
    "gpt-tiny": gpt(256, 64, 2, 256),
    "mla-small": gpt(50257, 768, 12, 3072) + 12 * (mla(768, 12, 256, 64, 32, 64) - 4 * 768**2),
    "mamba-small": 50257 * 768 + 24 * mamba(768, 48) + 768,
    "mamba2-small": 50257 * 768 + 24 * mamba2(768) + 768,
    "jamba-small": gpt(50257, 768, 3, 3072) + 21 * mamba(768, 48),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_size_and_allocate_nothing(name: str) -> None:
    model = create_model(name, seed=0)
    assert model.num_parameters() == PRESETS[name].num_parameters()
    assert not any(p.allocated for p in model.parameters())
    if name in COUNTS:
        assert model.num_parameters() == COUNTS[name]


def test_the_numbers_of_the_document() -> None:
    assert GPT_SMALL.num_parameters() == 151_862_784
    assert GPT_SMALL.replace(vocab_size=65).num_parameters() == 113_315_328
    assert MAMBA_SMALL.num_parameters() == 129_117_696                           # by the paper's dt rank
    assert MAMBA_SMALL.replace(time_step_rank=768).num_parameters() == 182_201_856       # LinearNexus's
    assert MAMBA_SMALL.replace(vocab_size=50280).num_parameters() == 129_135_360         # mamba-130m
    assert GPT_TINY.num_parameters() == 147_776
    assert MLA_SMALL.num_parameters() == 148_621_824
    assert MAMBA2_SMALL.num_parameters() == 128_965_824
    assert JAMBA_SMALL.num_parameters() == 146_118_912
    assert DELTA_HYBRID_SMALL.num_parameters() == 152_029_248


def test_a_layer_of_mamba_keeps_114_kib_at_any_length() -> None:
    state = LMModel(MAMBA_SMALL.replace(n_layers=1, vocab_size=9)).init_state(1)
    assert state.block_states[0].nbytes == 1536 * 16 * 4 + 3 * 1536 * 4 == 116_736


def test_jamba_is_seven_mambas_and_an_attention() -> None:
    kinds = JAMBA_SMALL.block_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [7, 15, 23]
    assert JAMBA_SMALL.core.stack.expanded("feed_forward") == (("none",) * 7 + ("swiglu",)) * 3


def test_a_change_of_no_field_is_refused() -> None:
    for call in (lambda: create_model("gpt-tiny", hiden_size=3), lambda: GPT_TINY.replace(hiden_size=3)):
        with pytest.raises(ValueError, match="ModelConfig.hiden_size: unknown setting; did you mean 'hidden"):
            call()


def test_create_model() -> None:
    """A name or a configuration; a seed or a generator makes the model, without them (config, class)."""
    assert create_model("gpt-small") == (GPT_SMALL, LMModel)
    assert create_model(GPT_TINY)[0] is GPT_TINY
    assert create_model("gpt-tiny", n_layers=1)[0] == GPT_TINY.replace(n_layers=1)
    models = [create_model(GPT_TINY, seed=3), create_model("gpt-tiny", rng=3), LMModel(GPT_TINY, seed=3)]
    weights = [model.embed_tokens.weight.data for model in models]
    assert all(np.array_equal(weights[0], each) for each in weights)
    made = [create_model("gpt-tiny", rng=np.random.default_rng(s)) for s in (1, 1, 2)]
    drawn = [model.embed_tokens.weight.data for model in made]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert create_model("gpt-tiny", seed=0, dtype="bfloat16").embed_tokens.weight.dtype == "bfloat16"
    with pytest.raises(ValueError, match="model_type: 'gpt-smal' is not known; did you mean 'gpt-small'"):
        create_model("gpt-smal")
    with pytest.raises(ValueError, match="rng, seed: give one of them"):
        create_model("gpt-tiny", rng=1, seed=2)
    with pytest.raises(ValueError, match="model_type: int"):
        create_model(3)


@pytest.mark.parametrize(("changes", "message"), [
    ({"block_pattern": "mamab"}, "block_pattern: 'mamab' is not known.*did you mean 'mamba'"),
    ({"block_pattern": ["attention"] * 9}, "block_pattern: a pattern of 9 layers does not fit 3"),
    ({"n_heads": 5, "n_kv_heads": 0}, "hidden_size: 16 is not a multiple of num_heads = 5"),
    ({"n_kv_heads": 3}, "num_kv_heads: 3 does not divide num_heads = 4"),
    ({"vocab_size": 0}, "vocab_size: 0 is not positive"),
    ({"head_dim": -4}, "head_dim: -4 is negative; 0 takes what is usual"),
    ({"norm_type": "layer_norm"}, "norm: 'layer_norm' is not known; did you mean 'layernorm'"),
    ({"options": {"mamba": {}}}, "options: 'mamba' is not known"),
    ({"options": {"attention": {"windw": 3}}}, "windw: unknown setting; did you mean 'window'"),
])
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SMALL | changes)


def test_what_the_fields_mean() -> None:
    c = ModelConfig(**SMALL, head_dim=None, norm_type="layernorm", use_bias=True, rope_base=500.0,
                    tie_embeddings=False, block_pattern=["attn", "mamba", "mla"], q_lora_rank=6)
    layers = c.core.stack.layers()
    mixers: list[Any] = [layer.blocks["mixer"] for layer in layers]
    attention, ssm, latent = mixers
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 4)
    assert (attention.rope_theta, attention.attn_bias, attention.out_bias) == (500.0, True, True)
    assert (ssm.use_bias, ssm.state_size, ssm.rank, ssm.conv_kernel) == (True, 3, 1, 4)
    assert (latent.q_lora_rank, latent.kv_lora_rank) == (6, 16)
    assert (latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim) == (4, 2, 4)
    assert [list(layer.names) for layer in layers] == [["mixer", "feed_forward"], ["mixer"],
                                                       ["mixer", "feed_forward"]]
    model = LMModel(c)
    assert model.lm_head is not None
    assert type(model.norm).__name__ == "LayerNorm"
    attn: Any = model.blocks[0].layer.blocks()["mixer"]
    assert (attn.n_heads, attn.n_kv_heads, attn.n_rep) == (4, 2, 2)


def test_files_hold_a_configuration_and_weights_open_as_a_language_model(tmp_path: Path) -> None:
    """ModelConfig as YAML; and the internal one, by which a checkpoint is opened"""
    for pattern in ("three", "hybrid"):
        save(config(pattern), tmp_path / "model.yaml")
        assert load(tmp_path / "model.yaml", ModelConfig) == config(pattern)
    model, ids = build("three"), text()
    opened = LanguageModel(model.config, dtype="float64")
    opened.load_state_dict(model.state_dict())
    with no_grad():
        assert np.array_equal(opened(ids).data, model(ids, last_only=False).data)


# ---- in use ----


@pytest.mark.parametrize("pattern", ["gpt", "mamba", "mla", "hybrid"])
def test_it_trains_and_writes(pattern: str) -> None:
    """The same twelve tokens, over and over: learned by heart, then written by the generation loop"""
    model = LMModel(config(pattern), seed=1)
    ids = np.random.default_rng(4).permutation(23)[:13][None]
    optimizer = AdamW(model.named_parameters(), lr=2e-2)
    for _ in range(40):
        model.zero_grad()
        total, figures = model.loss(ids[:, :-1], ids[:, 1:])
        total.backward()
        optimizer.step()
    assert figures["loss"] < 0.05
    written = list(generate(model, ids[0, :4].tolist(), SamplingConfig(temperature=0, max_tokens=9)))
    assert written == ids[0, 4:].tolist()
    assert list(generate(model, ids[0, :4].tolist(), SamplingConfig(temperature=0, max_tokens=9),
                         use_cache=False)) == written


def test_weights_start_as_told() -> None:
    model = LMModel(ModelConfig(vocab_size=500, hidden_size=128, n_layers=8, n_heads=4, block_pattern="MA"))
    for name, parameter in model.named_parameters().items():
        values = parameter.data
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            assert abs(values.std() / (0.02 / 4.0) - 1.0) < 0.03, name          # / sqrt(2 · 8)
        elif name.endswith(("q_proj.weight", "in_proj.weight", "gate_proj.weight", "embed_tokens.weight")):
            assert abs(values.std() / 0.02 - 1.0) < 0.03, name
        elif "norm" in name:
            assert (values == 1.0).all()
    ids = np.random.default_rng(0).integers(0, 500, (4, 33))
    assert abs(model.loss(ids[:, :-1], ids[:, 1:])[1]["loss"] - np.log(500)) < 0.1
