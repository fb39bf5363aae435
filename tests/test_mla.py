"""The file that the requirement document "linearnexus" runs by itself: multi-head latent attention, by the
names it has there.  Its equations are in tests/layers/attention/test_mla.py."""

import numpy as np
import pytest

from nn import Tensor, no_grad
from nn.layers import registry
from nn.layers.attention import MLABlock, MLACache, MLASettings, MultiHeadLatentAttention
from nn.models import create_model

SETTINGS = MLASettings(hidden_size=16, num_heads=2, q_lora_rank=6, kv_lora_rank=5, qk_nope_head_dim=4,
                       qk_rope_head_dim=2, v_head_dim=3)


def given(length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, length, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", [MultiHeadLatentAttention, MLABlock])
def test_no_token_sees_a_later_one(kind: type) -> None:
    block, x = kind(SETTINGS).initialize(0), given()
    before, _ = block(Tensor(x))
    x[:, 5:] += 1.0
    after, _ = block(Tensor(x))
    assert np.array_equal(before.data[:, :5], after.data[:, :5])
    assert np.abs(before.data - after.data)[:, 5:].max() > 0


@pytest.mark.parametrize("kind", [MultiHeadLatentAttention, MLABlock])
def test_decoding_is_what_the_whole_sequence_gives(kind: type) -> None:
    """Absorbed, from the compressed cache"""
    block, x = kind(SETTINGS).initialize(0), given()
    with no_grad():
        whole, _ = block(Tensor(x), mode="chunk")
        state, parts = block.init_state(2), []
        for t in range(9):
            y, state = block(Tensor(x[:, t : t + 1]), state=state, mode="recurrent")
            parts.append(y.data)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole.data, rtol=1e-4, atol=1e-6)


def test_the_cache_is_compressed() -> None:
    """5 + 2 numbers per token, for all heads; with 512 + 64, 7.1 times less than keys and values of 16"""
    block = MultiHeadLatentAttention(SETTINGS).initialize(0)
    with no_grad():
        _, cache = block(Tensor(given()), state=block.init_state(2))
    assert isinstance(cache, MLACache)
    assert cache.nbytes == 2 * 9 * (5 + 2) * 4
    kept = MLASettings(num_heads=16, kv_lora_rank=512, qk_rope_head_dim=64).kept
    assert round(16 * 128 * 2 / kept, 1) == 7.1


def test_it_is_registered() -> None:
    assert registry.find("mixer", "mla") is MultiHeadLatentAttention
    model = create_model("gpt-tiny", seed=0, block_pattern="mla")
    assert [type(block) for block in model.blocks] == [MLABlock, MLABlock]
    logits, _ = model(np.arange(8).reshape(2, 4))
    assert logits.shape == (2, 4, 256)
