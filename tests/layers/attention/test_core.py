"""Softcap, dropout and caches of fixed size: formulas, limits, and when they are off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.cache import StaticKVCache
from nn.errors import InputError
from nn.layers import registry
from nn.layers.noise import noise_counters
from nn.layers.stack import Stack, StackSettings
from nn.ops.merged import KeySet
from nn.random import counter
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import check_slopes, close, shaken
from tests.gradients import gradients, leaf, weighted
from tests.layers.attention.formulas import drawn

SHAPE: dict[str, Any] = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
LATENT: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 4,
                          "qk_rope_head_dim": 2, "v_head_dim": 3}
BLOCKS = [("full_attention", SHAPE), ("sliding_attention", SHAPE | {"window": 3}),
          ("sliding_attention", SHAPE | {"window": 3, "sink_tokens": 2, "sinks": True}),
          ("gated_attention", SHAPE), ("block_sparse", SHAPE | {"block_size": 2, "local_blocks": 2}),
          ("mla", LATENT)]
every = pytest.mark.parametrize(("name", "options"), BLOCKS, ids=lambda x: x if isinstance(x, str) else "")


def block(name: str, **options: Any) -> Any:
    return shaken(registry.create("mixer", name, dtype="float64", **options), 1)


def run(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return np.asarray(layer(Tensor(x), **options)[0].data)


# ---- softcap ----


@every
def test_a_large_softcap_changes_nothing(name: str, options: dict[str, Any]) -> None:
    x = drawn(2, 9, 8)
    close(run(block(name, **options, softcap=1e9), x), run(block(name, **options), x), 1e-7)


@every
def test_a_small_softcap_makes_all_keys_count_alike(name: str, options: dict[str, Any]) -> None:
    """As queries of length 0 do, however long the queries are"""
    capped, blind, x = block(name, **options, softcap=1e-9), block(name, **options), drawn(2, 9, 8)
    capped.q_proj.weight.data *= 1e6
    blind.q_proj.weight.data *= 0.0
    close(run(capped, x), run(blind, x), 1e-7)


@pytest.mark.parametrize("softcap", [0.0, 0.7])
@pytest.mark.parametrize("backend", ["auto", "manual"])
def test_equals_the_formula(softcap: float, backend: str) -> None:
    """Scale, biases and softcap, four heads over two"""
    layer = block("full_attention", **SHAPE, softcap=softcap, scale=0.4, attn_bias=True, out_bias=True,
                  rope_theta=0.0, backend=backend)
    x, w = drawn(2, 7, 8), layer.state_dict()
    q, k, v = (np.reshape(x @ w[f"{name}_proj.weight"].T + w[f"{name}_proj.bias"], (2, 7, -1, 4))
               for name in "qkv")
    u = 0.4 * np.einsum("bihd,bjhd->bhij", q, k.repeat(2, axis=2))
    s = np.where(np.tri(7, dtype=bool), softcap * np.tanh(u / softcap) if softcap else u, -np.inf)
    p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    o = np.einsum("bhij,bjhd->bihd", p, v.repeat(2, axis=2)).reshape(2, 7, 16)
    close(run(layer, x), o @ w["o_proj.weight"].T + w["o_proj.bias"], 1e-12)


@every
def test_equal_keys_give_the_mean_of_the_values(name: str, options: dict[str, Any]) -> None:
    """Of all that is visible: what queries are does not matter"""
    layer, x = block(name, **options), drawn(2, 9, 8)
    if name == "mla":
        layer.kv_b_proj.weight.data.reshape(2, 7, 5)[:, :4] = 0.0        # keys of both heads
        layer.kv_a_proj_with_mqa.weight.data[5:] = 0.0                   # and the shared one
    else:
        layer.k_proj.weight.data *= 0.0
    before = run(layer, x)
    layer.q_proj.weight.data *= -3.0
    close(run(layer, x), before, 1e-12)


def test_softcap_of_tiles_that_cover_all_is_that_of_dense_attention() -> None:
    x = drawn(2, 9, 8)
    sparse = block("block_sparse", **SHAPE, block_size=2, local_blocks=9, softcap=0.7)
    close(run(sparse, x), run(block("full_attention", **SHAPE, softcap=0.7), x), 1e-12)


# ---- dropout of probabilities ----


@every
def test_dropout_is_drawn_from_the_counter_and_off_in_evaluation(name: str, options: dict[str, Any]) -> None:
    layer, plain, x = block(name, **options, attn_dropout=0.5), block(name, **options), drawn(2, 6, 8)
    close(run(layer, x), run(plain, x), 1e-12)
    layer.train()
    first = run(layer, x)
    assert np.abs(first - run(plain, x)).max() > 1e-3
    assert np.array_equal(first, run(layer, x)), "the same step drops the same"
    layer.noise = counter(0, "attn_dropout", 1)
    assert np.abs(run(layer, x) - first).max() > 1e-3
    state = layer.init_state(2)
    close(run(layer, x, state=state), run(plain, x), 1e-12)       # behind a cache nothing is dropped
    plain.train()
    assert not hasattr(plain, "noise"), "without dropout nothing is drawn"


def test_dropped_probabilities_keep_their_mean() -> None:
    q, k, v = (Tensor(drawn(1, 2, 5, 3, seed=i)) for i in range(3))
    expected = ops.attention(q, k, v).data
    found = [ops.dense_attention(q, [KeySet(k, v)], dropout=0.3, noise=counter(1, "many", i)).data
             for i in range(2000)]
    error = np.abs(np.mean(found, axis=0) - expected)
    assert (error < 5.0 * np.std(found, axis=0) / np.sqrt(2000) + 1e-12).all()
    everything = ops.dense_attention(q, [KeySet(k, v)], dropout=1.0, noise=counter(1, "all"))
    assert not everything.data.any()


@every
def test_gradients_of_training_with_dropout_and_softcap(name: str, options: dict[str, Any]) -> None:
    layer, x = block(name, **options, attn_dropout=0.4, softcap=1.5).train(), leaf(drawn(2, 5, 8))
    parameters = list(layer.parameters())

    def loss() -> float:
        with no_grad():
            return weighted(layer(Tensor(x.data))[0]).item()

    found = gradients(lambda z: layer(z)[0], [x], parameters)
    arrays = [x.data, *(p.data for p in parameters)]
    check_slopes(loss, {str(i): pair for i, pair in enumerate(zip(arrays, found, strict=True))})


# ---- dropout of what blocks add ----


def stack(**options: Any) -> Stack:
    settings = StackSettings.create(hidden_size=8, options={"full_attention": {"num_heads": 2,
                                    "attn_dropout": 0.3}, "swiglu": {"intermediate_size": 6}}, **options)
    return shaken(Stack(settings, dtype="float64"), 1)


@contextmanager
def step(model: Stack, number: int) -> Iterator[None]:
    for module, noise in noise_counters(model, 0, number, 0):
        module.noise = noise
    yield


def test_residual_dropout_is_on_while_training_only() -> None:
    layer, plain, x = stack(resid_dropout=0.5), stack(), drawn(2, 6, 8)
    close(run(layer, x), run(plain, x), 1e-12)
    layer.train()
    with step(layer, 1):
        first = run(layer, x)
        assert np.array_equal(first, run(layer, x))
    with step(layer, 2):
        assert np.abs(run(layer, x) - first).max() > 1e-3
        close(run(layer, x, state=layer.init_state(2)), run(plain, x), 1e-12)


def test_blocks_and_layers_drop_by_themselves() -> None:
    """No two modules of a step draw the same numbers."""
    model = stack(resid_dropout=0.5)
    places = [tuple(noise) for _, noise in noise_counters(model, 0, 1, 0)]
    assert len(places) == 2 * 3
    assert len(set(places)) == len(places)


def test_recomputed_layers_drop_the_same() -> None:
    """Gradient checkpointing, and noise that has moved on before backward"""
    found = []
    for recompute in (False, True):
        model, x = stack(resid_dropout=0.5).train(), leaf(drawn(2, 6, 8))
        model.recompute = recompute
        with step(model, 1):
            total = weighted(model(x)[0])
        with step(model, 2):
            total.backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*found, strict=True):
        close(plain, recomputed, 1e-12)


# ---- caches of fixed size ----


@pytest.mark.parametrize(("name", "options"), [
    ("full_attention", {}), ("full_attention", {"sinks": True}), ("full_attention", {"softcap": 0.7}),
    ("full_attention", {"backend": "manual", "window": 3}), ("gated_attention", {"k_gate": "headwise"}),
    ("sliding_attention", {"window": 3}), ("sliding_attention", {"window": 3, "sink_tokens": 2}),
    ("sliding_attention", {"window": 4, "sink_tokens": 1, "sinks": True, "softcap": 0.7})], ids=str)
def test_a_cache_of_fixed_size_gives_what_the_growing_one_gives(name: str, options: dict[str, Any]) -> None:
    layer, x = block(name, **SHAPE, **options), drawn(2, 12, 8)
    cache, state, parts = StaticKVCache(1, 2, 14, like=x), layer.init_state(2), np.split(x, [1, 5, 9, 10], 1)
    for part in parts:
        found = run(layer, part, state=cache.layers[0])
        cache.advance(part.shape[1])
        close(found, run(layer, part, state=state), 1e-12)


@pytest.mark.parametrize("sinks", [0, 2])
def test_first_tokens_stay_when_a_full_cache_is_trimmed(sinks: int) -> None:
    """A window of 3 and `sinks` first tokens are served exactly by room for 8, over 20 tokens"""
    layer, x = block("sliding_attention", **SHAPE, window=3, sink_tokens=sinks), drawn(2, 20, 8)
    expected, cache = run(layer, x), StaticKVCache(1, 2, 8, like=x, last_position=20)
    for t in range(20):
        if cache.length == cache.capacity:
            cache.trim(keep=5)
        close(run(layer, x[:, t : t + 1], state=cache.layers[0])[:, 0], expected[:, t], 1e-12)
        cache.advance(1)


@pytest.mark.parametrize("name", [name for name in registry.names("mixer")
                                  if not registry.find("mixer", name).static_cache])
def test_blocks_that_cannot_take_one_say_so(name: str) -> None:
    first = next(iter(registry.find("mixer", name).Settings.examples().values()))
    layer, x = registry.find("mixer", name)(first, dtype="float64").eval(), drawn(1, 3, first.hidden_size)
    with pytest.raises(InputError, match=f"{type(layer).__name__} takes no cache of fixed size"):
        run(layer, x, state=StaticKVCache(1, 1, 8, like=x).layers[0])


def test_attention_both_ways_has_no_cache() -> None:
    x = drawn(1, 3, 8)
    with pytest.raises(InputError, match="both ways"):
        run(block("full_attention", **SHAPE, causal=False), x, state=StaticKVCache(1, 1, 8, like=x).layers[0])


# ---- gates ----


def test_gates_are_formed_in_float32() -> None:
    """bfloat16: logits that a rounding to 8 bits would move"""
    layer = registry.create("mixer", "gated_attention", **SHAPE, dtype="bfloat16").eval()
    layer.output_gate.weight.data[...] = 0.0
    layer.output_gate.weight.data[:, 0], layer.output_gate.weight.data[:, 1] = 1.0, 2.0**-8
    x = np.zeros((1, 1, 8))
    x[..., :2] = 4.0, 2.0
    gate = layer.output_gate(Tensor(x.astype(layer.output_gate.weight.dtype)))
    assert gate.dtype == np.float32
    assert gate.data[0, 0, 0] == pytest.approx(1.0 / (1.0 + np.exp(-(4.0 + 2.0**-7))), abs=1e-7)


@pytest.mark.parametrize(("options", "message"), [
    ({"softcap": -1.0}, "softcap"), ({"attn_dropout": 1.0}, "attn_dropout"), ({"scale": -0.1}, "scale")])
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.create("mixer", "full_attention", **SHAPE, **options)
    for name in ("softcap", "attn_dropout"):
        with pytest.raises(InputError, match=f"{name}.*no choice"):
            registry.create("mixer", "nsa", **SHAPE, **{name: 0.5})
    with pytest.raises(InputError, match="resid_dropout|dropout"):
        stack(resid_dropout=1.0)
