"""What a language model costs, by formula: published sizes, golden counts, bytes of state."""

from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, flops, no_grad
from nn.errors import InputError
from nn.models import LanguageModel, LanguageModelConfig
from nn.ops.count import count_flops
from tests.models import tiny
from tests.models.mixed import EVERY, ids, model


def described(width: int, layers: int, heads: tuple[int, int, int], inner: int, vocabulary: int, *,
              experts: tuple[int, int] = (0, 0), attention: dict[str, Any] | None = None,
              **more: Any) -> LanguageModelConfig:
    """A decoder of grouped attention.  heads: query heads, key/value heads, channels; experts: all, per
    token"""
    ffn: dict[str, Any] = {"intermediate_size": inner}
    if experts[0]:
        ffn |= {"num_experts": experts[0], "top_k": experts[1]}
    name = "moe" if experts[0] else "swiglu"
    names = dict(zip(("num_heads", "num_kv_heads", "head_dim"), heads, strict=True))
    return LanguageModelConfig(
        vocab_size=vocabulary, hidden_size=width, num_layers=layers, max_seq_len=4096,
        **{"feed_forward": name, "options": {"full_attention": names | (attention or {}), name: ffn}} | more)


HEAD, FULL = {"qk_norm": "head"}, {"qk_norm": "full"}
QWEN3 = described(1024, 28, (16, 8, 128), 3072, 151936, attention=HEAD, tie_embeddings=True)
MOE_6_9B = described(768, 30, (12, 1, 64), 6144, 32000, experts=(16, 4))
GPT2 = LanguageModelConfig(
    vocab_size=50257, hidden_size=768, num_layers=12, max_seq_len=1024, tie_embeddings=True, norm="layernorm",
    feed_forward="mlp", positions="learned", options={
        "full_attention": {"num_heads": 12, "rope_theta": 0.0, "attn_bias": True, "out_bias": True},
        "mlp": {"intermediate_size": 3072, "bias": True}})


@pytest.mark.parametrize(("config", "total", "active"), [
    (QWEN3, 596_049_920, 596_049_920), (GPT2, 124_439_808, 124_439_808),
    (MOE_6_9B, 6_882_678_528, 1_786_599_168),
    (MOE_6_9B.replace(tie_embeddings=True), 6_858_102_528, 1_762_023_168),
    (described(576, 30, (9, 3, 64), 1536, 49152, tie_embeddings=True), 134_515_008, 134_515_008),
    (described(960, 32, (15, 5, 64), 2560, 49152, tie_embeddings=True), 361_821_120, 361_821_120),
    (described(2048, 24, (32, 32, 64), 8192, 49152, tie_embeddings=True), 1_711_376_384, 1_711_376_384),
    (described(2048, 48, (32, 4, 128), 768, 151936, experts=(128, 8), attention=HEAD),
     30_532_122_624, 3_353_032_704),
    (described(2048, 16, (16, 16, 128), 1024, 50304, experts=(64, 8), attention=FULL),
     6_919_161_856, 1_282_017_280),
    (described(4096, 32, (32, 8, 128), 14336, 32000, experts=(8, 2)), 46_702_792_704, 12_879_925_248)],
    ids=["Qwen3-0.6B", "GPT-2", "moe-6.9b", "moe-6.9b tied", "SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B",
         "Qwen3-30B-A3B", "OLMoE", "Mixtral-8x7B"])
def test_published_models(config: LanguageModelConfig, total: int, active: int) -> None:
    assert sum(config.parameters().values()) == total
    assert sum(config.parameters(active=True).values()) == active
    made = LanguageModel(config, dtype="bfloat16")
    assert made.num_parameters() == total
    assert made.num_parameters(active=True) == active
    assert not any(parameter.allocated for parameter in made.parameters())


def test_golden_operations() -> None:
    """Of one token in 2,048, forward"""
    found = flops.breakdown(QWEN3, 2048)
    assert {name: count / 28 for name, count in found.items() if name.startswith("body") and count} == {
        "body.full_attention.projections": 12_582_912, "body.full_attention.core": 8_392_704,
        "body.swiglu.projections": 18_874_368}
    assert (found["head"], sum(found.values())) == (311_164_928, 1_426_964_480)
    found = flops.breakdown(MOE_6_9B, 2048)
    assert {name: count / 30 for name, count in found.items() if name.startswith("body") and count} == {
        "body.full_attention.projections": 2_555_904, "body.full_attention.core": 3_147_264,
        "body.moe.router": 2 * 768 * 16, "body.moe.experts": 113_270_784 - 2 * 768 * 16}
    assert (found["head"], sum(found.values())) == (49_152_000, 3_618_370_560)
    assert LanguageModel(QWEN3).flops(2048) == 1_426_964_480
    assert LanguageModel(QWEN3).flops(2048, training=True) == 3 * 1_426_964_480


def test_one_expert_costs_what_a_dense_layer_costs_and_its_router() -> None:
    dense = described(64, 3, (4, 2, 16), 96, 50)
    sparse = described(64, 3, (4, 2, 16), 96, 50, experts=(1, 1))
    for count, router in ((lambda config: config.parameters(), 3 * 64),
                          (lambda config: config.flops(2, 9), 3 * 2 * 9 * 2 * 64)):
        assert sum(count(sparse).values()) - sum(count(dense).values()) == router
    made, plain = LanguageModel(sparse), LanguageModel(dense)
    with count_flops() as one:
        made(ids(2, 9))
    with count_flops() as other:
        plain(ids(2, 9))
    assert one.flops - other.flops == 3 * 2 * 9 * 2 * 64


@pytest.mark.parametrize("past", [0, 1, 63, 2047])
def test_decoding_sees_what_is_held(past: int) -> None:
    """The same two models described twice; a token behind p others looks at p + 1"""
    twin = MoETransformerConfig(
        vocab_size=32000, hidden_size=768, num_layers=30, num_heads=12, num_kv_heads=1, head_dim=64,
        intermediate_size=6144, num_experts=16, top_k=4)
    found, own = flops.decoding(MOE_6_9B, past), flops.decoding(twin, past)
    assert sum(found.values()) == sum(own.values())
    assert own["attention_core"] == 30 * 4 * 768 * (past + 1) == found["body.full_attention.core"]
    assert sum(own.values()) - own["attention_core"] == 3_618_370_560 - 30 * 3_147_264
    assert flops.state_bytes(MOE_6_9B, past) == flops.state_bytes(twin, past) == 30 * 2 * 64 * past * 2


@pytest.mark.parametrize("name", ["as it is", "window", "dense gelu"])
def test_decoding_is_what_is_executed(name: str) -> None:
    made = tiny.model(**tiny.VARIANTS[name])
    cache = made.init_state(2)
    with no_grad():
        made(tiny.ids(2, 9), cache=cache)
        with count_flops() as count:
            made(tiny.ids(2, 1), cache=cache)
    assert count.flops == 2 * sum(flops.decoding(made.config, 9).values())
    assert sum(layer.nbytes for layer in cache.layers) == 2 * flops.state_bytes(made.config, 10, "float64")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_bytes_of_a_state(name: str, dtype: str) -> None:
    """Behind no token, one, and more than any window or chunk summarised"""
    mixer, changes = EVERY[name]
    made = model(mixer, dtype=dtype, **changes)
    state, tokens, seen = made.init_state(1), ids(1, 20), 0
    for count in (0, 1, 12):
        if count:
            made(tokens[:, seen : seen + count], cache=state)
            seen += count
        leaves = sum(part.nbytes for part in state.leaves())
        assert leaves == sum(made.config.state_bytes(seen, dtype).values()), seen


def test_a_token_ahead_is_counted_in_training_alone() -> None:
    plain, ahead = (model("retention", mtp_depth=depth) for depth in (0, 1))
    extra = ahead.config.mtp.flops(1, 9, 31)
    assert flops.breakdown(plain.config, 9) == flops.breakdown(ahead.config, 9)
    spent = sum(flops.training(ahead.config, 9).values()) - sum(flops.training(plain.config, 9).values())
    assert spent * 9 == pytest.approx(3 * sum(extra.values()), rel=1e-12)
    with count_flops() as with_it:
        ahead.loss(ids(1, 9), ids(1, 9))
    with count_flops() as without:
        plain.loss(ids(1, 9), ids(1, 9))
    assert with_it.flops - without.flops == sum(extra.values())


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(InputError, match="mixer: 'attenton'"):
        LanguageModelConfig(mixer="attenton").flops(1, 8)
    with pytest.raises(InputError, match="length: 0"):
        QWEN3.flops(1, 0)
    with pytest.raises(InputError, match="it has no state"):
        LanguageModelConfig(mixer="block_sparse", causal=False).state_bytes(3)
    assert np.isfinite(MoETransformer.tiny().flops(8, training=True))
