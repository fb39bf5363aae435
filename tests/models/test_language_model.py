"""A language model of any blocks: counts, states, padding, loss, weights."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from nn import MoETransformerConfig, no_grad
from nn.config import dump, load
from nn.errors import InputError
from nn.layers.formulas import total
from nn.models import LanguageModel, LanguageModelConfig, ModelState
from nn.ops.count import count_flops
from tests.gradients import leaf
from tests.models import tiny
from tests.models.mixed import EVERY, VARIANTS, config, ids, model


@pytest.fixture(params=EVERY)
def made(request: Any) -> LanguageModel:
    mixer, changes = EVERY[request.param]
    return model(mixer, **changes)


def test_counts_are_formulas(made: LanguageModel) -> None:
    """Parameters there are, operations executed: together, and one token behind others"""
    c, tokens = made.config, ids(2, 9)
    assert total(c.parameters()) == sum(p.data.size for p in made.parameters()) == made.num_parameters()
    with no_grad(), count_flops() as chunk:
        made(tokens, mode="chunk")
    assert chunk.flops == total(c.flops(2, 9, mode="chunk"))
    state = made.init_state(2)
    made(tokens, cache=state, mode="chunk")
    with count_flops() as step:
        made(tokens[:, :1], cache=state, mode="recurrent")
    assert step.flops == total(c.flops(2, 1, past=9, mode="recurrent"))


def test_a_state_continues(made: LanguageModel) -> None:
    """By parts, saved and loaded between, rows exchanged; padding is nothing"""
    tokens = ids(2, 9)
    with no_grad():
        whole = made(tokens).data
    state = made.init_state(2)
    first = made(tokens[:, :4], cache=state).data
    loaded = made.init_state(2)
    loaded.load_state_dict(state.state_dict())
    loaded.reorder(np.array([1, 0]))
    rest = [made(tokens[::-1, t : t + 1], cache=loaded).data for t in range(4, 9)]
    assert (loaded.length, loaded.offset) == (9, 9)
    np.testing.assert_allclose(np.concatenate([first, np.concatenate(rest, axis=1)[::-1]], axis=1), whole,
                               rtol=1e-8, atol=1e-9)


def test_padding_is_nothing(made: LanguageModel) -> None:
    tokens, mask = ids(2, 9), np.ones((2, 9), bool)
    mask[1, :3] = False
    with no_grad():
        alone = made(tokens[1:, 3:]).data
        together = made(tokens, mask=mask).data
    np.testing.assert_allclose(together[1:, 3:], alone, rtol=1e-8, atol=1e-9)
    state = made.init_state(2)
    made(tokens[:, :5], cache=state, mask=mask[:, :5])
    rest = made(tokens[:, 5:], cache=state, mask=mask).data
    np.testing.assert_allclose(rest[1:], alone[:, 2:], rtol=1e-8, atol=1e-9)


def test_the_loss_is_that_of_the_logits(made: LanguageModel) -> None:
    """And every gradient, but what auxiliary losses add, is that of a loss formed from them"""
    tokens, labels = ids(2, 9), ids(2, 9, seed=3)
    labels[0, 2] = -100
    found, figures = made.loss(tokens, labels)
    logits = made(tokens, mode="chunk").data.reshape(18, -1)
    flat = labels.reshape(-1)
    lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    each = (lse - logits[np.arange(18), np.maximum(flat, 0)])[flat >= 0]
    assert figures["loss"] == pytest.approx(each.mean(), rel=1e-10)
    found.backward()
    gradients = {name: p.grad for name, p in made.named_parameters().items()}
    made.zero_grad()
    made.gradient_checkpointing = True
    made.loss(tokens, labels)[0].backward()
    for name, parameter in made.named_parameters().items():
        assert (gradients[name] is None) == (parameter.grad is None), name
        assert gradients[name] is None or np.array_equal(gradients[name], parameter.grad), name


def test_weights_are_saved_and_drawn_by_name(made: LanguageModel) -> None:
    twin = LanguageModel(made.config, seed=2, dtype="float64")
    tokens = ids()
    with no_grad():
        assert not np.array_equal(twin(tokens).data, made(tokens).data)
        twin.load_state_dict(made.state_dict())
        assert np.array_equal(twin(tokens).data, made(tokens).data)


@pytest.mark.parametrize("name", EVERY)
def test_a_file_holds_the_configuration(name: str, tmp_path: Any) -> None:
    mixer, changes = EVERY[name]
    made = config(mixer, **changes)
    (tmp_path / "model.yaml").write_text(dump(made))
    assert load(tmp_path / "model.yaml", LanguageModelConfig) == made


@pytest.mark.parametrize("name", ["as it is", "qk-norm", "window", "tied", "layernorm", "dense gelu"])
def test_it_is_the_mixture_of_experts_when_it_has_its_blocks(name: str) -> None:
    """The same weights by other names: the same logits, loss and gradients"""
    moe = tiny.model(**tiny.VARIANTS[name])
    c = moe.config
    ffn, own = "mlp", {"activation": c.ffn, "intermediate_size": c.intermediate_size}
    if c.num_experts:
        ffn, own = "moe", {"num_experts": 4, "top_k": c.top_k, "intermediate_size": c.intermediate_size}
    made = LanguageModel(LanguageModelConfig(
        vocab_size=31, hidden_size=16, num_layers=2, norm=c.norm, feed_forward=ffn,
        tie_embeddings=c.tie_embeddings, options={
            "full_attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "window": c.sliding_window,
                               "qk_norm": c.qk_norm},
            ffn: own}), dtype="float64")
    inner = "feed_forward.moe." if c.num_experts else "feed_forward.ffn."

    def renamed(arrays: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key, array in arrays.items():
            for ours, theirs in (("layers.", "body.layers."), ("input_layernorm", "connection.norms.0"),
                                 ("post_attention_layernorm", "connection.norms.1"), ("self_attn", "mixer"),
                                 ("mlp.", inner)):
                key = key.replace(ours, theirs)
            found[key] = array
        return found

    made.load_state_dict(renamed(moe.state_dict()))
    with no_grad():
        np.testing.assert_allclose(made(ids()).data, moe(ids()).data, rtol=1e-12, atol=1e-13)
    (here, figures), (there, expected) = (each.loss(ids(), ids(seed=3)) for each in (made, moe))
    here.backward()
    there.backward()
    assert here.item() == pytest.approx(there.item(), rel=1e-13)
    assert figures.keys() == expected.keys()
    gradients = renamed({key: p.grad for key, p in moe.named_parameters().items()})
    for key, parameter in made.named_parameters().items():
        np.testing.assert_allclose(parameter.grad, gradients[key], rtol=1e-9, atol=1e-13, err_msg=key)


# ---- the choices of the model itself ----


def test_a_tied_head_has_both_gradients() -> None:
    """Of the table as embedding, and as head"""
    tokens, labels = ids(), ids(seed=3)
    tied = model("retention", tie_embeddings=True)
    untied = model("retention")
    weights = tied.state_dict()
    untied.load_state_dict(weights | {"lm_head.weight": weights["embed_tokens.weight"]})
    tied.loss(tokens, labels)[0].backward()
    untied.loss(tokens, labels)[0].backward()
    assert "lm_head.weight" not in tied.named_parameters()
    np.testing.assert_allclose(tied.embed_tokens.weight.grad,
                               untied.embed_tokens.weight.grad + untied.lm_head.weight.grad, rtol=1e-10)


def test_scale_and_softcap() -> None:
    plain, shaped = model("retention"), model("retention", embedding_scale=3.0, logit_softcap=2.0)
    tokens = ids()
    shaped.load_state_dict(plain.state_dict())
    plain.embed_tokens.weight.data = plain.embed_tokens.weight.data * 3.0
    with no_grad():
        np.testing.assert_allclose(shaped(tokens).data, 2.0 * np.tanh(plain(tokens).data / 2.0), rtol=1e-12)


def test_learned_positions_are_added_and_end() -> None:
    made = model("retention", positions="learned", max_seq_len=6)
    tokens, table = ids(1, 6), made.position_embedding.weight.data
    with no_grad():
        shifted = made(tokens).data
        made.position_embedding.weight.data = np.zeros_like(table)
        rows = made.embed_tokens.weight.data[tokens[0]] + table
        made.embed_tokens.weight.data = np.concatenate([rows, made.embed_tokens.weight.data[6:]])
        np.testing.assert_allclose(made(np.arange(6)[None]).data, shifted, rtol=1e-12)
    with pytest.raises(InputError, match="exceed the context of 6"):
        made(ids(1, 7))


def test_sinusoidal_positions() -> None:
    made = model("retention", positions="sinusoidal", prelude=(), num_layers=2)
    with no_grad():
        x = made._embedded(np.zeros((1, 3), int), None, None).data[0] - made.embed_tokens.weight.data[0]
    angles = np.arange(3)[:, None] / 10000.0 ** (np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(x[:, 0::2], np.sin(angles), atol=1e-12)
    np.testing.assert_allclose(x[:, 1::2], np.cos(angles), atol=1e-12)


@pytest.mark.parametrize(("scheme", "inner", "outer", "table"), [
    ("normal", 0.02, 0.02, 0.02), ("gpt2", 0.02, 0.02 / math.sqrt(2 * 4), 0.02),
    ("kaiming", math.sqrt(2 / 64), math.sqrt(2 / 96), math.sqrt(2 / 64)),
    ("takase", math.sqrt(2 / 320), math.sqrt(2 / 320) / math.sqrt(2 * 4), math.sqrt(2 / 320))])
def test_initial_weights(scheme: str, inner: float, outer: float, table: float) -> None:
    made = LanguageModel(LanguageModelConfig(
        vocab_size=200, hidden_size=64, num_layers=4, init_scheme=scheme,
        options={"swiglu": {"intermediate_size": 96}}))
    layer = made.body.layers[0]
    ffn = layer.feed_forward.ffn
    for found, expected in ((ffn.up_proj, inner), (ffn.down_proj, outer), (made.embed_tokens, table)):
        assert found.weight.data.std() == pytest.approx(expected, rel=0.05)
        assert abs(found.weight.data.mean()) < 0.1 * expected


def test_a_recursion_starts_as_small_as_it_is_deep() -> None:
    """takase: projections into the stream / sqrt(2 · all layers that a token passes)"""
    made = LanguageModelConfig(num_layers=3, init_scheme="takase", body="recursion", recursion={
        "recurrence_steps": 4, "prelude": {"num_layers": 1}, "coda": {}})
    assert made.out_std == pytest.approx(math.sqrt(2 / 320) / math.sqrt(2 * (1 + 3 * 4 + 2)), rel=1e-12)


def test_a_fresh_model_knows_nothing() -> None:
    made = LanguageModel(LanguageModelConfig(vocab_size=97, options={"swiglu": {"intermediate_size": 96}}))
    assert made.loss(ids(4, 16), ids(4, 16, seed=3))[1]["loss"] == pytest.approx(math.log(97), abs=0.05)


def test_depth_is_chosen_at_the_call() -> None:
    made = model(*VARIANTS["recursion"][:1], **VARIANTS["recursion"][1])
    with no_grad():
        three, one = made(ids()).data, made(ids(), n_steps=1).data
        state = made.init_state(2, n_steps=1)
        parts = [made(ids()[:, t : t + 1], cache=state, n_steps=1).data for t in range(9)]
    assert not np.allclose(three, one)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), one, rtol=1e-9, atol=1e-10)


def test_cross_attention_takes_its_context_and_gives_it_gradients() -> None:
    made = model("full_attention", memory="cross_attention", memory_at="post_attn",
                 options={"cross_attention": {"num_heads": 2, "context_length": 5}})
    context, mask = leaf(np.random.default_rng(0).standard_normal((2, 5, 8))), np.ones((2, 5), bool)
    mask[1, 3:] = False
    with no_grad():
        whole = made(ids(), context=context, context_mask=mask).data
        context_2 = context.data.copy()
        context_2[1, 3:] = 7.0
        assert np.array_equal(made(ids(), context=leaf(context_2), context_mask=mask).data, whole)
    state = made.init_state(2)
    first = made(ids()[:, :4], cache=state, context=context, context_mask=mask).data
    rest = made(ids()[:, 4:], cache=state, context_mask=mask).data
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, rtol=1e-9, atol=1e-10)
    gradients = []
    for checkpointing in (False, True):
        made.gradient_checkpointing, context.grad = checkpointing, None
        made.loss(ids(), ids(seed=3), context=context, context_mask=mask)[0].backward()
        gradients.append(context.grad)
        made.zero_grad()
    assert np.abs(gradients[0]).max() > 0
    assert not gradients[0][1, 3:].any()
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-12, atol=1e-15)
    with pytest.raises(InputError, match="needs context"):
        made(ids())


def test_recomputing_takes_less_memory() -> None:
    """Eight layers: what one of them keeps, and each one's input"""
    made = model(("full_attention", "retention") * 4, "float32")
    peaks = []
    for recompute in (False, True):
        made.gradient_checkpointing = recompute
        tracemalloc.start()
        made.loss(ids(4, 24), ids(4, 24))[0].backward()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        made.zero_grad()
    assert peaks[1] < 0.5 * peaks[0]


def test_noise_is_a_function_of_the_step() -> None:
    made = model("full_attention", prelude=("nsb",), feed_forward="moe", options={
        "nsb": {"dropout": 0.5, "rules": 6}, "moe": {"num_experts": 4, "router_jitter": 0.3}})
    made.train()

    def loss(*place: int) -> float:
        made.set_noise(*place)
        return made.loss(ids(), ids(seed=3))[1]["loss"]

    assert loss(0, 1, 0) == loss(0, 1, 0)
    assert len({loss(0, 1, 0), loss(0, 2, 0), loss(0, 1, 1), loss(5, 1, 0)}) == 4
    made.eval()
    assert loss(0, 1, 0) == loss(0, 2, 0)


def test_trimming_drops_caches_and_keeps_what_summarises() -> None:
    made = model(("full_attention", "retention"))
    state = made.init_state(2)
    made(ids(), cache=state)
    attention, retention = (layer.mixer for layer in state.body.layers)
    before = retention.copy()
    state.trim(4)
    assert (state.length, state.offset, attention.length, attention.offset) == (4, 9, 4, 9)
    for name, values in before.state_dict().items():
        assert np.array_equal(values, retention.state_dict()[name])
    assert made.context == 24
    assert model("retention").context is None
    assert model("sliding_attention").context is None
    assert model("retention", positions="learned").context == 24


# ---- errors ----


@pytest.mark.parametrize(("changes", "message"), [
    ({"mixer": "retntion"}, "did you mean 'retention'"), ({"feed_forward": "swigl"}, "swiglu"),
    ({"options": {"moe": {}}}, "options: 'moe' is not known"),
    ({"options": {"full_attention": {"num_head": 2}}}, "num_heads"),
    ({"body": "loop"}, "body: 'loop'"), ({"recursion": {"rule": "norm"}}, "set body: recursion"),
    ({"positions": "rope"}, "positions: 'rope'"), ({"hidden_size": 0}, "hidden_size: 0 is not positive"),
    ({"prelude": ("swiglu",)}, "memory: 'swiglu'"), ({"init_scheme": "x"}, "init_scheme"),
    ({"mixer": ("full_attention", "mla"), "causal": False}, "mla lets no token see a later one"),
    ({"memory": "rmc", "options": {"rmc": {"summary": "mean", "allow_noncausal": True}}}, "future"),
    ({"logit_softcap": -1.0}, "logit_softcap: -1.0"), ({"init_std": math.nan}, "init_std: nan"),
    ({"logit_softcap": math.inf}, "logit_softcap: inf"), ({"mtp_weight": math.nan}, "mtp_weight: nan"),
    ({"embedding_scale": 0.0}, "embedding_scale: 0.0")])
def test_what_a_configuration_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LanguageModelConfig(**changes)


@pytest.mark.parametrize("config", [LanguageModelConfig(), MoETransformerConfig()], ids=["blocks", "experts"])
def test_a_change_of_no_field_is_refused_with_the_nearest(config: Any) -> None:
    with pytest.raises(InputError, match="hiden_size: unknown setting; did you mean 'hidden_size'"):
        config.replace(hiden_size=8)


def test_what_a_model_refuses() -> None:
    made = model()
    with pytest.raises(InputError, match="input: 'contxt' is not known; did you mean 'context'"):
        made(ids(), contxt=1)
    with pytest.raises(InputError, match=r"cache: list; use init_state\(\)"):
        made(ids(), cache=[1])
    with pytest.raises(InputError, match="exceed the context of 24"):
        made(ids(1, 25))
    with pytest.raises(InputError, match="mode: 'chunky' is not known"):
        made(ids(), mode="chunky")
    with pytest.raises(InputError, match="keep: -1 tokens"):
        model("retention").init_state(1).trim(-1)
    for other in (model(num_layers=3), model(body="recursion"), model(prelude=("rmc",))):
        with pytest.raises(InputError, match=r"cache: of a model of other layers"):
            made(ids(), cache=other.init_state(2))
    with pytest.raises(InputError, match=r"cache: made for 1 rows, ids have 2; use init_state\(2\)"):
        made(ids(), cache=made.init_state(1))
    state = model("nsa").init_state(2)
    with pytest.raises(InputError, match="NSAState cannot drop"):
        state.trim(3)
    assert isinstance(made.init_state(1), ModelState)
