"""Multi-head latent attention: its formula, its two forms, its cache, and what it turns into."""

import math
from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.attention.causal import CausalSelfAttention
from nn.layers.attention.mla import MLA, MLASettings
from nn.layers.formulas import total
from nn.layers.rotary import RopeScaling
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close
from tests.layers.attention.formulas import (
    attention,
    built,
    causal,
    continued,
    drawn,
    heads,
    joined,
    rms,
    run,
    turned,
    weights,
)

SMALL = {"hidden_size": 16, "num_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2,
         "v_head_dim": 3}
V3 = {"hidden_size": 7168, "num_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
      "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def by_formula(block: MLA, x: np.ndarray) -> np.ndarray:
    s, length = block.settings, x.shape[1]
    if s.q_lora_rank:
        low = rms(x @ weights(block, "q_a_proj").T, weights(block, "q_a_layernorm"))
        q = heads(low, weights(block, "q_b_proj"), s.num_heads)
    else:
        q = heads(x, weights(block, "q_proj"), s.num_heads)
    both = x @ weights(block, "kv_a_proj_with_mqa").T
    latent = rms(both[..., : s.kv_lora_rank], weights(block, "kv_a_layernorm"))
    wide = heads(latent, weights(block, "kv_b_proj"), s.num_heads)
    dn, positions = s.qk_nope_head_dim, np.arange(length)
    shared = turned(both[:, None, :, s.kv_lora_rank :], positions, interleaved=s.rope_interleaved)
    q_r = turned(q[..., dn:], positions, interleaved=s.rope_interleaved)
    k = np.concatenate([wide[..., :dn], np.broadcast_to(shared, q_r.shape)], axis=-1)
    o = attention(np.concatenate([q[..., :dn], q_r], axis=-1), k, wide[..., dn:], causal(length))
    return joined(o) @ weights(block, "o_proj").T


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("interleaved", [True, False])
def test_equals_the_formula(rank: int, interleaved: bool, mode: str) -> None:
    block, x = built(MLA, **SMALL, q_lora_rank=rank, rope_interleaved=interleaved), drawn(2, 7, 16)
    close(run(block, x, mode=mode), by_formula(block, x), 1e-12)


def test_absorbed_equals_naive_behind_a_cache() -> None:
    block, x = built(MLA, **SMALL, q_lora_rank=6), drawn(2, 9, 16)
    naive = continued(block, x, [4, 5], mode="chunk")
    close(continued(block, x, [4, 5], mode="recurrent"), naive, 1e-12)
    close(continued(block, x, [4, 5]), naive, 1e-12)
    close(run(block, x, mode="chunk"), naive, 1e-12)


def test_absorbed_is_chosen_behind_a_past_only() -> None:
    settings = MLASettings.create(**SMALL)
    assert not settings.absorbs(5, 0, None)
    assert settings.absorbs(5, 3, None)
    assert not settings.absorbs(500, 3, None)
    assert settings.absorbs(5, 0, "recurrent")
    assert not settings.absorbs(1, 9, "chunk")


def test_the_cache_holds_rank_and_rope_channels_per_token() -> None:
    block = built(MLA, **SMALL)
    state = block.init_state(3)
    with no_grad():
        block(Tensor(drawn(3, 11, 16)), state=state)
    assert state.nbytes == 3 * 11 * (5 + 2) * 8
    assert block.settings.kept == 7


def test_numbers_of_deepseek_v3() -> None:
    settings = MLASettings.create(**V3)
    assert settings.parameters() == {"projections": 187_105_280, "norms": 1536 + 512}
    assert settings.kept == 576
    assert settings.qk_head_dim == 192
    core = settings.flops(1, 1, 99, "recurrent")["core"], settings.flops(1, 1, 99, "chunk")["core"]
    assert core == (2 * 128 * 100 * (2 * 512 + 64), 2 * 128 * 100 * (128 + 64 + 128))
    assert settings.flops(1, 1, 99, "recurrent")["expansion"] == 2 * 128 * 512 * (128 + 128)


@pytest.mark.parametrize("rank", [0, 16])
def test_with_factors_of_one_it_is_multi_head_attention(rank: int) -> None:
    """Ranks as wide as x, their first factors the identity, no norms, no positions"""
    own = {"hidden_size": 16, "num_heads": 2, "init_std": 0.3}
    plain = built(CausalSelfAttention, **own, rope_theta=0.0)
    block = built(MLA, **own, q_lora_rank=rank, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=0,
                  v_head_dim=8, latent_norm=False)
    if rank:
        block.q_a_proj.weight.data = np.eye(16)
    (block.q_b_proj if rank else block.q_proj).weight.data = weights(plain, "q_proj").copy()
    block.kv_a_proj_with_mqa.weight.data = np.eye(16)
    k, v = (weights(plain, name).reshape(2, 8, 16) for name in ("k_proj", "v_proj"))
    block.kv_b_proj.weight.data = np.concatenate([k, v], axis=1).reshape(32, 16)
    block.o_proj.weight.data = weights(plain, "o_proj").copy()
    x = drawn(2, 6, 16)
    for mode in ("chunk", "recurrent"):
        close(run(block, x, mode=mode), run(plain, x), 1e-12)


def test_without_rope_channels_the_past_has_no_order() -> None:
    block, x = built(MLA, **SMALL | {"qk_rope_head_dim": 0}), drawn(1, 6, 16)
    mixed = x[:, [3, 0, 4, 2, 1, 5]]
    close(run(block, mixed)[:, 5], run(block, x)[:, 5], 1e-12)
    ordered = built(MLA, **SMALL)
    assert np.abs(run(ordered, mixed)[:, 5] - run(ordered, x)[:, 5]).max() > 1e-3


def test_the_latent_is_normalised_the_shared_key_is_not() -> None:
    block, x = built(MLA, **SMALL, norm_eps=1e-14), drawn(1, 6, 16)
    before, matrix = run(block, x), block.kv_a_proj_with_mqa.weight.data
    matrix[:5] *= 3.0
    close(run(block, x), before, 1e-9)
    matrix[5:] *= 3.0
    assert np.abs(run(block, x) - before).max() > 1e-3


def test_yarn_scales_the_scores_by_mscale_squared() -> None:
    yarn = RopeScaling("yarn", 40.0, original_max_position_embeddings=4096, attention_factor=1.0)
    own = MLASettings.create(**V3, rope_scaling=yarn, mscale_all_dim=1.0, max_seq_len=163840)
    assert own.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40.0) + 1.0) ** 2, rel=1e-15)
    assert MLASettings.create(**V3, rope_scaling=yarn, max_seq_len=163840).scale == 192**-0.5


def test_doubling_the_past_doubles_the_core() -> None:
    settings = MLASettings.create(**SMALL)
    one, two = (settings.flops(1, 1, past, "recurrent") for past in (9, 19))
    assert two["core"] == 2 * one["core"]
    assert total(two) - total(one) == two["core"] - one["core"]


@pytest.mark.parametrize(("options", "word"), [({"qk_rope_head_dim": 3}, "qk_rope_head_dim"),
                                               ({"q_lora_rank": -1}, "q_lora_rank"),
                                               ({"kv_lora_rank": 0}, "kv_lora_rank"),
                                               ({"norm_eps": -1e-6}, "norm_eps"),
                                               ({"rope_theta": -1.0}, "rope_theta"),
                                               ({"softcap": float("nan")}, "softcap"),
                                               ({"mscale_all_dim": -1.0}, "mscale_all_dim")])
def test_refusals(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        MLASettings.create(**SMALL | options)
